"""Export: an ONNX file that draws what torch draws, the same bytes each time, without torch."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import dmd
from dmd.models import loading
from dmd.provenance import files, record, tensor_files
from dmd.sampling.sampler import Sampler
from dmd.stages import export_onnx

SIGMA = 80.0
UNET = {"resolution": 8, "channels": 3, "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
NETWORKS = {
    "adm": {"kind": "adm", **UNET, "width": 64, "multipliers": [1, 1], "num_classes": 10},
    "ddpmpp": {"kind": "ddpmpp", **UNET, "num_classes": 10, "augment": 9},
    "ncsnpp": {"kind": "ncsnpp", **UNET, "num_classes": 0},
    "mlp": {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0},
}
NETWORKS["states"] = NETWORKS["mlp"] | {"second_time": True, "states": 3}  # several in one pass, of which one is drawn

SLOW = pytest.mark.slow  # tracing a U-Net takes 15 s
SLOW_ONES = ("adm", "ddpmpp", "states")


def write(path, network: dict, **changed):
    """A generator of random weights, those that start at zero included."""
    torch.manual_seed(0)
    denoiser = loading.new_denoiser(network, sigma_data=0.5)
    for weight in denoiser.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    content = {f"ema.{name}": value for name, value in denoiser.network.state_dict().items()}
    shape = [network["channels"], network["resolution"], network["resolution"]]
    facts = {"kind": "generator", "network": network, "shape": shape, "num_classes": network["num_classes"]}
    with record.publish(path, stage="distill", inputs={}) as temporary:
        facts |= {"sigma": SIGMA, "sigma_data": 0.5} | changed
        tensor_files.write(temporary, content, facts | {"calls": {"sigmas": [facts["sigma"]]}})
    return path


def session(path):
    import onnxruntime

    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("name", ["mlp", "ncsnpp", *(pytest.param(name, marks=SLOW) for name in SLOW_ONES)])
def test_an_exported_generator_draws_what_torch_draws(name, tmp_path):
    source = write(tmp_path / "generator.safetensors", NETWORKS[name])
    output = tmp_path / "export" / "generator.onnx"
    export_onnx.run(generator=source, output=output)
    assert record.read(output)["sha256"] == files.sha256(output)
    graph = session(output)
    metadata = json.loads(graph.get_modelmeta().custom_metadata_map["dmd"])
    assert metadata["sigma"] == SIGMA and metadata["num_classes"] == NETWORKS[name]["num_classes"]
    assert metadata["inputs"] == {"generator": files.sha256(source)} and 0 <= metadata["max_difference"] < 1e-5
    assert not any(word in output.read_bytes() for word in (b"stack_trace", b"forward", str(tmp_path).encode()))
    generator = dmd.load(source)
    for num in (1, 7):
        batch = next(generator.batches(range(100, 100 + num)))
        (found,) = graph.run(["image"], {"noise": batch.noise.numpy(), "label": batch.label.numpy()})
        assert found.dtype == np.float32 and batch.image.std() > 1e-2
        np.testing.assert_allclose(found, batch.image.numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp", pytest.param("adm", marks=SLOW)])
def test_two_exports_have_the_same_bytes(name, tmp_path):
    """Also in a process in which sets have another order."""
    source = write(tmp_path / "generator.safetensors", NETWORKS[name])
    paths = [tmp_path / number / "generator.onnx" for number in ("one", "two")]
    export_onnx.run(generator=source, output=paths[0])
    seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
    line = [sys.executable, "-m", "dmd.stages.export_onnx", "--generator", str(source), "--output", str(paths[1])]
    subprocess.run(line, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_either_weights_can_be_exported(tmp_path):
    network = NETWORKS["mlp"]
    ema, metadata = tensor_files.load(write(tmp_path / "ema.safetensors", network))
    raw = {name.replace("ema.", "raw."): value * 1.1 for name, value in ema.items()}
    source = tmp_path / "generator.safetensors"
    tensor_files.save(source, ema | raw, metadata)
    export_onnx.run(generator=source, output=tmp_path / "generator.onnx", weights="raw")
    batch = next(dmd.load(source, weights="raw").batches(range(3)))
    given = {"noise": batch.noise.numpy(), "label": batch.label.numpy()}
    (found,) = session(tmp_path / "generator.onnx").run(["image"], given)
    np.testing.assert_allclose(found, batch.image.numpy(), rtol=0, atol=1e-5)
    assert not torch.allclose(dmd.load(source)(num=3), batch.image, atol=1e-3)


def test_a_student_of_fewer_calls_that_its_file_keeps_can_be_exported(tmp_path):
    last, metadata = tensor_files.load(write(tmp_path / "last.safetensors", NETWORKS["mlp"]))
    earlier = {f"ema@2.{name.removeprefix('ema.')}": value * 1.1 for name, value in last.items()}
    source, kept = tmp_path / "generator.safetensors", {"2": {"sigmas": [80.0, 2.0], "between": "ode"}}
    tensor_files.save(source, last | earlier, metadata | {"calls_kept": kept})
    export_onnx.run(generator=source, output=tmp_path / "generator.onnx", calls=2)
    graph = session(tmp_path / "generator.onnx")
    told = json.loads(graph.get_modelmeta().custom_metadata_map["dmd"])
    assert told["calls"]["sigmas"] == [80.0, 2.0] and told["spec"]["calls"] == 2
    batch = next(Sampler(source, solver={"name": "student"}, calls=2).batches(range(3)))
    assert batch.network_calls == 2
    (found,) = graph.run(["image"], {"noise": batch.noise.numpy(), "label": batch.label.numpy()})
    np.testing.assert_allclose(found, batch.image.numpy(), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="is no student of 4 calls, but of 2, 1"):
        export_onnx.run(generator=source, output=tmp_path / "generator.onnx", calls=4)


def test_what_is_no_generator_or_differs_is_refused(teacher_file, tmp_path):
    output = tmp_path / "export" / "generator.onnx"
    with pytest.raises(ValueError, match="is of kind 'train': only a student can be exported"):
        export_onnx.run(generator=teacher_file, output=output)
    of_text, facts = tensor_files.load(write(tmp_path / "labels.safetensors", NETWORKS["mlp"]))
    tensor_files.save(tmp_path / "text.safetensors", of_text, facts | {"text": {"length": 4, "width": 8}})
    with pytest.raises(ValueError, match="text.safetensors draws from text states, .* use stage export_pipeline"):
        export_onnx.run(generator=tmp_path / "text.safetensors", output=output)
    mlp = NETWORKS["mlp"] | {"width": 64}
    huge = write(tmp_path / "generator.safetensors", mlp, sigma=1e5, sigma_data=1e5)  # float32 ends at 1e-2 there
    with pytest.raises(ValueError, match="onnxruntime and torch differ by .*, more than 0.0001"):
        export_onnx.run(generator=huge, output=output)
    assert not output.exists()
