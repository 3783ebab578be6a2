"""Stage lora: the adapter of a one-step generator as the file that diffusers' `load_lora_weights` takes."""

from pathlib import Path

import safetensors.torch

from dmd.cluster import job, reporting
from dmd.models.lora import scale
from dmd.provenance import record
from dmd.provenance import tensors as tensor_files

PREFIX = "lora."


def run(*, generator: Path, output: Path) -> None:
    """Writes the averaged adapter; alpha / rank is within, so that a weight of 1 is what was trained.

    On the teacher's pipeline it gives the generator: one step, guidance 0, a scheduler that begins at time 999 (see the
    scheduler of export/pipeline).

    Args:
        generator: distill/generator.safetensors, trained with `distill.adapter`, of a teacher of diffusers.
        output: export/pytorch_lora_weights.safetensors.

    Raises:
        ValueError: a damaged input, or a generator without adapter.
    """
    with record.exclusive(output):
        inputs = record.check_inputs(generator=generator)
        tensors, facts = tensor_files.load(generator)
        found = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        if not found or not all(name.startswith("unet.") for name in found):
            raise ValueError(f"{generator} holds no adapter of a network of diffusers: set distill.adapter")
        factor = scale(facts["adapter"])
        found = {name: value * factor if ".lora_B." in name else value for name, value in sorted(found.items())}
        reporting.log(
            f"adapter of rank {facts['adapter']['rank']}, {sum(value.numel() for value in found.values()):,} numbers"
        )
        with record.publish(output, stage="lora", inputs=inputs) as temporary:
            safetensors.torch.save_file(found, temporary, metadata={"format": "pt"})


if __name__ == "__main__":
    job.main(run)
