"""A server on the loopback interface with one file or a folder, as well or badly behaved as a test asks for."""

import contextlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class FileServer:
    """What is served and how; may be changed between requests.

    Attributes:
        ranges: whether Range is honoured; where not, every answer is the whole file.
        careful: whether If-Range is honoured.
        tag: ETag of the content, None for none.
        status: of every answer to GET; head_status to HEAD; other ones than 200 and 206 come with a page of their own.
        kind: Content-Type of the content.
        length: whether Content-Length says how much is coming.
        drops: for each coming request after how many bytes of its body the connection is cut.
        asked: header Range of each GET so far.
        folder: files by path; where it is None, every path is `content`.
        before: called before each answer.
        raw: parts of what is sent in place of an answer, status line and headers included, byte for byte.
        paths: path of each GET so far, with its query.
    """

    content: bytes
    ranges: bool = True
    careful: bool = True
    tag: str | None = '"one"'
    status: int = 200
    head_status: int = 200
    kind: str = "application/octet-stream"
    length: bool = True
    drops: list[int] = field(default_factory=list)
    asked: list[str | None] = field(default_factory=list)
    before: Callable[[], object] = lambda: None
    url: str = ""
    folder: Mapping[str, bytes] | None = None
    raw: Callable[[], Iterable[bytes]] | None = None
    paths: list[str] = field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler, *, body_too: bool = True) -> None:
        if self.raw is not None:
            request.close_connection = True
            with contextlib.suppress(OSError):  # the client has closed the connection
                for part in self.raw():
                    request.wfile.write(part)
            return
        self.paths += [request.path] if body_too else []
        content = self.content if self.folder is None else self.folder.get(request.path)
        if content is None:
            request.send_error(404)
            return
        if not body_too:
            request.send_response(self.head_status)
            request.send_header("Content-Length", str(len(content)))
            request.end_headers()
            return
        wanted = request.headers.get("Range")
        self.asked.append(wanted)
        self.before()
        if self.status not in (200, 206):
            request.send_error(self.status)
            return
        start = int(wanted.removeprefix("bytes=").split("-")[0]) if wanted and self.ranges else 0
        if self.careful and request.headers.get("If-Range", self.tag) != self.tag:
            start = 0
        if start >= len(content):
            request.send_error(416)
            return
        body = content[start:]
        request.send_response(206 if start else self.status)
        request.send_header("Content-Type", self.kind)
        if start:
            total = len(content)
            request.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        if self.tag:
            request.send_header("ETag", self.tag)
        if self.length:
            request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        request.wfile.write(body[: self.drops.pop(0)] if self.drops else body)


@contextmanager
def serving(server: FileServer) -> Iterator[FileServer]:
    """Serves until the block ends; `server.url` is the address of the file."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # noqa: N802 (the library's name)
            server.answer(self)

        def do_HEAD(self) -> None:  # noqa: N802
            server.answer(self, body_too=False)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True).start()
        server.url = f"http://127.0.0.1:{http.server_port}/weights.bin"
        yield server
        http.shutdown()
