"""Stages without the import of torch, which takes most of the time of small ones.

A process that has imported torch (this file as a program) forks for each stage. In a bash with `BASH_ENV`,
`python -m dmd.stages.NAME` asks it to, and waits. A signal to the shell does not reach the stage.
"""

import contextlib
import functools
import gc
import json
import os
import runpy
import select
import shlex
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

FUNCTION = """
python() {{ case "${{2-}}" in dmd.stages.*) {client} "$@" ;; *) command python "$@" ;; esac; }}
"""


def bash_env(imports: Path, environment: tuple[tuple[str, str], ...]) -> str:
    """The value of BASH_ENV; stages import `dmd` from the folder `imports`."""
    return str(Path(_server(imports, environment)[0].name, "functions.sh"))


@functools.cache
def _server(
    imports: Path, environment: tuple[tuple[str, str], ...]
) -> tuple[tempfile.TemporaryDirectory[str], subprocess.Popen[bytes]]:
    """The folder of its socket, and the process; both end with this one."""
    scratch = tempfile.TemporaryDirectory()
    place = Path(scratch.name, "socket")
    client = shlex.join([sys.executable, "-IS", __file__, str(place)])
    place.with_name("functions.sh").write_text(FUNCTION.format(client=client))
    line, given = [sys.executable, "-P", __file__, str(place)], dict(environment) | {"PYTHONPATH": str(imports)}
    server = subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given)
    assert server.stdout is not None and server.stdout.readline() == b"ready\n", "the server of stages did not start"
    return scratch, server


def serve(place: str) -> None:
    """Forks for each that asks, until stdin ends. A fork returns after its stage, and ends as this program does."""
    import dmd.sampling.sampler
    import dmd.train.loop  # noqa: F401

    gc.freeze()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(place)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([sys.stdin, listener], [], [])[0]:
            connection, _ = listener.accept()
            if not os.fork():
                return _work(connection)
            connection.close()
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass


def _work(connection: socket.socket) -> None:
    """Runs the stage in a fork, and says its exit status."""
    _, streams, *_ = socket.recv_fds(connection, 1, 3)
    asked = json.loads(connection.makefile().read())
    if process := os.fork():
        connection.send(bytes([os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) % 256]))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.chdir(asked["folder"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    sys.argv = ["-m", *asked["words"]]
    runpy.run_module(asked["module"], run_name="__main__", alter_sys=True)


def ask(place: str, module: str, *words: str) -> int:
    """The exit status of a stage that has the folder, variables and streams of this process."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(place)
        socket.send_fds(connection, [b"\n"], [0, 1, 2])
        asked = {"module": module, "words": words, "folder": os.getcwd(), "environment": dict(os.environ)}
        connection.sendall(json.dumps(asked).encode())
        connection.shutdown(socket.SHUT_WR)
        return connection.recv(1)[0]


if __name__ == "__main__":
    if sys.argv[2:]:
        sys.exit(ask(sys.argv[1], *sys.argv[3:]))  # argv[2] is -m
    serve(sys.argv[1])
