"""Prompts from published files (a column of a table, captions of COCO, metadata of LAION) or of a dataset's captions.

Tables are read a batch of rows at a time. LAION's prompts are deduplicated and shuffled on disk: sorting them by a
digest that is keyed by the seed brings equal prompts together, in an order independent of files and rows. Prompts are
first written to bucket files by the first byte of their digest; then one bucket at a time is sorted.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dmd.data.captions import Captions
from dmd.data.prompts import MOST_CHARACTERS
from dmd.provenance import outside_files

BATCH_SIZE = 16_384  # rows of a source in memory at a time
MOST_BYTES = 1 << 30  # of the texts of a small file
BUCKETS = 256  # one for each first byte of a digest
IN_MEMORY = 1 << 19  # prompts in memory before they go to their buckets
BUCKET = pa.schema([("digest", pa.binary(16)), ("prompt", pa.large_string())])


def column(path: Path, name: str) -> Iterator[pa.Array]:
    """Yields the prompts of a parquet table, in order and unchanged; null is a blank one.

    Blank rows at the end, which spreadsheets add, are left out. Others are kept, since rows are counted; they are
    refused when they are drawn.

    Raises:
        ValueError: the file is no parquet table or lacks the column, or a prompt is too long.
    """
    row = 0
    waiting: list[pa.Array] = []  # blank rows, which are the last ones unless another follows
    for batch in _batches(path, {name: "text"}):
        lengths = _lengths(batch.column(0))
        for bad in np.flatnonzero(lengths > MOST_CHARACTERS)[:1].tolist():
            what = f"has {lengths[bad]} characters, more than {MOST_CHARACTERS}"
            raise ValueError(f"{path}: the prompt of row {row + bad} (column {name!r}, counted from 0) {what}")
        texts = pc.fill_null(batch.column(0).dictionary_decode().cast(pa.large_string()), "")
        row += len(texts)
        written = np.flatnonzero(np.from_dlpack(pc.utf8_length(pc.utf8_trim_whitespace(texts))))
        end = int(written[-1]) + 1 if len(written) else 0
        if end:
            yield from waiting
            waiting = []
            yield texts[:end]
        if end < len(texts):
            waiting.append(texts[end:])


def coco(path: Path, *, num: int | None, seed: int) -> list[str]:
    """The first caption of each of `num` images drawn from a file of COCO annotations; all images if `num` is None.

    Raises:
        ValueError: the file is not of that layout or has fewer images, or the first caption of an image that is drawn
            is too long, or all of its captions are blank.
    """
    what = "COCO captions (`annotations` of image_id, id, caption)"
    with outside_files.reading(path, what):
        annotations = outside_files.read_json(path, what)["annotations"]
        first: dict[int, tuple[bool, int, str]] = {}  # of each image: blank captions come last
        for image, number, text in map(_caption, annotations):
            caption = not text, number, text
            first[image] = min(caption, first.get(image, caption))
    if len(first) < (num or 1):
        raise ValueError(f"{path} has captions of {len(first)} images, fewer than num {num or 1}")
    chosen = sorted(first, key=lambda image: _digest(str(image), seed))[:num]
    for _, number, text in (first[image] for image in chosen):
        if not 0 < len(text) <= MOST_CHARACTERS:
            raise ValueError(f"{path}: caption {number} has {len(text)} characters, not 1 to {MOST_CHARACTERS}")
    return [first[image][2] for image in chosen]


def laion(paths: list[Path], section: dict[str, Any], folder: Path, counts: Counter[str]) -> Iterator[pa.Array]:
    """Yields the distinct prompts of rows of sufficient score, in an order that depends on the seed alone.

    Args:
        paths: parquet tables.
        section: `text_column`, `score_column`, `threshold` (of the score, inclusive), `num` (of prompts, None is all),
            `seed`.
        folder: an existing empty folder, for temporary files.
        counts: is updated with rows, below_threshold, empty, too_long, duplicates, distinct.

    Raises:
        ValueError: a file is no parquet table or lacks a column, or fewer than `num` prompts are left.
    """
    _write_buckets(paths, section, folder, counts)
    left = section["num"]
    for bucket in range(BUCKETS):
        texts = _read_bucket(folder / f"{bucket:03d}", counts)
        yield texts if left is None else texts[: max(left, 0)]
        left = None if left is None else left - len(texts)
    if left is not None and left > 0:
        raise ValueError(f"prompts.num: {section['num']} were asked for, {counts['distinct']} are left: {dict(counts)}")


def captions(path: Path, of_images: Iterable[Captions], section: dict[str, Any], counts: Counter[str]) -> list[str]:
    """The distinct captions of images: one of each image in a seeded order, then a second one of each, and so on.

    So the first captions are of as many images as possible. A caption of several images comes once.

    Args:
        path: of the images, for messages.
        section: `split` of the captions, `num` (None is all), `seed`.
        counts: is updated with captions, duplicates and distinct.

    Raises:
        ValueError: there are none, or fewer than `num`.
    """
    round_of: dict[str, int] = {}
    num = 0
    for each in of_images:
        texts = sorted(getattr(each, section["split"]), key=lambda text: _digest(text, section["seed"]))
        num += len(texts)
        for number, text in enumerate(texts):
            round_of[text] = min(number, round_of.get(text, number))
    distinct = sorted(round_of, key=lambda text: (round_of[text], _digest(text, section["seed"])))
    counts.update(captions=num, distinct=len(distinct), duplicates=num - len(distinct))
    if len(distinct) < (section["num"] or 1):
        few = f"{len(distinct)} captions of split {section['split']}, fewer than num {section['num'] or 1}"
        raise ValueError(f"the training images of {path} have {few}")
    return distinct[: section["num"]]


def _caption(annotation: Any) -> tuple[int, int, str]:
    image, number, text = (annotation[key] for key in ("image_id", "id", "caption"))
    if not isinstance(image, int) or not isinstance(number, int) or not isinstance(text, str):
        raise ValueError(f"image_id {image!r:.50} or id {number!r:.50} is no integer, or caption {text!r:.50} no text")
    text.encode()  # raises for a lone surrogate, which no table can hold
    return image, number, text.strip()


def _write_buckets(paths: list[Path], section: dict[str, Any], folder: Path, counts: Counter[str]) -> None:
    """Writes the prompts that are used, with their digests, into files by first byte."""
    writers = [pa.ipc.new_file(folder / f"{bucket:03d}", BUCKET) for bucket in range(BUCKETS)]
    prompts: list[str] = []
    for path in paths:
        for batch in _batches(path, {section["text_column"]: "text", section["score_column"]: "score"}):
            prompts += _usable(batch, section["threshold"], counts)
            if len(prompts) >= IN_MEMORY:
                _flush(prompts, section["seed"], writers)
                prompts = []
    _flush(prompts, section["seed"], writers)
    for writer in writers:
        writer.close()


def _usable(batch: pa.RecordBatch, threshold: float, counts: Counter[str]) -> list[str]:
    """Prompts of a batch (text, score) whose score is high enough, without those that are empty or too long."""
    rated = pc.fill_null(pc.greater_equal(batch.column(1).cast(pa.float64()), threshold), False)
    texts = batch.column(0).filter(rated)
    trimmed = pc.utf8_trim_whitespace(texts.dictionary)
    lengths = _lengths(pa.DictionaryArray.from_arrays(texts.indices, trimmed))
    short = pa.array((lengths > 0) & (lengths <= MOST_CHARACTERS))
    used = pa.DictionaryArray.from_arrays(texts.indices.filter(short), trimmed).dictionary_decode()
    empty = int((lengths == 0).sum())
    counts.update(rows=len(batch), below_threshold=len(batch) - len(texts), empty=empty)
    counts.update(too_long=len(texts) - empty - len(used))
    return used.to_pylist()


def _flush(prompts: list[str], seed: int, writers: list[pa.ipc.RecordBatchFileWriter]) -> None:
    digests = [_digest(prompt, seed) for prompt in prompts]
    bucket = np.array([digest[0] for digest in digests], np.uint8)
    batch = pa.record_batch([pa.array(digests, pa.binary(16)), pa.array(prompts, pa.large_string())], schema=BUCKET)
    for number, writer in enumerate(writers):
        if len(chosen := np.flatnonzero(bucket == number)):
            writer.write_batch(batch.take(pa.array(chosen)))


def _read_bucket(path: Path, counts: Counter[str]) -> pa.Array:
    """The distinct prompts of a bucket, sorted by digest; the bucket is removed."""
    with pa.ipc.open_file(path) as stream:
        table = stream.read_all()
    path.unlink()
    table = table.sort_by("digest").combine_chunks()
    digests = table["digest"].to_pylist()
    distinct = [row for row, digest in enumerate(digests) if row == 0 or digest != digests[row - 1]]
    counts.update(distinct=len(distinct), duplicates=len(digests) - len(distinct))
    return table["prompt"].take(pa.array(distinct, pa.int64())).combine_chunks()


def _digest(text: str, seed: int) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16, key=str(seed).encode()).digest()


def _batches(path: Path, columns: dict[str, str]) -> Iterator[pa.RecordBatch]:
    """Yields batches of the columns, in that order; `columns` says for each whether it holds "text" or a "score".

    Texts come as a dictionary, so that a small file that repeats a long text takes no memory. A file may have at most
    1000 bytes of text for each of its own, or `MOST_BYTES`.
    """
    texts = [name for name, kind in columns.items() if kind == "text"]
    with outside_files.reading(path, "a parquet table"):
        left = max(MOST_BYTES, 1000 * path.stat().st_size)
        schema = pq.read_schema(path)
        for name, kind in columns.items():
            _check_column(path, schema, name, kind)
        with pq.ParquetFile(path, read_dictionary=texts) as table:
            for batch in table.iter_batches(BATCH_SIZE, columns=list(columns)):
                batch.validate(full=True)  # bytes that are not UTF-8 would fail later, without the name of the file
                left -= sum(int(_lengths(batch.column(name)).sum()) + 8 * len(batch) for name in texts)
                if left < 0:
                    raise ValueError("its texts are a thousand times as large as the file")
                yield batch.select(list(columns))


def _lengths(texts: pa.DictionaryArray) -> np.ndarray:
    """Characters of each text (rows,), 0 for null."""
    return np.from_dlpack(pc.fill_null(pc.utf8_length(texts.dictionary).take(texts.indices), 0)).astype(np.int64)


def _check_column(path: Path, schema: pa.Schema, name: str, kind: str) -> None:
    if name not in schema.names:
        known = ", ".join(schema.names)[:200]
        raise ValueError(f"{path} has no column {name!r} of {kind}s; its columns are {known}")
    column_type = schema.field(name).type
    found = column_type.value_type if pa.types.is_dictionary(column_type) else column_type
    is_text = pa.types.is_string(found) or pa.types.is_large_string(found)
    is_number = pa.types.is_floating(column_type) or pa.types.is_integer(column_type)
    if not (is_text if kind == "text" else is_number):
        raise ValueError(f"{path}: column {name!r} holds {found}, not {kind}s")
