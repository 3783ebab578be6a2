"""Files under a prefix: object storage (s3://, gs://, through pyarrow), or a folder of a web server (read-only).

Names are relative to the prefix and use slashes.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from dmd.data import retries
from dmd.provenance import files

Value = TypeVar("Value")
PIECE = 8 << 20  # bytes of one request for a part of an object
PIECES = 4  # requests at once
FEW = 16  # up to so many files are looked up one by one


class StorageError(ValueError):
    """The storage cannot be reached, refuses, or has no such file; the message names the URL."""


class DiskError(OSError):
    """The local disk refuses downloaded bytes."""


class Remote(Protocol):
    """The files under a prefix."""

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Bytes of each file, None where there is none."""

    def read(self, name: str, num: int | None = None) -> bytes | None:
        """A file of at most `retries.SMALL` bytes, or the first `num` bytes of any; None where there is none."""

    def download(self, name: str, partial: Path, size: int) -> str:
        """Downloads a file to `partial`, resuming an earlier download, and returns the sha256 of the file."""


def connect(prefix: str, *, endpoint: str | None, log: Callable[[str], None]) -> Remote:
    """The files under `prefix`; `endpoint` is the address of an S3 or GCS server, None = the provider's."""
    if prefix.startswith("http"):
        from dmd.data.web_folder import WebFolder

        return WebFolder(prefix, log)
    return ObjectStorage(prefix, endpoint, log)


def sizes(prefix: str, endpoint: str | None, names: Iterable[str]) -> dict[str, int | None]:
    """Bytes of each file under `prefix`, None where there is none; nothing is logged."""
    return connect(prefix, endpoint=endpoint, log=lambda line: None).sizes(names)


class ObjectStorage:
    """Objects whose keys begin with a prefix. Credentials are those that AWS's and Google's clients find by default."""

    def __init__(self, prefix: str, endpoint: str | None, log: Callable[[str], None]) -> None:
        self.prefix, self._log = prefix.rstrip("/"), log
        parts = urlsplit(self.prefix)
        self._root = f"{parts.netloc}{parts.path}"
        self._system = self._retry(parts.netloc, lambda: _file_system(parts.scheme, parts.netloc, endpoint))

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """Looks few files up one by one; for many, lists their folders, a thousand objects per request."""
        from pyarrow.fs import FileSelector, FileType

        wanted = list(names)
        by_name: dict[str, int | None] = dict.fromkeys(wanted)
        keys = [f"{self._root}/{name}" for name in wanted]
        folders = sorted({os.path.dirname(key) for key in keys}) if len(wanted) > FEW else []

        def ask() -> list[Any]:
            listed = [self._system.get_file_info(FileSelector(each, allow_not_found=True)) for each in folders]
            return [info for infos in listed for info in infos] if folders else self._system.get_file_info(keys)

        for info in self._retry("", ask):
            name = info.path.removeprefix(f"{self._root}/")
            if info.type == FileType.File and name in by_name:
                by_name[name] = info.size
        return by_name

    def read(self, name: str, num: int | None = None) -> bytes | None:
        def content() -> bytes | None:
            try:
                with self._system.open_input_file(f"{self._root}/{name}") as stream:
                    if num is None and stream.size() > retries.SMALL:
                        raise StorageError(f"{self.prefix}/{name} has {stream.size()} bytes")
                    return stream.read_at(stream.size() if num is None else min(num, stream.size()), 0)
            except FileNotFoundError:
                return None

        return self._retry(name, content)

    def download(self, name: str, partial: Path, size: int) -> str:
        digest = hashlib.sha256()
        with open(partial, "a+b") as output:
            output.seek(0)
            while chunk := output.read(files.CHUNK_SIZE):
                digest.update(chunk)

            def take(piece: bytes) -> None:
                _write(output, piece)
                digest.update(piece)

            self._receive(name, output.tell(), size, take)
            os.fsync(output.fileno())
        return digest.hexdigest()

    def digest(self, name: str, size: int) -> str:
        """sha256 of an object, whose bytes are read back."""
        digest = hashlib.sha256()
        self._receive(name, 0, size, digest.update)
        return digest.hexdigest()

    def upload(self, path: Path, name: str) -> None:
        """Uploads a file."""

        def attempt() -> None:
            with open(path, "rb") as source, self._system.open_output_stream(f"{self._root}/{name}") as target:
                while chunk := source.read(PIECE):
                    target.write(chunk)

        self._retry(name, attempt)

    def remove(self, name: str) -> None:
        """Removes an object, if it is there."""

        def attempt() -> None:
            try:
                self._system.delete_file(f"{self._root}/{name}")
            except FileNotFoundError:
                return

        self._retry(name, attempt)

    def _receive(self, name: str, start: int, size: int, take: Callable[[bytes], None]) -> None:
        """Passes all bytes from `start` on to `take`, in order; reconnects after a lost connection."""
        reached = start

        def attempt() -> None:
            nonlocal reached
            for piece in self._pieces(name, reached, size):
                take(piece)
                reached += len(piece)

        self._retry(name, attempt, reached=lambda: reached)

    def _pieces(self, name: str, start: int, size: int) -> Iterator[bytes]:
        """Yields the bytes from `start` on, in order, while a few requests are under way."""
        with self._system.open_input_file(f"{self._root}/{name}") as stream, ThreadPoolExecutor(PIECES) as pool:
            if stream.size() != size:
                raise StorageError(f"{self.prefix}/{name} has {stream.size()} bytes, {size} were recorded")
            ahead: deque[Future[bytes]] = deque()
            for offset in range(start, size, PIECE):
                ahead.append(pool.submit(stream.read_at, min(PIECE, size - offset), offset))
                if len(ahead) == PIECES:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()

    def _retry(self, name: str, action: Callable[[], Value], reached: Callable[[], int] = lambda: 0) -> Value:
        """The result of an action, which is retried with growing pauses until it fails `retries.TRIES` times in a row.

        A failure starts a new row if `reached` shows that the action got further than before.
        """
        furthest, failures = -1, 0
        while True:
            try:
                return action()
            except OSError as error:
                url = f"{self.prefix}/{name}"
                if isinstance(error, FileNotFoundError):
                    raise StorageError(f"{url} is not there") from error
                if isinstance(error, DiskError):
                    raise
                failures = 1 if reached() > furthest else failures + 1
                furthest = max(furthest, reached())
                if failures == retries.TRIES:
                    raise StorageError(f"{url}: {error} ({failures} times in a row)") from error
                wait = retries.PAUSE * 2 ** (failures - 1)
                self._log(f"{url}: {error}; trying again in {wait:g} s")
                time.sleep(wait)


def _file_system(scheme: str, bucket: str, endpoint: str | None) -> Any:
    from pyarrow import fs

    own = urlsplit(endpoint) if endpoint else None
    address = {"endpoint_override": own.netloc, "scheme": own.scheme} if own else {}
    if scheme == "gs":
        return fs.GcsFileSystem(retry_time_limit=timedelta(seconds=retries.ANSWER), **address)
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    region = region or ("us-east-1" if own else fs.resolve_s3_region(bucket))
    return fs.S3FileSystem(region=region, connect_timeout=retries.TIMEOUT[0], request_timeout=60, **address)


def _write(output: Any, piece: bytes) -> None:
    try:
        output.write(piece)
        output.flush()
    except OSError as error:
        raise DiskError(error.errno, error.strerror, output.name) from error
