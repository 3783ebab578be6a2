"""One HTTP request that is bounded in time and size, whatever the server does."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import urljoin

import requests
from requests.adapters import HTTPAdapter

from dmd.config import printing
from dmd.data import retries

PIECE = 1 << 16  # bytes
_LENGTH = re.compile(r"\d{1,18}")


class RefusedAnswer(requests.RequestException):
    """An answer that no retry would change."""


@contextlib.contextmanager
def answered(verb: str, url: str, headers: Mapping[str, str]) -> Iterator[requests.Response]:
    """The answer to a request, after at most `retries.REDIRECTS` redirects, whose bodies are not read.

    The body of the answer is to be read by `pieces`.

    Raises:
        RefusedAnswer: too many redirects, one to another protocol or from https to http, or a compressed body.
        requests.RequestException: the server cannot be reached, or its headers are not complete within
            `retries.ANSWER` seconds.
    """
    asked = {**headers, "Accept-Encoding": "identity"}
    with _Session() as session:
        for scheme in ("http://", "https://"):
            session.mount(scheme, _TimedAdapter())
        for _ in range(retries.REDIRECTS + 1):
            options: dict[str, Any] = {"stream": True, "timeout": retries.TIMEOUT, "allow_redirects": False}
            with session.request(verb, url, headers=asked, **options) as answer:
                if not answer.is_redirect:
                    encoding = answer.headers.get("Content-Encoding", "identity")
                    if encoding != "identity":
                        raise RefusedAnswer(f"the server sends it as {encoding!r:.40}, which was not asked for")
                    yield answer
                    return
                url = _target(url, session.get_redirect_target(answer) or "")
    raise RefusedAnswer(f"the server redirects more than {retries.REDIRECTS} times")


def pieces(answer: requests.Response) -> Iterator[bytes]:
    """The body of an answer in pieces of at most `PIECE` bytes.

    Raises:
        requests.RequestException: the connection broke, or fewer than `retries.LEAST` bytes came in
            `retries.WINDOW` seconds.
    """
    reached = 0
    slow = f"the server sends fewer than {retries.LEAST} bytes in {retries.WINDOW:g} s"
    with _in_time(lambda: answer.raw.watched, lambda: reached, retries.WINDOW, retries.LEAST, slow):
        answer.raw.chunked = False  # so that http.client reads chunks: urllib3 reads their sizes without a bound
        for piece in answer.iter_content(PIECE):
            reached += len(piece)
            yield piece


def content_length(answer: requests.Response) -> int | None:
    """Header Content-Length; None without one; RefusedAnswer if it is no number of bytes."""
    length = answer.headers.get("Content-Length")
    if length is None:
        return None
    if not _LENGTH.fullmatch(length):
        raise RefusedAnswer(f"the server's Content-Length is {length!r:.40}")
    return int(length)


def reason(error: requests.RequestException) -> str:
    """The message of an exception without secrets, and without the classes of connections that wrap it."""
    cause: Any = error.args[0] if error.args else None
    inner = getattr(cause, "args", ())
    cause = inner[-1] if inner and isinstance(inner[-1], requests.Timeout) else getattr(cause, "reason", None)
    text = re.sub(r"^(HTTPS?Connection(Pool)?\(.*?\)[:,] )+", "", str(cause or error))
    return printing.without_secrets(text) or type(error).__name__


def _target(url: str, location: str) -> str:
    """The address that a redirect names."""
    try:
        target = urljoin(url, location)
    except ValueError as error:
        raise RefusedAnswer(f"the server redirects to {printing.piece(location)}") from error
    scheme = target.partition("://")[0].lower()
    if scheme not in ("http", "https") or (scheme == "http" and url.lower().startswith("https:")):
        raise RefusedAnswer(f"the server redirects to {printing.piece(target)}, which is not followed")
    return target


class _Session(requests.Session):
    """A session that reads no redirects: requests reads their whole bodies into memory."""

    def resolve_redirects(self, *arguments: Any, **options: Any) -> Any:
        return iter(())


class _Timed:
    """Part of a connection of urllib3: TLS and headers have to come in time, and its answers know their socket."""

    _connected: socket.socket | None = None

    def _new_conn(self) -> Any:
        connection = super()._new_conn()  # type: ignore[misc]
        self._connected = connection.dup()  # TLS puts an object of its own in its place
        return connection

    def connect(self) -> None:
        late = f"the server has not connected in {retries.ANSWER:g} s"
        try:
            with _in_time(lambda: self._connected, lambda: 0, retries.ANSWER, 1, late):
                super().connect()  # type: ignore[misc]
        finally:
            if self._connected is not None:
                self._connected.close()

    def getresponse(self) -> Any:
        watched = self.sock  # type: ignore[attr-defined]
        late = f"the server has not answered in {retries.ANSWER:g} s"
        with _in_time(lambda: watched, lambda: 0, retries.ANSWER, 1, late):
            answer = super().getresponse()  # type: ignore[misc]
        answer.watched = watched
        return answer


class _TimedAdapter(HTTPAdapter):
    """Connections of class `_Timed`, also through a proxy."""

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        super().init_poolmanager(*arguments, **options)  # type: ignore[no-untyped-call]
        _use_timed(self.poolmanager)

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        manager = super().proxy_manager_for(*arguments, **options)  # type: ignore[no-untyped-call]
        _use_timed(manager)
        return manager


def _use_timed(manager: Any) -> None:
    manager.pool_classes_by_scheme = {
        scheme: type(pool.__name__, (pool,), {"ConnectionCls": type("Connection", (_Timed, pool.ConnectionCls), {})})
        for scheme, pool in manager.pool_classes_by_scheme.items()
    }


@contextlib.contextmanager
def _in_time(
    connection: Callable[[], socket.socket | None],
    reached: Callable[[], int],
    seconds: float,
    least: int,
    message: str,
) -> Iterator[None]:
    """Shuts the connection down unless `reached` grows by `least` in each `seconds`, and then raises Timeout."""
    ended, late = threading.Event(), threading.Event()

    def watch() -> None:
        before = reached()
        while not ended.wait(seconds):
            if (now := reached()) - before < least:
                late.set()
                if watched := connection():
                    with contextlib.suppress(OSError):
                        socket.socket.shutdown(watched, socket.SHUT_RDWR)  # not SSLSocket's, which is for one thread
                return
            before = now

    thread = threading.Thread(target=watch, name="watch", daemon=True)
    thread.start()
    try:
        yield
    except Exception as error:
        if late.is_set():
            raise requests.Timeout(message) from error
        raise
    finally:
        ended.set()
        thread.join()
    if late.is_set():  # without a length, the end of the connection looks like the end of the body
        raise requests.Timeout(message)
