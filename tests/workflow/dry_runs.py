"""Dry runs of Snakemake without its start, which takes most of their time.

A process that has imported it, this file as a program, forks for each: the fork is as fresh as a process of its own.
"""

import contextlib
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path


def run(line: list[str], folder: Path, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    """What subprocess.run says of a command of Snakemake in a folder; `environment` is the same for all."""
    server = _server(tuple(environment.items()))
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        said = [Path(scratch, name) for name in ("stdout", "stderr")]
        server.stdin.write(json.dumps({"line": line, "folder": str(folder), "said": list(map(str, said))}) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(line, status, *(path.read_text() for path in said))


@functools.cache
def _server(environment: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    """It ends when its input does, at the latest with this process."""
    line = [sys.executable, "-P", __file__]
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(environment))


def serve() -> None:
    """Answers each line of stdin, a command, with its exit status; returns at the end, and in each fork to be it."""
    from snakemake import cli

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main(["--version"])  # imports its plugins
    for text in sys.stdin:
        asked = json.loads(text)
        if not (process := os.fork()):
            os.chdir(asked["folder"])
            for number, path in enumerate(asked["said"], start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            sys.argv = asked["line"]
            return cli.main(sys.argv[1:])
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
