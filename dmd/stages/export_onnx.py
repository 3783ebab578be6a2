"""Stage export_onnx: the student as an ONNX file, for programs without torch."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dmd.jobs import job, reporting, torch_setup
from dmd.models import loading
from dmd.models.student_calls import Calls
from dmd.provenance import files, record
from dmd.sampling.noise import seeded_draws
from dmd.sampling.sampler import Sampler

if TYPE_CHECKING:
    import onnx

TOLERANCE = 1e-4  # largest difference of a pixel in [-1, 1]
BATCHES = (range(0, 5), range(5, 6))  # seeds of the compared images: a batch of 5 and a batch of 1
KEY = "dmd"  # of the metadata, as in safetensors files
MAX_BYTES = 2**31 - 2**20  # of weights in one ONNX file, with room for the graph


def run(
    *,
    generator: Path,
    output: Path,
    weights: str = "ema",
    calls: int | None = None,
    guidance: float = 1.0,
    threads: int = 1,
) -> None:
    """Writes generator.onnx: noise float32 (B, C, H, W) and label int64 (B,) in, image float32 (B, C, H, W) out.

    A student that adds noise between its calls also has inputs noise1, noise2, ... All noise has unit variance; the
    label is -1 if there are no classes. The noise levels are constants of the graph, and so is the guidance of a
    student that takes it as an input; they also stand, with shape, classes and provenance, as JSON under the key `dmd`
    of the file's metadata.

    Args:
        generator: distill/generator.safetensors.
        output: export/generator.onnx.
        weights: "ema", "raw" or "best".
        calls: number of network calls, for a student that supports several; None: the number at the end of training.
        guidance: of a student that takes it as an input.
        threads: of torch and onnxruntime in the comparison.

    Raises:
        ValueError: not a student's file, guidance that it does not take, weights beyond 2 GiB, or images that differ
            from torch's by more than 1e-4.
    """
    torch_setup.set_threads(threads)
    with record.writing(output):
        inputs = record.check_inputs(generator=generator)
        network, facts = _student(generator, weights, calls, guidance)
        reporting.log(f"tracing {sum(value.numel() for value in network.state_dict().values()):,} weights")
        graph = _trace(network, facts)
        difference = _compare(graph, network, facts, threads)
        reporting.log(f"onnxruntime and torch differ by at most {difference:.2g}")
        if not difference <= TOLERANCE:
            raise ValueError(f"{output}: onnxruntime and torch differ by {difference:.2g}, more than {TOLERANCE:g}")
        spec = {"weights": weights, "threads": threads} | ({} if calls is None else {"calls": calls})
        spec |= {} if guidance == 1 else {"guidance": guidance}
        provenance = record.provenance("export_onnx", spec, inputs)
        entry = graph.metadata_props.add()
        entry.key, entry.value = KEY, files.canonical_json({**provenance, **facts, "max_difference": difference})
        with record.publish(output, stage="export_onnx", inputs=inputs) as temporary:
            temporary.write_bytes(graph.SerializeToString(deterministic=True))


class _Student(nn.Module):
    """Images by a student's calls at fixed noise levels."""

    def __init__(self, denoiser: nn.Module, calls: Calls) -> None:
        super().__init__()
        self.denoiser, self.calls = denoiser, calls

    def forward(self, noise: Tensor, label: Tensor, *fresh: Tensor) -> Tensor:
        return self.calls.draw(self.denoiser, noise, label, fresh.__getitem__)


def _student(path: Path, weights: str, calls: int | None, guidance: float) -> tuple[_Student, dict[str, Any]]:
    """The student, and the facts of its file."""
    facts = loading.denoiser_file(path).facts
    if (kind := facts["kind"]) != "generator":
        raise ValueError(f"{path} is of kind {kind!r}: only a student can be exported")
    if "text" in facts:
        raise ValueError(f"{path} draws from text states, which the graph has no input for: use stage export_pipeline")
    sampler = Sampler(path, solver={"name": "student"}, weights=weights, calls=calls, guidance=guidance)
    denoiser, metadata = sampler.denoiser, sampler.metadata
    size = sum(value.nbytes for value in denoiser.state_dict().values())
    if size > MAX_BYTES:
        raise ValueError(f"{path}: {size:,} bytes of weights do not fit into one ONNX file of {MAX_BYTES:,} bytes")
    facts = {key: metadata[key] for key in ("shape", "num_classes", "sigma", "calls")}
    facts |= {"guidance": guidance} if loading.guidance_range(metadata) else {}
    return _Student(denoiser, Calls.of(metadata["calls"])).eval(), facts


def _inputs(seeds: range, network: _Student, facts: dict[str, Any]) -> dict[str, Tensor]:
    """Inputs of the graph by name, for some seeds."""
    sizes: dict[str, Any] = {"num_classes": facts["num_classes"], "num_fresh": network.calls.num_fresh}
    noise, label, fresh = seeded_draws(seeds, tuple(facts["shape"]), **sizes)
    return {"noise": noise, "label": label} | {f"noise{number + 1}": further for number, further in enumerate(fresh)}


def _trace(network: _Student, facts: dict[str, Any]) -> onnx.ModelProto:
    """The graph, without the paths of source files that the exporter adds."""
    inputs, batch = _inputs(range(2), network, facts), {0: torch.export.Dim("batch")}
    fresh = [(batch,) * network.calls.num_fresh] if network.calls.num_fresh else []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own packages
        program = torch.onnx.export(
            network,
            tuple(inputs.values()),
            dynamo=True,
            input_names=list(inputs),
            output_names=["image"],
            dynamic_shapes=(batch, batch, *fresh),
            verbose=False,
        )
    assert program is not None
    graph: onnx.ModelProto = program.model_proto
    for part in (graph, graph.graph, *graph.graph.node, *graph.graph.value_info, *graph.graph.initializer):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    return graph


def _compare(graph: onnx.ModelProto, network: _Student, facts: dict[str, Any], threads: int) -> float:
    """Largest difference of a pixel between onnxruntime and torch; infinite if a pixel is not finite."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    largest = 0.0
    for seeds in BATCHES:
        inputs = _inputs(seeds, network, facts)
        with torch.no_grad():
            expected = network(*inputs.values())
        (image,) = session.run(["image"], {name: value.numpy() for name, value in inputs.items()})
        difference = (torch.from_numpy(image) - expected).abs().max().item()
        if not difference < float("inf"):
            return float("inf")
        largest = max(largest, difference)
    return largest


if __name__ == "__main__":
    job.main(run)
