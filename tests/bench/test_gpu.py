"""The GPU suite on a tiny network: all of it runs, and without a GPU the full one says so."""

import json
import subprocess
import sys

import pytest
import torch

from bench import gpu, gpu_experiment, gpu_step
from bench.gpu_passes import MODES
from dmd.diffusion.compute import Compute
from dmd.methods.regression import Lpips

COMMAND = [sys.executable, "-m", "bench.gpu"]


@pytest.mark.slow
def test_tiny_suite_measures_every_mode(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--output", str(tmp_path / "gpu.json")])
    gpu.main()
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out) == figures and figures["setting"]["torch"] == torch.__version__
    tiny = figures["networks"]["tiny"]
    assert tiny["passes"].keys() == MODES.keys() and tiny["experiment"]["update_ms"]["median"] > 0
    for mode in tiny["passes"].values():
        assert mode["forward_ms"]["median"] > 0 and mode["forward_backward_over_float32"] > 0
    for mode in gpu.STEPPED:
        assert tiny["pairs"][mode]["speed_over_bare_network"] > 0
        for kind in ("own_noise", "shared_noise"):
            step = tiny["distill"][mode][kind]
            assert step["over_bare_passes"] > 0.5 and step["planned_gib"] >= 0


@pytest.mark.slow
def test_hours_are_those_of_whole_updates(monkeypatch):
    """LPIPS, pairs that are read, micro batches: the update that stage distill makes."""
    (size,) = gpu.sizes(tiny=True).values()
    seen = []
    total = Lpips.total
    monkeypatch.setattr(
        Lpips, "total", lambda own, image, other: (seen.append(len(image)), total(own, image, other))[1]
    )
    figures = gpu_experiment.measure(size)
    assert figures["hours"] == pytest.approx(figures["update_ms"]["median"] / 3.6e6 * size.updates, abs=1e-3)
    assert seen == [size.batch_size] * 2 * (size.repetitions + 2) and size.whole == 2 * size.batch_size


@pytest.mark.slow
def test_networks_of_all_modes_are_compiled(monkeypatch):
    """More variants than torch's limit for one class would be measured uncompiled, and called compiled."""
    (size,) = gpu.sizes(tiny=True).values()
    monkeypatch.setattr(torch._dynamo.config, "recompile_limit", 6)
    for _ in range(2):
        figures = gpu_step.distill(size, Compute(), "default")
    assert figures["shared_noise"]["update_ms"]["median"] > 0
    assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_what_begins_too_late_is_left_out():
    (size,) = gpu.sizes(tiny=True).values()
    figures = gpu.measured(size, lambda: True)
    assert figures["experiment"] == "left out: no time"
    assert set(figures["passes"].values()) == {"left out: no time"} == set(figures["distill"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_suite_says_what_to_do():
    answer = subprocess.run(COMMAND, capture_output=True, text=True)
    assert answer.returncode == 1 and "no GPU" in answer.stderr and "--tiny" in answer.stderr
