"""Two runs at once: who waits for whom."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

HOLD = """
import signal, sys
from dmd.provenance import runs
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: print("noted", flush=True))  # as Snakemake's scheduler notes SIGTERM
print(runs.hold(sys.argv[1:], lambda text: print(text, flush=True)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def start(tmp_path: Path):
    """Starts a run that makes files; it ends when its input does."""

    def run(*outputs: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-c", HOLD, *outputs]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, cwd=tmp_path, env={"PYTHONPATH": str(Path(__file__).parents[2])}, **pipes)

    return run


def test_second_run_waits_only_for_a_run_of_the_same_experiment_and_not_for_a_killed_one(start):
    first = start("results/one/fid.json", "results/two/a/b.tar", "inputs/x")
    assert first.stdout.readline() == "False\n"
    apart = start("results/three/fid.json", "inputs/x")
    second = start("results/two/other.json", "results/aaa/x")
    assert apart.stdout.readline() == "False\n"
    message = "another run of the workflow makes files in results/two: waiting for its end\n"
    assert second.stdout.readline() == message and second.poll() is None
    first.kill()
    assert second.stdout.readline() == "True\n"
    for process in (first, apart, second):
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_a_run_that_waits_and_no_other(start, number):
    first = start("results/one/fid.json")
    assert first.stdout.readline() == "False\n"
    second = start("results/one/other.json")
    assert second.stdout.readline().startswith("another run of the workflow")
    second.send_signal(number)
    assert second.communicate() == ("", "error: stopped while waiting for another run\n") and second.returncode == 1
    third = start("results/one/other.json")
    assert third.stdout.readline().startswith("another run of the workflow")
    first.send_signal(number)
    assert first.stdout.readline() == "noted\n" and first.communicate()[0] == ""
    assert third.stdout.readline() == "True\n"
    third.send_signal(number)
    assert third.stdout.readline() == "noted\n" and third.communicate()[0] == ""
