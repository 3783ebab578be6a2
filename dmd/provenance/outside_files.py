"""Files from outside: what is told at a glance, and one line for whatever a library raises while it reads one."""

import codecs
import contextlib
import json
import stat
import zipfile
from collections.abc import Iterator
from json import decoder, scanner
from pathlib import Path
from typing import Any

from dmd.config.source_files import KINDS

HEAD = 512  # bytes that `check` looks at
MAX_TEXT = 1 << 28  # bytes of text or JSON, which is read at once; the captions of COCO have 1e8
MAX_VALUES = 1 << 23  # of JSON; the captions of COCO have 3e6
AT_ONCE = 1 << 21  # bytes of JSON that are parsed in a second, however many values they hold
SHOWN = 200  # characters of a library's message
LFS = b"version https://git-lfs"
PAGES = (b"<!doctype", b"<html", b"<head", b"<?xml")
MARKS = {  # byte order mark -> encoding; UTF-32 stands first, since its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


@contextlib.contextmanager
def reading(path: Path, what: str = "", *, advice: str = "") -> Iterator[None]:
    """Checks the file, and turns whatever the block raises while it reads it into one line, as `told` does.

    Args:
        path, what, advice: as for `told`.

    Raises:
        ValueError: the file fails `check`, or as `told`.
    """
    with told(path, what, advice=advice):
        check(path)
        yield


@contextlib.contextmanager
def told(path: Path, what: str = "", *, advice: str = "") -> Iterator[None]:
    """Turns whatever the block raises while it reads a file or folder into one line; signals pass.

    Args:
        what: what the file should be, for messages, if that is known: "a parquet table".
        advice: what to do, after the message.

    Raises:
        ValueError: the block raised an exception. A ValueError of the block that begins with the path passes unchanged.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(error).startswith(str(path)):
            raise
        role = f" as {what}" if what else ""
        raise ValueError(f"{path} cannot be read{role}: {reason(error)}{advice}") from error


def check(path: Path) -> None:
    """OSError if the file is missing, ValueError (without its name) if it plainly is not what its name says."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        kind = next((kind for test, kind in KINDS if test(status.st_mode)), "no file")
        raise ValueError(f"it is {kind}")
    if not status.st_size:
        raise ValueError("it is empty")
    with path.open("rb") as stream:
        head = stream.read(HEAD)
        stream.seek(-min(4, status.st_size), 2)
        tail = stream.read(4)
    if head.startswith(LFS):
        raise ValueError(f"it is a Git LFS pointer of {status.st_size} bytes, not the file itself: run git lfs pull")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith(PAGES):
        raise ValueError("it is an HTML or XML page, not the file itself: download it again")
    if (head[:4] == b"PAR1" and tail != b"PAR1") or (head[:4] == b"PK\3\4" and not zipfile.is_zipfile(path)):
        raise ValueError(f"it ends early, after {status.st_size} bytes: download it again")


def reason(error: Exception) -> str:
    """What an exception says, in one line of at most `SHOWN` characters."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it needs more memory than there is"
    if isinstance(error, KeyError):
        return f"{error} is missing"[:SHOWN]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return " ".join(str(error).split())[:SHOWN] or type(error).__name__


def _content(path: Path) -> bytes:
    if (size := path.stat().st_size) > MAX_TEXT:
        raise ValueError(f"it has {size} bytes, more than {MAX_TEXT}")
    return path.read_bytes()


def read_json(path: Path, what: str = "JSON") -> Any:
    """The value in a JSON file in UTF-8, UTF-16 or UTF-32; ValueError as in `reading`."""
    with reading(path, what):
        return parse_json(_content(path).removeprefix(codecs.BOM_UTF8))


def parse_json(content: bytes) -> Any:
    """The value of a text of JSON in UTF-8, UTF-16 or UTF-32; ValueError if it is none, or has too many values."""
    if sum(content.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"it has more than {MAX_VALUES} values")
    return json.loads(content, cls=_InterruptibleDecoder if len(content) > AT_ONCE else None)


class _InterruptibleDecoder(json.JSONDecoder):
    """The decoder of module json that is written in Python, between two of whose steps a signal can stop a stage."""

    def __init__(self) -> None:
        super().__init__(object_pairs_hook=lambda pairs: {key: value for key, value in pairs})  # dict() is one step
        self.parse_object, self.parse_array = decoder.JSONObject, decoder.JSONArray  # type: ignore[attr-defined]
        self.scan_once = scanner.py_make_scanner(self)  # type: ignore[attr-defined]


def read_text(path: Path, what: str = "text", *, otherwise: str | None = None) -> str:
    """The text of a file in UTF-8, or in UTF-16 or UTF-32 with a byte order mark or with zeros in ASCII letters.

    Args:
        otherwise: the encoding of a file in none of these; None refuses it.

    Raises:
        ValueError: as in `reading`; for another encoding, with the number of the line and the byte.
    """
    with reading(path, what):
        content = _content(path)
        encoding = next((name for mark, name in MARKS.items() if content.startswith(mark)), "")
        if not encoding and b"\0" in content[:2]:
            encoding = "utf-16-be" if content[:1] == b"\0" else "utf-16-le"
        try:
            return content.decode(encoding or "utf-8")
        except UnicodeDecodeError as error:
            if otherwise is not None and not encoding:
                return content.decode(otherwise)
            line, byte = content.count(b"\n", 0, error.start) + 1, content[error.start]
            raise ValueError(
                f"line {line} has the byte 0x{byte:02x}, which is not {encoding or 'UTF-8'}: save it as UTF-8"
            ) from error
