"""Distribution Matching Distillation as a staged, reproducible data pipeline.

`load` gives a callable that draws images of a generator or teacher file.
`stages` holds one module per pipeline step: each reads artifacts, calls maths and writes one artifact.
`methods` says what a generator learns from (the distribution matching gradient and the regression loss),
`diffusion` holds noise levels, denoisers and solvers, `networks` the architectures, `metrics` the distances
between sets of features, `artifacts` every file format, `loading` makes denoisers of their files, `sampler` images of
seeds. `config` and `checks` know what a configuration says, `experiments` who owns which artifact, `layout` where it
lies.
Arrows point one way: stages -> methods -> diffusion, networks; stages -> metrics; stages -> sampler -> loading ->
artifacts, diffusion, networks. Importing this package imports none of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from dmd.sampler import Sampler

__all__ = ["load"]


def load(
    path: str | Path,
    *,
    weights: str = "ema",
    device: str = "auto",
    batch_size: int | None = None,
    solver: str | None = None,
    steps: int | None = None,
) -> Sampler:
    """A callable that draws images: `dmd.load(path)(num=16, label=3, seed=0)` is float32 (16, C, H, W), about -1 to 1.

    Args:
        path: distill/generator.safetensors, or teacher/denoiser.safetensors.
        weights: "ema" (averaged) or "raw".
        device: "auto" (the first GPU where there is one), or what torch calls a device: "cpu", "cuda", "cuda:1". On a
            GPU torch's own switches of precision hold; stages set `torch.backends.cudnn.allow_tf32 = False`.
        batch_size: images per network call; a short batch is padded to it, so that the bits of an image do not depend
            on how many are drawn. None: as many as are asked for, 64 at most, unpadded up to there.
        solver: of a teacher, "heun" (where None) or "euler".
        steps: of a teacher's solver, 18 where None: 35 calls with Heun, 18 with Euler.

    Returns:
        A `dmd.sampler.Sampler`, with `shape`, `num_classes`, `sigma`, `solver`, `device`, `metadata`.

    Raises:
        ValueError: the file is damaged or holds no such weights, or a solver is named for a one-step generator.
    """
    from dmd.sampler import load

    return load(path, weights=weights, device=device, batch_size=batch_size, solver=solver, steps=steps)
