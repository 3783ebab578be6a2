"""Stage teacher: a denoiser that is trained, exact for a Gaussian mixture, imported, or a student of an experiment."""

from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter

from dmd.config.training import TeacherTraining
from dmd.data import manifest as manifests
from dmd.data.image_shards import ImageReader
from dmd.data.shared_verification import verify_once
from dmd.importers import teachers
from dmd.jobs import job, processes, reporting, torch_setup
from dmd.methods.base import Facts
from dmd.methods.parts.call_times import Times, calls_at
from dmd.models import loading
from dmd.provenance import record, tensor_files
from dmd.sampling import schedulers
from dmd.train import new_network
from dmd.train.data import ImageStream
from dmd.train.loop import log_table


def run(
    *,
    output: Path,
    table: Path,
    kind: str,
    source: Path | None = None,
    sha256: str | None = None,
    resolution: int | None = None,
    variant: str | None = None,
    latent: bool = False,
    dataset: dict[str, Any] | None = None,
    images: Path | None = None,
    student: Path | None = None,
    weights: str = "ema",
    network: dict[str, Any] | None = None,
    training: TeacherTraining | None = None,
    cadence: dict[str, Any] | None = None,
    solvers: dict[str, dict[str, Any]] | None = None,
    calls: dict[str, dict[str, Any]] | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes the teacher.

    Args:
        output: teacher/denoiser.safetensors; checkpoints/ beside it is temporary.
        table: teacher/log.parquet, one row per `log_every` updates; without rows unless the teacher is trained here.
        kind: "train" (needs `images`), "gaussian-mixture" (needs `dataset`), "experiment" (needs `student`), or one
            of `teachers.KINDS` (needs `source`).
        source: a file of stage teacher_file, a released EDM file, a folder of diffusers or Stable Diffusion, or
            OpenAI's teacher of consistency models. No code in it is run.
        sha256: digest of `source`, or its first digits; None accepts any.
        resolution: side of the images for kind openai, whose file does not state it; None: 64.
        variant: of the weights in a folder, such as fp16; None: the plain ones, or else the only variant.
        latent: whether the pipeline of kind diffusers works on latents; ValueError if this is wrong.
        dataset: section `dataset` of the experiment. Kind gaussian-mixture only.
        images: images/manifest.parquet. Kind train only.
        student: distill/generator.safetensors of another experiment. Kind experiment only.
        weights: of `student`: "ema", "raw" or "best".
        network: architecture without the values from the dataset (channels, resolution, classes). Kind train only.
        training: section `teacher.training`. Kind train only.
        cadence: keys of `training` that do not change the weights.
        solvers: those that will draw with an imported teacher, by their key in the configuration; all their steps are
            tried before it is written.
        calls: number of `calls` and section `times` of students of an imported teacher, by their key in the
            configuration; the scheduler that the section names is tried, too.

    Raises:
        ValueError: an unusable dataset, source or student, arguments that do not fit the kind, a scheduler that cannot
            make the steps of a solver, or a loss that is not finite.
        Stopped: a signal was received; a checkpoint was written after the update during which it came.
    """
    torch_setup.set_threads(threads)
    if kind == "train" and images is not None and network is not None and training is not None:
        _train(output, table, images, network, training.with_cadence(cadence), device, threads)
        return
    spec: dict[str, Any] = {"kind": kind, "dataset": dataset}
    inputs: record.Inputs = {}
    with record.writing(output):
        if kind in teachers.KINDS and source is not None:
            spec = {"kind": kind, "sha256": sha256} | ({} if resolution is None else {"resolution": resolution})
            spec |= {"latent": True} if latent else {}
            spec |= {"variant": variant} if variant else {}
            tensors, facts, inputs = teachers.load(kind, source, sha256=sha256, resolution=resolution, variant=variant)
            if kind == "diffusers" and latent != ("image_shape" in facts):
                actual = "works on latents" if "image_shape" in facts else "has no vae"
                raise ValueError(f"teacher.latent is {str(latent).lower()}, but the pipeline in {source} {actual}")
            _try(source, facts, solvers or {}, calls or {})
        elif kind == "gaussian-mixture" and dataset is not None:
            tensors, facts = _mixture(dataset)
        elif kind == "experiment" and student is not None:
            spec = {"kind": kind, "weights": weights}
            inputs = record.check_inputs(student=student)
            tensors, facts = loading.load_student(student, weights)
        else:
            raise ValueError(
                f"teacher kind {kind!r} is unknown or lacks arguments: 'train' needs images, network and training, "
                f"'gaussian-mixture' a dataset, 'experiment' a student, "
                f"{', '.join(map(repr, teachers.KINDS))} a source"
            )
        metadata = {**record.provenance("teacher", spec, inputs), "kind": kind, **facts}
        with record.publish(table, stage="teacher", inputs=inputs) as temporary:
            manifests.write(temporary, log_table([]), metadata)
        with record.publish(output, stage="teacher", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, metadata)


def _try(source: Path, facts: dict[str, Any], solvers: dict[str, Any], calls: dict[str, Any]) -> None:
    """ValueError if a scheduler cannot do with a teacher what the configuration asks of it."""
    levels = Facts(
        tuple(facts["shape"]),
        facts["num_classes"],
        facts["sigma_data"],
        sigma_max=facts.get("sigma_max"),
        preconditioning=facts.get("preconditioning"),
        scheduler=facts.get("scheduler"),
    )
    for key, asked in [*solvers.items(), *calls.items()]:
        try:
            if key in solvers:
                schedulers.check(facts, asked)
            else:
                calls_at(TypeAdapter(Times).validate_python(asked["times"]), asked["calls"], levels)
        except ValueError as error:
            raise ValueError(f"{source}: {key}: {error}") from error


def _mixture(dataset: dict[str, Any]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    if dataset["kind"] != "gaussian-mixture":
        raise ValueError(f"teacher kind 'gaussian-mixture' needs a dataset of that kind, got {dataset['kind']!r}")
    means = torch.tensor(dataset["means"], dtype=torch.float64)[:, :, None, None]
    tensors = {
        "means": means,
        "stds": torch.tensor(dataset["stds"], dtype=torch.float64),
        "weights": torch.tensor(dataset["weights"], dtype=torch.float64),
    }
    tensors["weights"] /= tensors["weights"].sum()
    centre = (tensors["weights"][:, None] * means.flatten(1)).sum(0)
    spread = (means.flatten(1) - centre).square().mean(1) + tensors["stds"].square()
    sigma_data = float((tensors["weights"] * spread).sum().sqrt())
    return tensors, {"shape": [*means.shape[1:]], "num_classes": 0, "sigma_data": sigma_data}


def _train(
    output: Path,
    table: Path,
    images: Path,
    network: dict[str, Any],
    training: TeacherTraining,
    device: str,
    threads: int,
) -> None:
    target = torch_setup.choose_device(device)
    with processes.lock(output), processes.group(training.processes, target):
        inputs = record.check_inputs(images=images)
        data = ImageReader(images, "training", verify=verify_once("images"))
        facts = _facts(data, network, training)
        spec = {"kind": "train", "network": network, "training": training.weight_spec()}
        provenance = record.provenance("teacher", spec | {"device": device, "threads": threads}, inputs)
        loop = new_network.loop(
            training,
            lambda: loading.new_denoiser(facts["network"], sigma_data=facts["sigma_data"]),
            Facts(tuple(facts["shape"]), facts["num_classes"], facts["sigma_data"]),
            {"images": ImageStream(data)},
            device=target,
            stage="teacher",
            section="teacher.training",
            provenance=provenance,
            folder=output.parent,
        )
        reporting.log(f"{len(data)} images {facts['shape']}, sigma_data {facts['sigma_data']}")
        metadata = {**provenance, "kind": "train", **facts}
        new_network.train(loop, table, lambda weights: {output: (weights, {})}, metadata, inputs)


def _facts(data: ImageReader, network: dict[str, Any], training: TeacherTraining) -> dict[str, Any]:
    channels, _, resolution = data.shape
    architecture = {**network, "channels": channels, "resolution": resolution, "num_classes": data.num_classes}
    facts = {"network": architecture, "shape": [*data.shape], "num_classes": data.num_classes}
    dropout = {"label_dropout": training.method.label_dropout} if training.method.label_dropout else {}
    return {**facts, "sigma_data": data.sigma_data, "dataset_sha256": data.sha256, **dropout}


if __name__ == "__main__":
    job.main(run)
