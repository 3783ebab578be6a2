"""S3 on the loopback interface (moto), as well or badly behaved as a test asks for."""

import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

BUCKET = "bucket"
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_EC2_METADATA_DISABLED": "true"}


@dataclass
class S3Server:
    """What is served and how; may be changed between requests.

    Attributes:
        endpoint: address of the server.
        drops: for each coming answer with bytes of a tar, after how many of them the connection is cut.
        flips: end of a key -> how many answers with its bytes come with one byte altered.
        asked: verb, key and header Range of each request about a tar so far.
    """

    application: Any
    endpoint: str = ""
    drops: list[int] = field(default_factory=list)
    flips: dict[str, int] = field(default_factory=dict)
    asked: list[tuple[str, str, str | None]] = field(default_factory=list)

    def __call__(self, environment: dict[str, Any], start: Any) -> Iterable[bytes]:
        verb, key = environment["REQUEST_METHOD"], environment["PATH_INFO"].removeprefix(f"/{BUCKET}/")
        answer = self.application(environment, start)
        if not key.endswith(".tar"):
            return answer
        self.asked.append((verb, key, environment.get("HTTP_RANGE")))
        if verb != "GET":
            return answer
        body = b"".join(answer)
        for end, left in self.flips.items():
            if key.endswith(end) and left:
                self.flips[end] = left - 1
                body = body[:-1100] + bytes([body[-1100] ^ 1]) + body[-1099:]
        return self._cut(body, self.drops.pop(0)) if self.drops else [body]

    def _cut(self, body: bytes, after: int) -> Iterator[bytes]:
        yield body[:after]
        raise ConnectionAbortedError("as the test asked for")

    def tars(self, verb: str = "GET") -> list[str]:
        """Keys of the tars that were asked for with `verb`, in order."""
        return [key for each, key, _ in self.asked if each == verb]


@contextmanager
def serving() -> Iterator[S3Server]:
    """Serves an empty bucket until the block ends."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from pyarrow import fs
    from werkzeug.serving import make_server

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = S3Server(DomainDispatcherApplication(create_backend_app))
    http = make_server("127.0.0.1", 0, server, threaded=True)
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.endpoint = f"http://127.0.0.1:{http.server_port}"
    system = fs.S3FileSystem(
        access_key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret_key=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        endpoint_override=server.endpoint,
        region="us-east-1",
        allow_bucket_creation=True,
    )
    system.create_dir(BUCKET)
    yield server
    http.shutdown()
    thread.join()
