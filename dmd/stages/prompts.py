"""Stage prompts: prompts of pairs or samples, from a table, COCO, LAION, or the captions of a dataset."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from dmd.data import prompt_sources, prompts
from dmd.jobs import job, reporting
from dmd.provenance import pinned, record
from dmd.provenance.files import scratch


def run(*, files: list[Path] | None = None, images: Path | None = None, output: Path, source: dict[str, Any]) -> None:
    """Writes a parquet file of one column, `prompt`; `counts` in its metadata: how many rows were read and left out.

    Args:
        files: tables of prompts, or one file of COCO captions; `source` has their `sha256`.
        images: images/manifest.parquet with captions; for kind captions, which has no files.
        output: prompts/prompts.parquet or captions/captions.parquet.
        source: section `prompts`. Kind file (key `column`) takes all rows in order,
            but not blank ones at the end. Kind coco (`num`, `seed`) takes the
            first caption of `num` images. Kind laion (`text_column`, `score_column`, `threshold`, `num`, `seed`) takes
            distinct prompts in a seeded order, of 1 to `prompts.MOST_CHARACTERS` characters. Kind captions (`split`,
            `num`, `seed`) takes the distinct captions of the training images in a seeded order.

    Raises:
        ValueError: a file is missing, has another digest, cannot be read or lacks a column; a prompt is too long
            (kinds file and coco); a caption that was drawn is blank (kind coco); the images have no captions, or fewer
            than `num` (kind captions); or no prompt is left.
    """
    counts: Counter[str] = Counter()
    sorting = output.with_name(f".tmp-{output.name}.sorting")
    with record.writing(output), scratch(sorting) as folder:
        files = files or []
        pins = source.get("files", [] if source["kind"] == "captions" else [source])
        if len(pins) != len(files):
            raise ValueError(f"{len(files)} files are given, but the configuration has {len(pins)}")
        for number, (path, pin) in enumerate(zip(files, pins, strict=True)):
            key = f"prompts.files[{number}].sha256" if "files" in source else "prompts.sha256"
            pinned.check(path, pin["sha256"], key=key, source=f"prompts of kind {source['kind']}")
        inputs = record.check_inputs(files=files, images=images)
        provenance = record.provenance("prompts", {"source": source}, inputs)
        origin = ", ".join(map(str, files)) or f"the captions in {images}"
        with record.publish(output, stage="prompts", inputs=inputs) as temporary:
            texts = _texts(files, images, source, folder, counts)
            num = prompts.write(temporary, texts, lambda: {**provenance, "counts": dict(counts)})
            if num == 0:
                raise ValueError(f"no prompts are left from {origin}: {dict(counts)}")
        reporting.log(f"{num} prompts from {origin}: {dict(counts)}")


def _texts(
    files: list[Path], images: Path | None, source: dict[str, Any], folder: Path, counts: Counter[str]
) -> Iterator[pa.Array]:
    if source["kind"] == "captions":
        if images is None:
            raise ValueError("prompts of kind captions need --images")
        import torch

        from dmd.data.image_shards import ImageReader

        reader = ImageReader(images, "training")
        texts = prompt_sources.captions(images, reader.captions(torch.arange(len(reader))), source, counts)
        yield pa.array(texts, pa.string())
    elif source["kind"] == "laion":
        yield from prompt_sources.laion(files, source, folder, counts)
    elif source["kind"] == "coco":
        yield pa.array(prompt_sources.coco(files[0], num=source["num"], seed=source["seed"]), pa.string())
    elif source["kind"] == "file":
        for texts in prompt_sources.column(files[0], source["column"]):
            counts.update(rows=len(texts))
            yield texts
    else:
        raise ValueError(f"prompts.kind: {source['kind']!r} is not one of 'file', 'coco', 'laion', 'captions'")


if __name__ == "__main__":
    job.main(run)
