"""Distribution Matching Distillation as a staged, reproducible data pipeline.

`load` returns a callable that draws images with a student or a teacher; `dmd.status` shows the progress of experiments;
`dmd.verify` finds damaged files. docs/development.md says where to look for what.
The packages; each imports only packages that are listed below it:

    stages      one module per pipeline step, called by its rule: reads artifacts and writes new ones
    train       trains any method: updates, optimisers, processes, checkpoints
    importers   converts released files into teachers, adapters and feature networks
    report      scores, tables, charts, grids of images, model cards
    methods     training methods and their losses, one file per method
    sampling    images from noise: noise levels, solvers, samplers
    metrics     how good samples are
    data        rows of images, pairs and prompts: shards, manifests, storage
    jobs        how a job runs, on this machine or a cluster: command line, log, signals, processes, GPUs, SLURM
    models      denoisers: networks, preconditioning, guidance, adapters, their files
    provenance  what an artifact was made from: digests, records
    config      the configuration: sections, checks, experiments, the table of rules

Importing this package imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from pathlib import Path

    from dmd.sampling.sampler import Sampler
    from dmd.sampling.text_sampler import TextSampler

__all__ = ["load"]


@overload
def load(
    path: str | Path,
    *,
    text_encoder: None = ...,
    autoencoder: None = ...,
    weights: str = ...,
    device: str = ...,
    batch_size: int | None = ...,
    solver: str | None = ...,
    steps: int | None = ...,
    guidance: float | None = ...,
    calls: int | None = ...,
) -> Sampler: ...
@overload
def load(
    path: str | Path,
    *,
    text_encoder: str | Path,
    autoencoder: str | Path | None = ...,
    weights: str = ...,
    device: str = ...,
    batch_size: int | None = ...,
    solver: str | None = ...,
    steps: int | None = ...,
    guidance: float | None = ...,
    calls: int | None = ...,
) -> TextSampler: ...
def load(
    path: str | Path,
    *,
    text_encoder: str | Path | None = None,
    autoencoder: str | Path | None = None,
    weights: str = "ema",
    device: str = "auto",
    batch_size: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    calls: int | None = None,
) -> Sampler | TextSampler:
    """A callable that draws images: `dmd.load(path)(num=16, label=3, seed=0)` is float32 (16, C, H, W), about -1 to 1.

    Text to image: `dmd.load(path, text_encoder=..., autoencoder=...)("a cat", num=4, seed=0)`.

    Args:
        path: distill/generator.safetensors, or teacher/denoiser.safetensors.
        text_encoder: teacher/text_encoder.safetensors, where the condition is text.
        autoencoder: teacher/autoencoder.safetensors, which decodes latents; without it, latents are returned.
        weights: "ema" (averaged), "raw" (of the last update), or "best" (the average that the training's monitor
            rated best).
        device: "auto" (the first GPU, else the CPU) or a torch device: "cpu", "cuda", "cuda:1". On a GPU, torch's
            global precision settings apply; stages set `torch.backends.cudnn.allow_tf32 = False`.
        batch_size: images per network call; a shorter batch is padded to this size, so that the bits of an image do not
            depend on the number of images. None: the number of images, at most 64.
        solver: for a teacher, "heun" (default), "euler", "dpmsolver++2m" or "unipc-2m"; for a teacher whose file has a
            scheduler of diffusers, the name of a scheduler ("pndm" by default).
        steps: number of steps of that solver; default 18 (35 calls with Heun, else 18), 50 with a scheduler.
        guidance: classifier-free guidance scale, for a teacher of text or one trained with label dropout, 1 = off; or
            the input of a student that takes the guidance as one. None: 1, or the middle of such a student's range.
        calls: number of network calls, for a student that supports several; default: the number that its training
            ended with.

    Returns:
        A `dmd.sampling.sampler.Sampler`, with `shape`, `num_classes`, `sigma`, `solver`, `device`, `metadata`; with a
        text encoder a `dmd.sampling.text_sampler.TextSampler`.

    Raises:
        ValueError: a file is damaged or lacks the weights, files do not belong together, or a solver, steps or guidance
            are given for a student.
    """
    numbers: dict[str, Any] = {"weights": weights, "device": device, "batch_size": batch_size, "solver": solver}
    numbers |= {"steps": steps, "guidance": guidance, "calls": calls}
    if text_encoder is None:
        if autoencoder is not None:
            raise ValueError("autoencoder: it is used only together with text_encoder: give both or neither")
        from dmd.sampling.sampler import load

        return load(path, **numbers)
    from dmd.sampling.text_sampler import load as load_text

    return load_text(path, text_encoder=text_encoder, autoencoder=autoencoder, **numbers)
