"""Stage export: the one-step generator as an ONNX file, for programs without torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmd import loading
from dmd.artifacts import files, record
from dmd.diffusion.denoiser import start_scale
from dmd.diffusion.noise import seeded_noise
from dmd.stages import stage

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4  # largest difference of a pixel, images being in [-1, 1]
BATCHES = (range(0, 5), range(5, 6))  # seeds of the images compared: two sizes of a batch
KEY = "dmd"  # of the metadata, as in safetensors files
MOST_BYTES = 2**31 - 2**20  # of a file that holds its own weights, with room for the graph


def run(*, generator: Path, output: Path, weights: str = "ema", threads: int = 1) -> None:
    """Writes generator.onnx: noise float32 (B, C, H, W) and label int64 (B,) in, image float32 (B, C, H, W) out.

    The noise is of unit variance, the label -1 where there are no classes. The noise level is part of the graph; its
    value, with shape, classes and what made the file, is JSON under the key `dmd` of the file's metadata.

    Args:
        generator: distill/generator.safetensors.
        output: export/generator.onnx.
        weights: "ema" or "raw".
        threads: of torch and onnxruntime while the two are compared.

    Raises:
        ValueError: no generator, weights beyond 2 GiB, or images that differ from torch's by more than 1e-4.
    """
    stage.set_threads(threads)
    with record.exclusive(output):
        inputs = record.check_inputs(generator=generator)
        network, facts = _one_step(generator, weights)
        stage.log(f"tracing {sum(value.numel() for value in network.state_dict().values()):,} weights")
        graph = _trace(network, facts)
        difference = _compare(graph, network, facts, threads)
        stage.log(f"onnxruntime and torch differ by {difference:.2g} at most")
        if not difference <= TOLERANCE:
            raise ValueError(f"{output}: onnxruntime and torch differ by {difference:.2g}, more than {TOLERANCE:g}")
        provenance = record.provenance("export", {"weights": weights, "threads": threads}, inputs)
        entry = graph.metadata_props.add()
        entry.key, entry.value = KEY, files.canonical_json({**provenance, **facts, "max_difference": difference})
        with record.publish(output, stage="export", inputs=inputs) as temporary:
            temporary.write_bytes(graph.SerializeToString(deterministic=True))


class _OneStep(nn.Module):
    """Image = D(scale * noise; sigma, label) with sigma fixed."""

    def __init__(self, denoiser: nn.Module, sigma: float) -> None:
        super().__init__()
        self.denoiser, self.sigma, self.scale = denoiser, sigma, start_scale(denoiser, sigma)

    def forward(self, noise: Tensor, label: Tensor) -> Tensor:
        return self.denoiser(self.scale * noise, noise.new_full((noise.shape[0],), self.sigma), label)


def _one_step(path: Path, weights: str) -> tuple[_OneStep, dict[str, Any]]:
    """The generator, and what its file says of it."""
    denoiser, metadata = loading.load_denoiser(path, weights=weights)
    if metadata["kind"] != "generator":
        raise ValueError(f"{path} is of kind {metadata['kind']!r}: only a one-step generator can be exported")
    size = sum(value.nbytes for value in denoiser.state_dict().values())
    if size > MOST_BYTES:
        raise ValueError(f"{path}: {size:,} bytes of weights do not fit into one ONNX file of {MOST_BYTES:,} bytes")
    facts = {key: metadata[key] for key in ("shape", "num_classes", "sigma")}
    return _OneStep(denoiser, metadata["sigma"]).eval(), facts


def _noise(seeds: range, facts: dict[str, Any]) -> tuple[Tensor, Tensor]:
    return seeded_noise(seeds, tuple(facts["shape"]), num_classes=facts["num_classes"])


def _trace(network: nn.Module, facts: dict[str, Any]) -> onnx.ModelProto:
    """The graph, without what the exporter notes of source files and their places on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about its own packages
        program = torch.onnx.export(
            network,
            _noise(range(2), facts),
            dynamo=True,
            input_names=["noise", "label"],
            output_names=["image"],
            dynamic_shapes=({0: torch.export.Dim("batch")}, {0: torch.export.Dim("batch")}),
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return graph


def _compare(graph: onnx.ModelProto, network: nn.Module, facts: dict[str, Any], threads: int) -> float:
    """Largest difference of any pixel between onnxruntime and torch; infinite if one is not finite."""
    import onnxruntime

    numbers = onnxruntime.SessionOptions()
    numbers.intra_op_num_threads, numbers.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), numbers, providers=["CPUExecutionProvider"])
    largest = 0.0
    for seeds in BATCHES:
        noise, label = _noise(seeds, facts)
        with torch.no_grad():
            expected = network(noise, label)
        (found,) = session.run(["image"], {"noise": noise.numpy(), "label": label.numpy()})
        difference = (torch.from_numpy(found) - expected).abs().max().item()
        if not difference < float("inf"):
            return float("inf")
        largest = max(largest, difference)
    return largest


if __name__ == "__main__":
    stage.main(run)
