"""Writes a trained teacher as a small file that is kept in git, for teachers of kind `file`. No rule makes it.

python -m dmd.stages.teacher_file --teacher results/fashion-trained/teacher/denoiser.safetensors \
    --output workflow/resources/fashion.safetensors --spec '{"hours": 1.3}'
"""

from pathlib import Path

import torch

from dmd.importers import teacher_file
from dmd.jobs import job, reporting
from dmd.provenance import record, tensor_files


def run(*, teacher: Path, output: Path, hours: float) -> None:
    """Writes the averaged weights as float16, with the facts and the recipe of the training in the metadata.

    Args:
        teacher: teacher/denoiser.safetensors of a teacher of kind train.
        output: the file.
        hours: that the training took, for the reader.

    Raises:
        ValueError: another kind of teacher, or weights beyond the range of float16.
    """
    digest = record.check_inputs(teacher=teacher)["teacher"]
    tensors, metadata = tensor_files.load(teacher)
    if metadata.get("kind") != "train":
        raise ValueError(
            f"{teacher} is of kind {metadata.get('kind')!r}: only a teacher that is trained here is written"
        )
    halves = {name: value.to(torch.float16) for name, value in tensors.items() if name.startswith("ema.")}
    if beyond := [name for name, value in halves.items() if not value.isfinite().all()]:
        raise ValueError(f"{teacher}: weights beyond float16: {', '.join(beyond[:3])}")
    facts = {name: metadata[name] for name in (*teacher_file.NEEDED, *teacher_file.OTHERS) if name in metadata}
    recipe = {"spec": metadata["spec"], "hours": hours, "trained_sha256": digest}
    tensor_files.save(output, halves, {"kind": teacher_file.KIND, **facts, **recipe})
    reporting.log(f"{sum(value.numel() for value in halves.values())} weights, {output.stat().st_size} bytes")


if __name__ == "__main__":
    job.main(run)
