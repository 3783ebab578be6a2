"""Stage sample: a block of shards of images that a teacher or student draws, with any solver.

Latents are not decoded. If the condition is text, the label of a sample is the row of its caption.
"""

from pathlib import Path
from typing import Any

from dmd.config.sections import Sample
from dmd.jobs import job
from dmd.models.compute import Compute
from dmd.sampling.blocks import PLAIN, draw_block


def run(
    *,
    denoiser: Path,
    output: Path,
    solver: dict[str, Any],
    weights: str,
    first_seed: int,
    batch_size: int,
    labels: str,
    shard_size: int,
    num_samples: int,
    first: int,
    last: int,
    prompts: Path | None = None,
    text_encoder: Path | None = None,
    lora_file: Path | None = None,
    guidance: float = 1.0,
    calls: int | None = None,
    lora: dict[str, Any] | None = None,
    device: str = "cpu",
    threads: int = 1,
    compute: Compute | None = None,
) -> None:
    """Writes samples/{shard}.tar for shards first .. last and the block file that lists them.

    Args:
        denoiser: teacher/denoiser.safetensors or distill/generator.safetensors.
        output: samples/blocks/{first}-{last}.parquet; the shards go into the folder above it.
        solver: name student, or as in stage pairs.
        weights: "ema", "raw" or "best".
        first_seed: sample i draws its noise, then its label, from seed first_seed + i.
        batch_size, labels, shard_size, first, last: as in stage pairs.
        compute, text_encoder, guidance: as in stage pairs.
        prompts: captions/captions.parquet, if the condition is text; sample i has caption i modulo their number.
        lora_file: a LoRA that is added to the teacher's weights, see `dmd.models.published_lora`.
        calls: number of network calls, for a student that supports several; None: the number at the end of training.
        lora: {"sha256": digest of `lora_file`, its first digits, or None; "scale": factor on the LoRA}.
        num_samples: samples in one repetition of the evaluation; repetition r begins with sample r * num_samples.
    """
    spec: dict[str, Any] = {"solver": solver, "weights": weights, "first_seed": first_seed}
    spec |= {
        "batch_size": batch_size,
        "labels": labels,
        "shard_size": shard_size,
        "num_samples": num_samples,
    }
    spec |= {"first": first, "last": last, "device": device, "threads": threads, "guidance": guidance}
    spec |= {"compute": PLAIN | (compute or {}), "lora": lora}
    spec |= {"calls": calls} if calls is not None else {}
    if num_samples % shard_size:
        raise ValueError(f"num_samples {num_samples} must be a multiple of shard_size {shard_size}")
    draw_block(
        output,
        stage_name="sample",
        denoiser=denoiser,
        weights=weights,
        spec=spec,
        keep_noise=False,
        prompts=prompts,
        text_encoder=text_encoder,
        lora=lora_file,
    )


if __name__ == "__main__":
    job.main(run, Sample)
