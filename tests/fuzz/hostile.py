"""Files that no reader may trust, the same for every one: what downloads, disks and attackers leave in a place."""

import gzip
import io
import os
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq


class Hostile(NamedTuple):
    """Attributes:
    name: for messages.
    put: puts the file at a path where nothing is.
    said: words of which the message of a reader of outside files has one; none says nothing.
    """

    name: str
    put: Callable[[Path], object]
    said: tuple[str, ...] = ()


def hostile(whole: bytes) -> Iterator[Hostile]:
    """Hostile files for a reader; some are made of a whole file of its own."""
    for name, content, *said in CONTENTS:
        yield Hostile(name, lambda path, content=content: path.write_bytes(content), tuple(said))
    for name, put, said in PLACES:
        yield Hostile(name, put, said)
    for size in sorted({1, 3, 7, 9, 100, len(whole) // 2, *(len(whole) - cut for cut in (1, 4, 8, 22, 512))}):
        if 0 < size < len(whole):
            yield Hostile(f"cut at {size}", lambda path, size=size: path.write_bytes(whole[:size]))
    yield Hostile("bytes after its end", lambda path: path.write_bytes(whole + whole))
    yield Hostile("bytes before its start", lambda path: path.write_bytes(b"\0" + whole))
    yield Hostile("gzip of it", lambda path: path.write_bytes(gzip.compress(whole, mtime=0)))
    yield Hostile("huge length at its start", lambda path: path.write_bytes(b"\xff" * 7 + b"\x7f" + whole[8:]))
    yield Hostile("length of the file", lambda path: path.write_bytes(len(whole).to_bytes(8, "little") + whole[8:]))
    for encoding in ("utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1"):
        text = whole.decode("latin-1").encode(encoding)
        yield Hostile(f"as {encoding}", lambda path, text=text: path.write_bytes(text))


def remove(path: Path) -> None:
    """Removes whatever lies at a path."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _zip(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


def _zeros(size: int) -> bytes:
    """`size` zeros in the format of zlib, made without holding them."""
    packer, piece = zlib.compressobj(9), bytes(1 << 20)
    return b"".join(packer.compress(piece) for _ in range(size >> 20)) + packer.flush()


def _tar(size: int) -> bytes:
    header = tarfile.TarInfo("00000000.image.npy")
    header.size = size
    return header.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def _parquet(rows: int, text: str) -> bytes:
    """A column of each name that a reader here asks for, of `rows` equal texts."""
    column = pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int32()), rows), pa.array([text]))
    stream = io.BytesIO()
    pq.write_table(pa.table({"text": column, "prompt": column}), stream, compression="zstd", store_schema=False)
    return stream.getvalue()


def _npy(shape: str) -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


BOMB = bytes(64 << 20)
HASH = b"\x80\x02})" + b"q\x00h\x00\x86" * 100 + b"K\x01s."  # a key whose hash takes 2^100 steps
CONTENTS: list[tuple[str, bytes, *tuple[str, ...]]] = [
    ("empty", b"", "empty"),
    ("LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 9\n", "git lfs"),
    ("HTML page", b"\n<!DOCTYPE html>\n<html><title>404</title></html>", "HTML"),
    ("HTML page with a mark", b"\xef\xbb\xbf<HTML>", "HTML"),
    ("XML answer", b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "XML"),
    ("JSON answer", b'{"message": "Not Found"}'),
    ("text", b"Invalid username or password.\n"),
    ("zeros", bytes(4096)),
    ("ones", b"\xff" * 4096),
    ("lists in lists", b"[" * 1_000_000),
    ("objects in objects", b'{"a":' * 300_000),
    ("long number", b"9" * 1_000_000),
    ("infinity", b'{"annotations": [NaN, Infinity, 1e999]}'),
    ("stray quote", b'file,label\n"' + b"a,b\n" * 100_000),
    ("long cell", b"file,label\n" + b"a" * 1_000_000),
    ("pickle whose key takes for ever", HASH),
    ("zip without a directory", _zip({"a/data.pkl": HASH})[:40], "ends early", "end record"),
    ("zip of that pickle", _zip({"a/data.pkl": HASH})),
    ("zip bomb", _zip({"a/data.pkl": b"\x80\x02}.", "a/data/0": BOMB, "mu.npy": BOMB, "sigma.npy": BOMB})),
    ("two zips", _zip({"a/data.pkl": BOMB}) + _zip({"a/data.pkl": b"\x80\x02}."})),
    ("zip of huge arrays", _zip({"mu.npy": _npy("(1099511627776,)"), "sigma.npy": _npy("(1, 1)")})),
    ("gzip bomb", b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + _zeros(256 << 20)[2:]),
    ("tar of a huge member", _tar(1 << 40)),
    ("tar of no size", _tar(0)),
    ("parquet without a footer", b"PAR1" + bytes(100), "ends early", "footer"),
    ("parquet with a huge footer", b"PAR1" + bytes(100) + b"\xff\xff\xff\x7fPAR1"),
    ("parquet of no rows", _parquet(0, "")),
    ("parquet of many rows", _parquet(20_000_000, "a" * 1000)),
    ("parquet of long texts", _parquet(100_000, "a" * 1_000_000)),
    ("safetensors with a huge header", (1 << 62).to_bytes(8, "little") + b"{}"),
    ("safetensors with a cut header", (100).to_bytes(8, "little") + b'{"a": '),
    ("safetensors in lists in lists", (1_000_000).to_bytes(8, "little") + b'{"a":' + b"[" * 999_995),
]
PLACES: list[tuple[str, Callable[[Path], object], tuple[str, ...]]] = [
    ("nothing", lambda path: None, ("missing", "No such file", "not a file")),
    ("folder", lambda path: path.mkdir(), ("folder", "directory")),
    ("FIFO", os.mkfifo, ("named pipe",)),
    ("device", lambda path: path.symlink_to("/dev/zero"), ("device",)),
    ("link to nothing", lambda path: path.symlink_to("nowhere"), ("missing", "No such file", "not a file")),
    ("link to itself", lambda path: path.symlink_to(path.name), ("missing", "symbolic links", "not a file")),
]
