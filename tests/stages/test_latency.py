"""Stage latency: it measures each part that there is, of what the experiment samples with."""

import json
from pathlib import Path
from typing import Any

import pytest

from dmd.config.sections import AncestralSolver, ChurnSolver
from dmd.stages import latency
from tests.text_files import import_all

SPEC: dict[str, Any] = {"experiment": "tiny", "weights": "ema", "batch_sizes": [1, 2], "repeats": 3, "warmup": 1}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = import_all(tmp_path_factory.mktemp("latency"), resolution=8)
    return {name: folder / f"{name}.safetensors" for name in ("denoiser", "text_encoder", "autoencoder")}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_shares_of_all_parts_make_up_the_whole(parts, tmp_path, dtype):
    solver = {"name": "pndm", "steps": 4, "spacing": None}
    output = tmp_path / "latency.json"
    latency.run(**parts, output=output, solver=solver, guidance=3.0, dtype=dtype, **SPEC)
    found = json.loads(output.read_text())
    assert (found["metric"], found["unit"], found["device"], found["network_calls"]) == ("latency", "s", "cpu", 5)
    assert [each["batch_size"] for each in found["batches"]] == [1, 2]
    assert found["value"] == found["batches"][0]["seconds"] and found["spec"]["dtype"] == dtype
    for each in found["batches"]:
        assert sum(each["shares"].values()) == pytest.approx(1)
        assert 0.5 * each["seconds"] < sum(each["parts"].values()) < 2 * each["seconds"]
        assert each["images_per_second"] == pytest.approx(each["batch_size"] / each["seconds"])
        assert each["fastest"] <= each["seconds"]
        assert set(each["shares"]) == {"text_encoder", "denoiser", "decoder"}
        assert each["shares"]["denoiser"] == max(each["shares"].values())  # five guided passes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_generator_of_pixels_is_all_there_is(distilled_folder, tmp_path, dtype):
    output = tmp_path / "latency.json"
    generator = distilled_folder / "generator.safetensors"
    latency.run(denoiser=generator, output=output, solver={"name": "student"}, dtype=dtype, **SPEC)
    found = json.loads(output.read_text())
    assert found["batches"][0]["shares"] == {"denoiser": 1.0} and found["network_calls"] == 1


@pytest.mark.parametrize(
    ("section", "calls"),
    [
        (ChurnSolver(name="heun-churn", steps=3, churn=1.0), 5),
        (AncestralSolver(name="ancestral", steps=3), 3),
    ],
)
def test_solvers_with_fresh_noise_are_measured(teacher_file, tmp_path, section, calls):
    solver = section.with_defaults()
    latency.run(denoiser=teacher_file, output=tmp_path / "latency.json", solver=solver, dtype="float32", **SPEC)
    found = json.loads((tmp_path / "latency.json").read_text())
    assert found["network_calls"] == calls


def test_parts_that_do_not_fit_are_named(parts, tmp_path):
    given = {"output": tmp_path / "latency.json", "solver": {"name": "pndm", "steps": 4}, **SPEC}
    with pytest.raises(ValueError, match="--autoencoder must be given if .* has image_shape"):
        latency.run(denoiser=parts["denoiser"], text_encoder=parts["text_encoder"], dtype="float32", **given)
    with pytest.raises(ValueError, match="latency.dtype 'float8' is not one of"):
        latency.run(**parts, dtype="float8", **given)
