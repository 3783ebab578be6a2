"""Distribution Matching Distillation as a staged, reproducible data pipeline.

`load` gives a callable that draws images of a student's or a teacher's file; `dmd.status` says how far experiments are,
`dmd.verify` finds damaged files. docs/development.md says where to look for what.
The packages, each of which imports only those below it:

    stages      one module per pipeline step, called by its rule: reads artifacts, writes one artifact
    train       trains any method: updates, optimisers, processes, checkpoints
    importers   makes teachers, adapters and feature networks of files that others trained
    report      scores, tables, charts, grids of images, model cards
    methods     what a student or a teacher learns from, one file a method
    sampling    images from noise: noise levels, solvers, samplers
    metrics     how good samples are
    data        rows of images, pairs and prompts: shards, manifests, storage
    jobs        how a job runs, on this machine or a cluster: command line, log, signals, processes, GPUs, SLURM
    models      denoisers: networks, preconditioning, guidance, adapters, their files
    provenance  what an artifact was made from: digests, records
    config      what a configuration says

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
    guidance: float = ...,
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
    guidance: float = ...,
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
    guidance: float = 1.0,
    calls: int | None = None,
) -> Sampler | TextSampler:
    """A callable that draws images: `dmd.load(path)(num=16, label=3, seed=0)` is float32 (16, C, H, W), about -1 to 1.

    Of text: `dmd.load(path, text_encoder=..., autoencoder=...)("a cat", num=4, seed=0)`.

    Args:
        path: distill/generator.safetensors, or teacher/denoiser.safetensors.
        text_encoder: teacher/text_encoder.safetensors, where the condition is text.
        autoencoder: teacher/autoencoder.safetensors, which decodes latents; without it they are what is drawn.
        weights: "ema" (averaged) or "raw".
        device: "auto" (the first GPU where there is one), or what torch calls a device: "cpu", "cuda", "cuda:1". On a
            GPU torch's own switches of precision hold; stages set `torch.backends.cudnn.allow_tf32 = False`.
        batch_size: images per network call; a short batch is padded to it, so that the bits of an image do not depend
            on how many are drawn. None: as many as are asked for, 64 at most, unpadded up to there.
        solver: of a teacher, "heun" (where None) or "euler"; of one of text, the name of a scheduler ("pndm" where
            None).
        steps: of a teacher's solver, 18 where None: 35 calls with Heun, 18 with Euler; 50 of a scheduler.
        guidance: of a teacher of text, or one that was trained with label dropout; 1 is none.
        calls: of a student of several numbers of network calls, one of them; that which its training ended with where
            None.

    Returns:
        A `dmd.sampling.sampler.Sampler`, with `shape`, `num_classes`, `sigma`, `solver`, `device`, `metadata`; with a
        text encoder a `dmd.sampling.text_sampler.TextSampler`.

    Raises:
        ValueError: a file is damaged or holds no such weights, files do not belong together, or a solver or guidance
            is named for a student.
    """
    numbers: dict[str, Any] = {"weights": weights, "device": device, "batch_size": batch_size, "solver": solver}
    numbers |= {"steps": steps, "guidance": guidance, "calls": calls}
    if text_encoder is None:
        if autoencoder is not None:
            raise ValueError("autoencoder: it decodes what a denoiser draws of text: give text_encoder, too")
        from dmd.sampling.sampler import load

        return load(path, **numbers)
    from dmd.sampling.text_sampler import load as load_text

    return load_text(path, text_encoder=text_encoder, autoencoder=autoencoder, **numbers)
