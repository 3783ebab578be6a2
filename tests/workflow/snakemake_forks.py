"""Runs of Snakemake without its start, which takes most of the time of short ones.

A process that has imported Snakemake and read a configuration, this file as a program, forks for each run.
"""

import contextlib
import functools
import gc
import importlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
IMPORTS = REPOSITORY / "workflow" / "python"


def run(
    line: list[str], folder: Path, environment: dict[str, str], *, seconds: int = 0
) -> subprocess.CompletedProcess[str]:
    """What subprocess.run says of a command of Snakemake in a folder; `environment` is the same for all.

    After `seconds`, if they are not 0, the run ends by SIGALRM.
    """
    server = _server(tuple(environment.items()))
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as scratch:
        said = [Path(scratch, name) for name in ("stdout", "stderr")]
        asked = {"line": line, "folder": str(folder), "said": list(map(str, said)), "seconds": seconds}
        server.stdin.write(json.dumps(asked) + "\n")
        server.stdin.flush()
        status = int(server.stdout.readline())
        return subprocess.CompletedProcess(line, status, *(path.read_text() for path in said))


@functools.cache
def _server(environment: tuple[tuple[str, str], ...]) -> subprocess.Popen[str]:
    """It ends when its input does, at the latest with this process."""
    from tests.workflow import stage_forks  # the program does not need it and cannot import it

    line, given = [sys.executable, "-P", __file__], dict(environment)
    given |= {"BASH_ENV": stage_forks.bash_env(IMPORTS, environment)}
    return subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=given)


def serve() -> None:
    """Answers each line of stdin, a command, with its exit status; returns at the end, and in each fork to be it."""
    from snakemake import cli

    with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
        cli.main(["--version"])  # imports its plugins
    sys.path.insert(0, str(IMPORTS))

    import dmd.config

    importlib.import_module("smart_open")  # which Snakemake imports in each run

    dmd.config.load(REPOSITORY / "config.yaml")  # builds the validators of the sections
    sys.path.remove(str(IMPORTS))
    gc.freeze()
    for text in sys.stdin:
        asked = json.loads(text)
        if not (process := os.fork()):
            os.chdir(asked["folder"])
            for number, path in enumerate(asked["said"], start=1):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            signal.alarm(asked["seconds"])
            sys.argv, sys.orig_argv = asked["line"], [sys.executable, *asked["line"]]
            return cli.main(sys.argv[1:])
        print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)


if __name__ == "__main__":
    serve()
