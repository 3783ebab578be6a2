"""Stage export_lora: the adapter of a student as a file for diffusers' `load_lora_weights`."""

from pathlib import Path

from dmd.jobs import job, reporting
from dmd.models.lora import scale
from dmd.provenance import record, tensor_files

PREFIXES = {"ema": "lora.", "best": "lora_best."}


def run(*, generator: Path, output: Path, weights: str = "ema") -> None:
    """Writes an adapter, scaled by alpha / rank, so that adapter weight 1 gives the trained student.

    With it the teacher's pipeline draws as the student does: use as many steps as the student makes calls, guidance 0,
    and the scheduler of export/pipeline.

    Args:
        generator: distill/generator.safetensors, trained with `distill.adapter`, of a teacher from diffusers.
        output: export/pytorch_lora_weights.safetensors.
        weights: "ema", the averaged adapter, or "best", see `dmd.train.monitor`.

    Raises:
        ValueError: a damaged input, a student without adapter, or without these weights.
    """
    if weights not in PREFIXES:
        raise ValueError(f"weights {weights!r} is none of {', '.join(PREFIXES)}")
    prefix = PREFIXES[weights]
    with record.writing(output):
        inputs = record.check_inputs(generator=generator)
        tensors, facts = tensor_files.load(generator)
        adapter = tensor_files.part(prefix, tensors)
        if not adapter or not all(name.startswith("unet.") for name in adapter):
            raise ValueError(f"{generator} holds no {weights} adapter of a network from diffusers: set distill.adapter")
        factor = scale(facts["adapter"])
        adapter = {name: value * factor if ".lora_B." in name else value for name, value in sorted(adapter.items())}
        num = sum(value.numel() for value in adapter.values())
        reporting.log(f"adapter of rank {facts['adapter']['rank']}, {num:,} parameters")
        with record.publish(output, stage="export_lora", inputs=inputs) as temporary:
            tensor_files.write_for_others(temporary, adapter)


if __name__ == "__main__":
    job.main(run)
