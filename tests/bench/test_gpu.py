"""The GPU suite on a tiny network: all of it runs, and without a GPU the full one says so."""

import json
import subprocess
import sys

import pytest
import torch

from bench import gpu
from bench.gpu_passes import MODES

COMMAND = [sys.executable, "-m", "bench.gpu"]


def test_tiny_suite_measures_every_mode(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--output", str(tmp_path / "gpu.json")])
    gpu.main()
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out) == figures and figures["setting"]["torch"] == torch.__version__
    tiny = figures["networks"]["tiny"]
    assert tiny["passes"].keys() == MODES.keys()
    for mode in tiny["passes"].values():
        assert mode["forward_ms"]["median"] > 0 and mode["forward_backward_over_float32"] > 0
    for mode in gpu.STEPPED:
        assert tiny["pairs"][mode]["speed_over_bare_network"] > 0
        for kind in ("own_noise", "shared_noise"):
            step = tiny["distill"][mode][kind]
            assert step["over_bare_passes"] > 0.5 and step["planned_gib"] >= 0


def test_what_begins_too_late_is_left_out():
    (size,) = gpu.sizes(tiny=True).values()
    figures = gpu.measured(size, lambda: True)
    assert set(figures["passes"].values()) == {"left out: no time"} == set(figures["distill"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_suite_says_what_to_do():
    answer = subprocess.run(COMMAND, capture_output=True, text=True)
    assert answer.returncode == 1 and "no GPU" in answer.stderr and "--tiny" in answer.stderr
