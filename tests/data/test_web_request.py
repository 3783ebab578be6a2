"""Requests to servers that never end, send bombs, or lie: each ends soon, with one line."""

import contextlib
import gzip
import itertools
import socket
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from dmd.data import retries, web_request
from dmd.data.download import Download, DownloadError
from dmd.data.remote import StorageError
from dmd.data.web_folder import WebFolder
from tests.file_server import FileServer, serving

OK = b"HTTP/1.1 200 OK\r\n"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    for name, value in {"PAUSE": 0.01, "TRIES": 2, "ANSWER": 0.3, "WINDOW": 0.3, "LEAST": 1000}.items():
        monkeypatch.setattr(retries, name, value)
    monkeypatch.setattr(retries, "MOST", 10**6)
    monkeypatch.setattr(retries, "SMALL", 10**6)
    with serving(FileServer(b"content")) as served:
        yield served


def dripped(head: bytes, drop: bytes) -> Iterable[bytes]:
    yield head
    while True:
        time.sleep(0.02)
        yield drop


def endless(head: bytes, part: bytes) -> Iterable[bytes]:
    return itertools.chain([head], itertools.repeat(part))


NEVER_END = {
    "silence": lambda: dripped(b"", b""),
    "100 Continue": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "dripped 100 Continue": lambda: dripped(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "status line": lambda: dripped(b"HTTP/1.1 200 ", b"O"),
    "dripped headers": lambda: dripped(OK, b"X: y\r\n"),
    "one dripped header": lambda: dripped(OK + b"X: ", b"y"),
    "headers": lambda: endless(OK, b"X: y\r\n"),
    "dripped body": lambda: dripped(OK + b"Content-Length: 5000\r\n\r\n", b"x"),
    "dripped body without length": lambda: dripped(OK + b"\r\n", b"x"),
    "dripped chunks": lambda: dripped(CHUNKED, b"1\r\nx\r\n"),
    "chunk size": lambda: endless(CHUNKED, b"0" * 10**5),
    "trailer": lambda: endless(CHUNKED + b"0\r\nX: ", b"y" * 10**5),
    "dripped chunk size": lambda: dripped(CHUNKED, b"0"),
    "trailers": lambda: dripped(CHUNKED + b"0\r\n", b"X: y\r\n"),
    "body without length": lambda: endless(OK + b"\r\n", bytes(10**5)),
    "chunks": lambda: endless(CHUNKED, b"10000\r\n" + bytes(1 << 16) + b"\r\n"),
}
LIES = {
    "gzip": OK + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(bytes(10**7)),
    "gzip, identity": OK + b"Content-Encoding: gzip, identity\r\n\r\n" + gzip.compress(bytes(10**7)),
    "br": OK + b"Content-Encoding: br\r\n\r\nx",
    "length no number": OK + b"Content-Length: x\r\n\r\nx",
    "length negative": OK + b"Content-Length: -1\r\n\r\nx",
    "length of many digits": OK + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx",
    "length too large": OK + b"Content-Length: 100\r\n\r\nx",
    "range not asked for": b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 5-6/7\r\nContent-Length: 2\r\n\r\nxx",
    "redirect in a circle": b"HTTP/1.1 302 Found\r\nLocation: /weights.bin\r\n\r\n",
    "redirect to a file": b"HTTP/1.1 302 Found\r\nLocation: file:///etc/passwd\r\n\r\n",
    "redirect to ftp": b"HTTP/1.1 301 Moved\r\nLocation: ftp://127.0.0.1/x\r\n\r\n",
    "redirect to no address": b"HTTP/1.1 302 Found\r\nLocation: http://[::1/x\r\n\r\n",
    "no HTTP": b"220 mail.example ESMTP\r\n",
    "nothing": b"",
}
RAW = NEVER_END | {name: lambda answer=answer: [answer] for name, answer in LIES.items()}


@pytest.fixture
def given_up_soon(monkeypatch):
    monkeypatch.setattr(retries, "ANSWER", 0.1)
    monkeypatch.setattr(retries, "WINDOW", 0.1)


@pytest.mark.parametrize("name", RAW)
def test_download_from_a_server_that_never_ends_or_lies_ends_with_one_line(server, given_up_soon, tmp_path: Path, name):
    server.raw = RAW[name]
    download = Download(server.url, tmp_path / "part", None, log=lambda line: None, advance=lambda *numbers: None)
    begin = time.monotonic()
    with pytest.raises(DownloadError) as refused:
        download.run()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500
    assert time.monotonic() - begin < 20  # not a speed: without a bound it would never end
    assert not download.partial.exists() or download.partial.stat().st_size < 2 * 10**6


@pytest.mark.parametrize("name", [*RAW])
def test_small_file_from_a_server_that_never_ends_or_lies_ends_with_one_line(server, given_up_soon, name):
    server.raw = RAW[name]
    with pytest.raises(StorageError) as refused:
        content = WebFolder(server.url.rpartition("/")[0], log=print).read("weights.bin")
        raise StorageError(f"{server.url}: read without a length {content!r:.20}")
    assert "\n" not in str(refused.value) and server.url in str(refused.value)


@pytest.mark.parametrize("name", ["chunk size", "trailer"])
def test_endless_line_within_a_body_is_bounded_in_size(server, tmp_path: Path, monkeypatch, name):
    monkeypatch.setattr(retries, "WINDOW", 3600)
    server.raw = NEVER_END[name]
    download = Download(server.url, tmp_path / "part", None, log=lambda line: None, advance=lambda *numbers: None)
    with pytest.raises(DownloadError, match="got more than 65536 bytes when reading"):
        download.run()


DRIPPED = {"silence": b"", "part of a record": b"\x16", "records of one byte": b"\x16\x03\x03\x00\x01\x02"}


@pytest.mark.parametrize("name", DRIPPED)
def test_tls_handshake_that_never_ends_is_given_up(server, tmp_path: Path, name):
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def drip() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listening.accept()
                    with connection, contextlib.suppress(OSError):
                        connection.sendall(b"" if name == "silence" else b"\x16\x03\x03\x3f\xff\x02\x00\x3f\x00")
                        for _ in range(400):
                            time.sleep(0.02)
                            connection.sendall(DRIPPED[name])

        threading.Thread(target=drip, daemon=True).start()
        url = f"https://127.0.0.1:{listening.getsockname()[1]}/weights.bin"
        download = Download(url, tmp_path / "part", None, log=lambda line: None, advance=lambda *numbers: None)
        with pytest.raises(DownloadError, match=r"the server has not connected in 0\.3 s \(2 times in a row\)"):
            download.run()


@pytest.mark.parametrize("location", ["http://host/a", "HTTP://host/a", "file:///a", "ftp://host/a"])
def test_redirect_from_https_to_a_weaker_protocol_is_not_followed(location):
    with pytest.raises(web_request.RefusedAnswer, match="which is not followed"):
        web_request._target("https://host/b", location)
    for safe in ("https://other/a", "/a", "a", "//other/a"):
        assert web_request._target("https://host/b", safe).startswith("https://")


def test_redirects_are_followed_without_reading_their_endless_bodies(server):
    with serving(FileServer(b"here")) as other:
        head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\n\r\n".encode()
        server.raw = lambda: endless(head, bytes(10**5))
        assert WebFolder(server.url.rpartition("/")[0], log=print).read("weights.bin") == b"here"


def test_a_range_that_ends_too_early_starts_again(server, tmp_path: Path):
    server.content, server.drops = bytes(range(256)) * 1000, [100_000]
    download = Download(server.url, tmp_path / "part", None, log=lambda line: None, advance=lambda *numbers: None)
    whole, short = server.raw, b'HTTP/1.1 206 Partial Content\r\nETag: "one"\r\nContent-Length: 5\r\n'

    def lie() -> Iterable[bytes]:
        start = download.partial.stat().st_size
        server.raw = whole
        return [short + f"Content-Range: bytes {start}-{start + 4}/256000\r\n\r\n12345".encode()]

    server.before = lambda: setattr(server, "raw", lie if len(server.asked) == 1 else None)
    download.run()
    assert download.partial.read_bytes() == server.content
