"""A read-only folder of a web server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

import requests

from dmd.data import retries, web_request
from dmd.data.download import Download, DownloadError
from dmd.data.remote import StorageError

Value = TypeVar("Value")
REQUESTS = 16  # at once, each about another file


class WebFolder:
    """Files of a web server under one address."""

    def __init__(self, prefix: str, log: Callable[[str], None]) -> None:
        self.prefix, self._log = prefix.rstrip("/"), log

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        wanted = list(names)
        with ThreadPoolExecutor(REQUESTS) as pool:
            return dict(zip(wanted, pool.map(self._size, wanted), strict=True))

    def read(self, name: str, num: int | None = None) -> bytes | None:
        return self._answer("GET", name, lambda answer: _content(answer, num))

    def download(self, name: str, partial: Path, size: int) -> str:
        try:
            return Download(self._url(name), partial, size, self._log, lambda reached, total: None).run()
        except DownloadError as error:
            raise StorageError(f"{self._url(name)}: {error}") from error

    def _url(self, name: str) -> str:
        return f"{self.prefix}/{quote(name)}"

    def _size(self, name: str) -> int | None:
        return self._answer("HEAD", name, _length)

    def _answer(self, verb: str, name: str, take: Callable[[requests.Response], Value]) -> Value | None:
        """The result of `take` on the answer, whose body it may read; None where the server has no such file."""
        url = self._url(name)
        for attempt in range(retries.TRIES):
            try:
                with web_request.answered(verb, url, {}) as answer:
                    if answer.status_code == 404:
                        return None
                    if answer.status_code in (200, 206):
                        return take(answer)
                    reason = f"the server answers {answer.status_code} {answer.reason!s:.100}"
                    if answer.status_code not in retries.BUSY:
                        raise StorageError(f"{url}: {reason}")
            except web_request.RefusedAnswer as error:
                raise StorageError(f"{url}: {error}") from error
            except requests.RequestException as error:
                reason = web_request.reason(error)
            if attempt + 1 < retries.TRIES:
                time.sleep(retries.PAUSE * 2**attempt)
        raise StorageError(f"{url}: {reason} ({retries.TRIES} times in a row)")


def _length(answer: requests.Response) -> int:
    """The length of a body; -1, which no file has, if the server names none."""
    length = web_request.content_length(answer)
    return -1 if length is None else length


def _content(answer: requests.Response, num: int | None) -> bytes:
    """The body of an answer, or its first `num` bytes, which may arrive in several pieces."""
    content = bytearray()
    for piece in web_request.pieces(answer):
        content += piece
        if num is None and len(content) > retries.SMALL:
            raise web_request.RefusedAnswer(f"the server sends more than {retries.SMALL} bytes")
        if num is not None and len(content) >= num:
            break
    return bytes(content[:num])
