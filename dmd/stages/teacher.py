"""Stage teacher: a denoiser trained on a dataset, the exact one of a Gaussian mixture, or one from a file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from dmd import loading
from dmd.artifacts import dataset as datasets
from dmd.artifacts import record
from dmd.artifacts import tensors as tensor_files
from dmd.config.training import TeacherTraining
from dmd.methods.denoising import DenoiserTraining
from dmd.methods.schedule import update_generator
from dmd.stages import imports, stage
from dmd.stages.section_numbers import teacher_numbers_of


def run(
    *,
    output: Path,
    kind: str,
    source: Path | None = None,
    sha256: str | None = None,
    resolution: int | None = None,
    latent: bool = False,
    dataset: dict[str, Any] | None = None,
    network: dict[str, Any] | None = None,
    training: TeacherTraining | None = None,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes the teacher.

    Args:
        output: teacher/denoiser.safetensors.
        kind: "train", "gaussian-mixture" (both need `dataset`), or one of `imports.KINDS` (needs `source`).
        source: a released EDM file, a folder of diffusers, or OpenAI's teacher of consistency models. It is read
            without running anything in it.
        sha256: what the digest of `source` is, or begins with; None takes any.
        resolution: side of the images, which a file of kind openai does not say; None is 64.
        latent: a pipeline of kind diffusers works on latents of its vae. One of pixels is refused then, and vice versa.
        dataset: section `dataset` of the experiment.
        network: architecture without what the dataset says (channels, resolution, classes). Kind train only.
        training: the section of the experiment; its seed is of initial weights and of every update. Kind train only.

    Raises:
        ValueError: a dataset or source that cannot be used, numbers that do not fit, or a loss that is not finite.
    """
    stage.set_threads(threads)
    spec: dict[str, Any] = {"kind": kind, "dataset": dataset, "device": device, "threads": threads}
    inputs: record.Inputs = {}
    with record.exclusive(output):
        if kind in imports.KINDS and source is not None:
            spec = {"kind": kind, "sha256": sha256} | ({} if resolution is None else {"resolution": resolution})
            spec |= {"latent": True} if latent else {}
            tensors, facts, inputs = imports.load(kind, source, sha256=sha256, resolution=resolution)
            if kind == "diffusers" and latent != ("image_shape" in facts):
                have = "works on latents" if "image_shape" in facts else "has no vae"
                raise ValueError(f"teacher.latent is {str(latent).lower()}, but the pipeline in {source} {have}")
        elif kind == "gaussian-mixture" and dataset is not None:
            tensors, facts = _mixture(dataset)
        elif kind == "train" and dataset is not None and network is not None and training is not None:
            spec |= {"network": network, "training": training.learnt_from()}
            tensors, facts = _train(dataset, network, teacher_numbers_of(training), stage.choose_device(device))
        else:
            raise ValueError(
                f"teacher kind {kind!r}: 'train' needs dataset, network and training, 'gaussian-mixture' a dataset, "
                f"{', '.join(map(repr, imports.KINDS))} a source; there is no other kind"
            )
        metadata = {**record.provenance("teacher", spec, inputs), "kind": kind, **facts}
        with record.publish(output, stage="teacher", inputs=inputs) as temporary:
            tensor_files.write(temporary, tensors, metadata)


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
    dataset: dict[str, Any],
    network: dict[str, Any],
    training: dict[str, Any],
    device: torch.device,
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    data = datasets.load(dataset, "training")
    shape = [*data.batch(torch.tensor([0])).shape[1:]]
    sigma_data = round(_standard_deviation(data), 6)
    architecture = {**network, "channels": shape[0], "resolution": shape[-1], "num_classes": data.num_classes}
    torch.manual_seed(training["seed"])
    denoiser = loading.new_denoiser(architecture, sigma_data=sigma_data).to(device)
    trainer = DenoiserTraining(denoiser, training)
    count = sum(parameter.numel() for parameter in denoiser.parameters())
    stage.log(f"{len(data)} images {shape}, sigma_data {sigma_data}, {count} parameters")
    label = data.labels if data.num_classes else torch.full_like(data.labels, -1)
    losses: list[torch.Tensor] = []
    status = stage.Progress(total=training["updates"], unit="updates")
    for num in range(training["updates"]):
        generator = update_generator("teacher", training["seed"], num)
        chosen = torch.randint(len(data), (training["batch_size"],), generator=generator)
        losses.append(trainer.update(num, data.batch(chosen).to(device), label[chosen].to(device), generator).cpu())
        if not losses[-1].isfinite().all():
            advice = "lower teacher.training.optimisers.student.learning_rate"
            raise ValueError(f"loss or gradient is not finite at update {num}: {advice}")
        if (num + 1) % 500 == 0:
            stage.log(f"update {num + 1}: mean loss of the last 500 {torch.stack(losses[-500:])[:, 0].mean():.4f}")
        status.add(images=training["batch_size"])
    tensors = {f"raw.{name}": value for name, value in denoiser.network.state_dict().items()}
    tensors |= {f"ema.{name}": value for name, value in trainer.average.module.state_dict().items()}
    facts = {
        "network": architecture,
        "shape": shape,
        "num_classes": data.num_classes,
        "sigma_data": sigma_data,
    }
    return tensors, {**facts, "dataset_sha256": data.sha256}


def _standard_deviation(data: datasets.Dataset) -> float:
    count, total, squares = 0, 0.0, 0.0
    for chunk in torch.arange(len(data)).split(4096):
        values = data.batch(chunk).double()
        count, total, squares = (
            count + values.numel(),
            total + values.sum().item(),
            squares + values.square().sum().item(),
        )
    return float(np.sqrt(squares / count - (total / count) ** 2))


if __name__ == "__main__":
    stage.main(run)
