"""A folder of a web server, to read only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import requests

from dmd.artifacts import download
from dmd.artifacts.download import Download, DownloadError
from dmd.artifacts.remote import StorageError

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
        answer = self._answer("GET", name)
        if answer is None:
            return None
        with answer:
            return answer.content if num is None else next(answer.iter_content(num), b"")

    def download(self, name: str, partial: Path, size: int) -> str:
        try:
            return Download(self._url(name), partial, size, self._log, lambda reached, total: None).run()
        except DownloadError as error:
            raise StorageError(f"{self._url(name)}: {error}") from error

    def _url(self, name: str) -> str:
        return f"{self.prefix}/{quote(name)}"

    def _size(self, name: str) -> int | None:
        answer = self._answer("HEAD", name)
        return None if answer is None else int(answer.headers.get("Content-Length", -1))

    def _answer(self, verb: str, name: str) -> requests.Response | None:
        """What the server answers, its body still to come; None where it has no such file."""
        url, headers = self._url(name), {"Accept-Encoding": "identity"}
        for attempt in range(download.TRIES):
            try:
                answer = requests.request(verb, url, headers=headers, timeout=download.TIMEOUT, stream=True)
                if answer.status_code == 404:
                    return None
                if answer.status_code in (200, 206):
                    return answer
                reason = f"the server answers {answer.status_code} {answer.reason}"
                if answer.status_code not in download.BUSY:
                    raise StorageError(f"{url}: {reason}")
            except requests.RequestException as error:
                reason = str(error)
            if attempt + 1 < download.TRIES:
                time.sleep(download.PAUSE * 2**attempt)
        raise StorageError(f"{url}: {reason} ({download.TRIES} times in a row)")
