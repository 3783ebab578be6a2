"""Stage pairs: a block of shards of (noise, label, image), where a solver turns noise into image with the teacher.

If the teacher's condition is text, a pair also has `text`, the states of its prompt; its label is the prompt's row.
"""

from pathlib import Path
from typing import Any

from dmd.config.sections import Pairs
from dmd.data import stored_blocks
from dmd.data.storage import Settings
from dmd.jobs import job
from dmd.models.compute import Compute
from dmd.sampling.blocks import PLAIN, draw_block


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
    prompts: Path | None = None,
    text_encoder: Path | None = None,
    guidance: float = 1.0,
    kept_states: int = 0,
    dtype: str = "float32",
    device: str = "cpu",
    threads: int = 1,
    compute: Compute | None = None,
    storage: Settings | None = None,
) -> None:
    """Writes pairs/{shard}.tar for shards first .. last and the block file that lists them.

    Args:
        teacher: teacher/denoiser.safetensors.
        output: pairs/blocks/{first}-{last}.parquet; the shards go into the folder above it.
        solver: name (heun, euler), steps, sigma_min, sigma_max, rho; or the name of a scheduler, steps, spacing.
        first_seed: pair i draws its noise, then its label, from seed first_seed + i.
        batch_size: images drawn at once; it does not change noise and labels, and images by at most about 1e-4.
        labels: "random" or "balanced".
        shard_size: pairs in a shard.
        first, last: numbers of the shards, both included.
        prompts: prompts/prompts.parquet, if the condition is text; pair i has prompt i modulo their number.
        text_encoder: teacher/text_encoder.safetensors, with `prompts`.
        guidance: guidance scale of the teacher; 1: none.
        kept_states: number of states to save of each trajectory, for solvers heun and euler: after evenly spaced
            steps, the last one being the image.
        dtype: "float32" or "float16", for the images on disk; noise is float32, text states are float16.
        compute: precision, layout and compilation of network passes; None: plain float32.
        storage: object storage that shards are copied to; a shard that it already has is not drawn again.
    """
    spec: dict[str, Any] = {"solver": solver, "first_seed": first_seed, "batch_size": batch_size}
    spec |= {"labels": labels, "shard_size": shard_size, "first": first, "last": last}
    spec |= {"device": device, "threads": threads, "guidance": guidance, "dtype": dtype}
    spec |= {"compute": PLAIN | (compute or {})}
    spec |= {"kept_states": kept_states} if kept_states else {}
    if dtype not in ("float32", "float16"):
        raise ValueError(f"dtype {dtype!r} is not one of 'float32', 'float16'")
    draw_block(
        output,
        stage_name="pairs",
        denoiser=teacher,
        weights="ema",
        spec=spec,
        keep_noise=True,
        prompts=prompts,
        text_encoder=text_encoder,
        storage=stored_blocks.connect(storage),
    )


if __name__ == "__main__":
    job.main(run, Pairs)
