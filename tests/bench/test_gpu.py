"""The GPU suite on a tiny network: all of it runs, and without a GPU the full one says so."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench import gpu, gpu_experiment, gpu_methods, gpu_step, gpu_text, gpu_text_parts, gpu_text_step
from bench.attempts import FAILED, attempt
from bench.gpu_passes import MODES
from dmd import methods
from dmd.methods.parts.distances import Lpips
from dmd.models.compute import Compute

COMMAND = [sys.executable, "-m", "bench.gpu"]


@pytest.mark.slow
def test_tiny_suite_measures_every_mode(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--tiny", "--output", str(tmp_path / "gpu.json")])
    gpu.main()
    figures = json.loads((tmp_path / "gpu.json").read_text())
    assert json.loads(capsys.readouterr().out) == figures and figures["setting"]["torch"] == torch.__version__
    text, tiny = figures["networks"][gpu.TEXT], figures["networks"]["tiny"]
    assert {len(text[name]) for name in ("one_step", "distill", "pairs")} == {2}
    assert text["distill"].keys() == {"full", "adapters"}
    assert tiny["passes"].keys() == MODES.keys() and tiny["experiment"]["update_ms"]["median"] > 0
    for mode in tiny["passes"].values():
        assert mode["forward_ms"]["median"] > 0 and mode["forward_backward_over_float32"] > 0
    for mode in gpu.STEPPED:
        assert tiny["pairs"][mode]["speed_over_bare_network"] > 0
        for kind in ("own_noise", "shared_noise"):
            step = tiny["distill"][mode][kind]
            assert step["over_bare_passes"] > 0.5 and step["planned_gib"] >= 0
    assert tiny["methods"].keys() == gpu_methods.METHODS.keys()


@pytest.mark.slow
def test_hours_are_those_of_whole_updates(monkeypatch):
    """LPIPS, pairs that are read, micro batches: the update that stage distill makes."""
    (size,) = gpu.sizes(torch.device("cpu"), tiny=True).values()
    seen = []
    total = Lpips.total
    monkeypatch.setattr(
        Lpips, "total", lambda own, image, other: (seen.append(len(image)), total(own, image, other))[1]
    )
    figures = gpu_experiment.measure(size)
    assert figures["hours"] == pytest.approx(figures["update_ms"]["median"] / 3.6e6 * size.updates, abs=1e-3)
    assert seen == [size.batch_size] * 2 * (size.repetitions + 2) and size.whole == 2 * size.batch_size


@pytest.mark.slow
def test_networks_of_all_modes_are_compiled():
    """More variants than torch's limit for one class would be measured uncompiled, and called compiled."""
    (size,) = gpu.sizes(torch.device("cpu"), tiny=True).values()
    with torch._dynamo.config.patch(recompile_limit=6):
        for _ in range(2):
            figures = gpu_step.distill(size, Compute(), "default")
        assert figures["shared_noise"]["update_ms"]["median"] > 0
        assert torch._dynamo.config.fail_on_recompile_limit_hit


def test_updates_of_every_method_are_measured():
    """DMD's are those of `gpu_step`; those of a teacher, an autoencoder and a CLIP are no distillation."""
    (size,) = gpu.sizes(torch.device("cpu"), tiny=True).values()
    files = {path.stem for path in Path(methods.__file__).parent.glob("[a-z]*.py")}
    assert {str(section["name"]).replace("-", "_") for section in gpu_methods.METHODS.values()} == files - {
        "base",
        "dmd",
        *("denoising", "autoencoding", "contrastive"),  # of teachers
    }
    figures = gpu_methods.measure(dataclasses.replace(size, repetitions=1), Compute())
    for each in figures.values():
        assert each["update_ms"]["median"] > 0 and each["planned_gib"] >= 0


def test_what_begins_too_late_is_left_out():
    (size,) = gpu.sizes(torch.device("cpu"), tiny=True).values()
    figures = gpu.measure(size, lambda: True)
    assert figures["experiment"] == "left out: no time"
    assert set(figures["passes"].values()) == {"left out: no time"} == set(figures["distill"].values())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_full_suite_says_what_to_do():
    answer = subprocess.run(COMMAND, capture_output=True, text=True)
    assert answer.returncode == 1 and "no GPU" in answer.stderr and "--tiny" in answer.stderr


def test_text_figures_are_those_of_prompt_to_pixels_and_of_both_ways_to_train():
    """A tiny network of the kind of Stable Diffusion goes through what the full one does on a GPU."""
    size = gpu_text_parts.size(torch.device("cpu"), tiny=True)
    one_step = gpu_text.one_step(size, lambda: False, compiled=False)
    assert one_step.keys() == {str(num) for num in size.batch_sizes}
    for num, found in one_step.items():
        assert set(found["shares"]) == {"text_encoder", "denoiser", "decoder"}
        assert found["images_per_second"] == pytest.approx(int(num) / found["seconds"])
    pairs = gpu_text.pairs(size, compiled=False)
    assert pairs["network_calls"] == size.steps + 1 and pairs["speed_over_bare_network"] > 0
    assert pairs["seconds_per_pair"] == pytest.approx(pairs["batch_ms"]["median"] / 1000 / size.drawn, abs=1e-4)
    full = gpu_text_step.measure(size, None)
    adapters = gpu_text_step.measure(size, {"rank": size.rank, "alpha": None, "targets": None})
    assert adapters["trained_parameters"] < full["trained_parameters"]
    assert adapters["planned_gib"]["sum"] < full["planned_gib"]["sum"]
    for found in (full, adapters):
        assert (found["matched"], found["regressed"]) == (2 * size.micro_batch_size, size.micro_batch_size)
        assert 0 < found["optimisers_ms"] < found["update_ms"]["median"]


@pytest.mark.slow
def test_compiled_text_figures_are_of_compiled_networks():
    graphs = []

    def recorded(graph, given):
        graphs.append(graph)
        return graph.forward

    size = dataclasses.replace(gpu_text_parts.size(torch.device("cpu"), tiny=True), backend=recorded)
    found = gpu_text.one_step(size, lambda: False, compiled=True)
    assert all(one["images_per_second"] > 0 for one in found.values())
    assert len(graphs) == 3 * len(size.batch_sizes)  # each part in one piece
    gpu_text.pairs(size, compiled=True)
    assert len(graphs) == 3 * len(size.batch_sizes) + 1


def test_hours_of_text_share_the_batch_and_not_the_optimisers():
    found = gpu_text_step.hours(1900.0, 100.0, matched=32)  # 32 on each of 72 cards are the 2304 of the paper
    assert found["72 cards"] == pytest.approx(20_000 * 1.9 / 3600, abs=1e-3)
    assert found["1 card"] == pytest.approx(20_000 * (72 * 1.8 + 0.1) / 3600, abs=1e-3)


def test_figures_that_cannot_be_had_say_why(capsys):
    def full():
        raise torch.OutOfMemoryError("no memory\nfor 3 GiB")

    assert attempt(full) == "out of memory: no memory"
    assert attempt(lambda: 1 // 0) == f"{FAILED}ZeroDivisionError: integer division or modulo by zero"
    assert "Traceback" in capsys.readouterr().err
    figures = gpu_text.measure(gpu_text_parts.size(torch.device("cpu"), tiny=True), lambda: True)
    late = [found for name in ("one_step", "distill", "pairs") for found in figures[name].values()]
    assert late == ["left out: no time"] * 6
