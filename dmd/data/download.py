"""Downloads one file over HTTP: continues an earlier download, and notices when the file on the server changed."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from dmd.data import retries, web_request
from dmd.provenance import files


class DownloadError(ValueError):
    """The download failed; the bytes received so far are kept for the next try."""


@dataclass
class Download:
    """A download to `partial`; the note beside it, `partial` + ".json", names the version of the bytes.

    Attributes:
        url, partial: source and destination.
        size: bytes of the file; None if unknown.
        log: called with a message for each retry.
        advance: called after each piece with the bytes so far and in all (None if unknown).
        ended: whether the server announced the length or the end of the file; if not, a broken connection looks like
            the end.
    """

    url: str
    partial: Path
    size: int | None
    log: Callable[[str], None]
    advance: Callable[[int, int | None], None]
    ended: bool = field(default=True, init=False)

    def run(self) -> str:
        """Downloads what is missing; returns the sha256 of the file.

        Raises:
            DownloadError: the server cannot be reached, refuses, keeps dropping the connection, is too slow, or offers
                a file of another size.
            OSError: the disk is full.
        """
        furthest, failures = -1, 0
        while True:
            try:
                return self._attempt()
            except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
                reached = self.partial.stat().st_size if self.partial.exists() else 0
                failures = 1 if reached > furthest else failures + 1
                furthest = max(furthest, reached)
                if failures == retries.TRIES:
                    raise DownloadError(f"{web_request.reason(error)} ({retries.TRIES} times in a row)") from error
                wait = retries.PAUSE * 2 ** (failures - 1)
                self.log(f"{web_request.reason(error)}, after {reached} bytes; trying again in {wait:g} s")
                time.sleep(wait)
            except requests.RequestException as error:
                raise DownloadError(web_request.reason(error)) from error

    def discard(self) -> None:
        """Removes the bytes received so far, and their note."""
        for path in (self.partial, self._note):
            path.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self.partial.with_name(f"{self.partial.name}.json")

    def _attempt(self) -> str:
        start, version = self._resume_point()
        if start and start == version["size"]:
            return files.sha256(self.partial)
        headers = {"Range": f"bytes={start}-", "If-Range": version["validator"]} if start else {}
        with web_request.answered("GET", self.url, headers) as answer:
            if answer.status_code in retries.BUSY:
                raise requests.ConnectionError(f"the server answers {answer.status_code} {answer.reason!s:.100}")
            if answer.status_code not in ((200, 206, 416) if start else (200,)):
                raise DownloadError(f"the server answers {answer.status_code} {answer.reason!s:.100}")
            if start and not _continues(answer, start, version):
                self.log(f"the server does not continue the same file from byte {start}: starting again")
                self.discard()
                if answer.status_code != 200:
                    return self._attempt()
                start = 0
            return self._receive(answer, start)

    def _resume_point(self) -> tuple[int, dict[str, Any]]:
        """Number of bytes from an earlier try, and their version; 0 and {} if the note is missing or does not match."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            version = json.loads(self._note.read_text())
            same = version["url"] == _digest(self.url) and self.size in (None, version["size"])
            if same and version["validator"]:
                return self.partial.stat().st_size, version
        self.discard()
        return 0, {}

    def _receive(self, answer: requests.Response, start: int) -> str:
        """Writes the bytes of an answer from `start` on; returns the sha256 of the file."""
        length = web_request.content_length(answer)
        total = self.size if length is None else start + length
        if self.size not in (None, total):
            raise DownloadError(f"the server offers {total} bytes, the file has {self.size}")
        if answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            raise DownloadError("the server sends a web page in place of the file")
        self.ended = total is not None or answer.headers.get("Transfer-Encoding") == "chunked"
        if total is not None and shutil.disk_usage(self.partial.parent).free < total - start:
            raise OSError(errno.ENOSPC, f"{total - start} bytes are to come", str(self.partial))
        if not start:
            version = {"url": _digest(self.url), "validator": _validator(answer), "size": total}
            self._note.write_text(files.canonical_json(version))
        digest = hashlib.sha256()
        with open(self.partial, "r+b" if start else "wb") as stream:
            while stream.tell() < start:
                digest.update(stream.read(min(files.CHUNK_SIZE, start - stream.tell())))
            for piece in web_request.pieces(answer):
                stream.write(piece)
                digest.update(piece)
                self._refuse_beyond(total, stream.tell())
                self.advance(stream.tell(), total)
            stream.flush()
            os.fsync(stream.fileno())
            if total is not None and stream.tell() != total:
                raise requests.ConnectionError(f"the connection ended at byte {stream.tell()} of {total}")
        return digest.hexdigest()

    def _refuse_beyond(self, total: int | None, reached: int) -> None:
        if total is not None and reached > total:
            self.discard()
            raise DownloadError(f"the server sends more than the {total} bytes that the file has")
        if total is None and reached > retries.MOST:
            self.discard()
            raise DownloadError(f"the server sends no length and more than {retries.MOST} bytes: name the size")


def _continues(answer: requests.Response, start: int, version: dict[str, Any]) -> bool:
    """Whether an answer holds the bytes from `start` on, of the same version as the earlier ones."""
    content_range = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", answer.headers.get("Content-Range", ""))
    if answer.status_code != 206 or content_range is None or int(content_range[1]) != start:
        return False
    size = version["size"] if content_range[3] == "*" else int(content_range[3])
    whole = size in (None, int(content_range[2]) + 1) and version["size"] in (None, size)
    return whole and _validator(answer) in (None, version["validator"])


def _validator(answer: requests.Response) -> str | None:
    """The version of a file on its server: a strong ETag, else the time of its last change."""
    tag = answer.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else answer.headers.get("Last-Modified")


def _digest(url: str) -> str:
    """Stands for an address, which may hold a password, in the note of a download."""
    return hashlib.sha256(url.encode()).hexdigest()
