"""Stage pairs: a block of shards of (noise, label, image), each image solved by the teacher from its noise."""

from pathlib import Path
from typing import Any

from dmd.diffusion.compute import Compute
from dmd.stages import stage
from dmd.stages.drawing import draw_block


def run(
    *,
    teacher: Path,
    output: Path,
    solver: dict[str, Any],
    first_seed: int,
    batch_size: int,
    labels: str,
    shard_size: int,
    first: int,
    last: int,
    device: str = "cpu",
    threads: int = 1,
    compute: Compute | None = None,
) -> None:
    """Writes pairs/{shard}.tar for shards first .. last and the block file that lists them.

    Args:
        teacher: teacher/denoiser.safetensors.
        output: pairs/blocks/{first}-{last}.parquet; the tars go into the folder above it.
        solver: name (heun, euler), steps, sigma_min, sigma_max, rho.
        first_seed: pair i draws its noise, then its label, from seed first_seed + i.
        batch_size: images solved at once; noise and labels do not depend on it, images to 1e-4.
        labels: "random" or "balanced".
        shard_size: pairs in a shard.
        first, last: numbers of the shards, both included.
        compute: precision, layout and compilation of network passes; None is plain float32.
    """
    numbers: dict[str, Any] = {"solver": solver, "first_seed": first_seed, "batch_size": batch_size}
    numbers |= {"labels": labels, "shard_size": shard_size, "first": first, "last": last}
    numbers |= {"device": device, "threads": threads}
    numbers |= {"compute": compute} if compute else {}
    draw_block(output, stage_name="pairs", denoiser=teacher, weights="ema", spec=numbers, keep_noise=True)


if __name__ == "__main__":
    stage.main(run)
