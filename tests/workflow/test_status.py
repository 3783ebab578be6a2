"""`python -m dmd.status` on the small experiment: what is done, waits, runs, was killed, or failed."""

import functools
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

import dmd.status
from dmd.jobs.job_status import JobStatus, Throughput
from tests.workflow.conftest import ENVIRONMENT, REPOSITORY, SMALL, called, write_config

PYTHON = {**ENVIRONMENT, "PYTHONPATH": str(REPOSITORY)}
PATIENCE = 180.0  # seconds, on a machine that is busy with other things
CHAIN = ["teacher", "reference", "pairs", "distill", "sample", "features", "evaluate"]
GRID = "results/small/distill/grids/00000010.png"
LOG = "results/small/logs/distill.log"
STATUS = "results/small/logs/distill.status.json"


def status(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return called(dmd.status.main, folder, *words)


def stages(folder: Path, *words: str) -> dict[str, dict]:
    answer = status(folder, "--json", *words)
    assert answer.returncode == 0, answer.stderr
    return {stage["stage"]: stage for stage in map(json.loads, answer.stdout.splitlines())}


def start_distill(folder: Path) -> subprocess.Popen[bytes]:
    """The stage by the command that its log begins with, as docs/outputs.md says one may."""
    words = shlex.split((folder / LOG).read_text().splitlines()[0])[1:]
    shutil.rmtree(folder / "results/small/distill")
    for name in (LOG, STATUS):
        (folder / name).unlink()
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=PYTHON, cwd=folder)


def test_status_of_a_finished_experiment_is_done_throughout(finished: Path):
    by_stage = stages(finished, "small")
    assert [name for name in by_stage if name in CHAIN] == CHAIN
    assert {each["state"] for each in by_stage.values()} == {"done"}
    assert by_stage["pairs"]["jobs"] == {"all": 3, "done": 3}  # two blocks and their manifest
    assert by_stage["distill"]["grid"] == "results/small/distill/grids/00000060.png"
    lines = status(finished, "small").stdout.splitlines()
    assert lines[2] == "small distill, newest grid: results/small/distill/grids/00000060.png"
    assert lines[3].startswith("small distill, monitor: after 60 updates distance to the teacher's images ")
    assert by_stage["distill"]["notes"] == [lines[3].removeprefix("small distill, monitor: ")] and len(lines) == 4


def test_status_tells_what_a_child_shares_from_what_it_waits_for(finished: Path):
    by_stage = stages(finished, "small-seed1")
    assert {name: each["state"] for name, each in by_stage.items()} == {
        **dict.fromkeys(["images", "teacher", "reference", "pairs"], "done"),
        **dict.fromkeys(["distill", "sample", "features", "evaluate"], "waiting"),
    }
    assert by_stage["pairs"]["owners"] == ["small"] and by_stage["distill"]["owners"] == ["small-seed1"]
    lines = status(finished, "small-seed1").stdout.splitlines()
    assert lines[1].split() == ["small-seed1", *["done*"] * 4, *["waiting"] * 4]


def test_status_lists_what_has_begun_and_refuses_unknown_names(finished: Path, tmp_path: Path):
    rows = [line.split()[0] for line in status(finished).stdout.splitlines()[1:]]
    assert rows[:2] == ["small", "small-csv"] and "small-seed1" not in rows
    answer = status(finished, "smal")
    assert answer.returncode == 1 and answer.stderr.startswith('error: unknown experiment "smal" (did you mean')
    assert status(finished, "--results", str(tmp_path)).stdout.startswith("No experiment has been started")


def test_status_calls_a_job_running_only_while_its_process_can_work(broken: Path):
    process = start_distill(broken)
    try:
        deadline = time.monotonic() + PATIENCE
        while not list((broken / "results/small/distill/checkpoints").glob("[0-9]*.safetensors")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGSTOP)
        (broken / GRID).parent.mkdir()
        (broken / GRID).touch()
        by_stage = stages(broken, "small")
        assert by_stage["distill"]["state"] == "running" and by_stage["distill"]["logs"] == [LOG]
        three_hours_ago = {"time": (datetime.now(UTC) - timedelta(hours=3)).isoformat()}
        (broken / STATUS).write_text(json.dumps(json.loads((broken / STATUS).read_text()) | three_hours_ago))
        by_stage = stages(broken, "small")
        assert by_stage["distill"]["state"] == "stopped" and by_stage["distill"]["faults"][0]["silent_s"] >= 10800
        output = status(broken, "small").stdout
        assert f"no status update for 3.0 h, killed or suspended? ({LOG})" in output
        assert f"small distill, newest grid: {GRID}" in output.splitlines()
        process.send_signal(signal.SIGTERM)
        process.send_signal(signal.SIGCONT)
        process.wait(PATIENCE)
        distill = stages(broken, "small")["distill"]
        assert distill["state"] == "stopped" and distill["faults"][0]["message"].startswith(
            "stopped by SIGTERM at update"
        )
    finally:
        process.kill()
        process.wait()


def test_status_shows_how_far_a_running_job_is_and_how_long_it_will_take(broken: Path):
    shutil.rmtree(broken / "results/small/distill")
    throughput = Throughput(count=1500, total=4500, unit="updates", rate=2.0, image_rate=128.0)
    (broken / STATUS).write_text(JobStatus(state="running", throughput=throughput).model_dump_json())
    for block in ("00000-00001", "00002-00003"):
        (broken / f"results/small/pairs/blocks/{block}.parquet").unlink()
    images = Throughput(count=2, total=8, unit="images", rate=0.05)
    path = broken / "results/small/logs/pairs-00000-00001.status.json"
    path.write_text(JobStatus(state="running", throughput=images).model_dump_json())
    lines = status(broken, "small").stdout.splitlines()
    assert "small distill: 1,500/4,500 updates, 2 updates/s, 128 images/s, 25.0 min left" in lines
    assert "small pairs: 2/8 images, 0.05 images/s, 4.7 min left" in lines  # 6 of this block, 8 of the one that waits
    by_stage = stages(broken, "small")
    assert {key: by_stage["distill"][key] for key in ("done", "total", "unit", "per_second", "seconds_left")} == {
        "done": 1500, "total": 4500, "unit": "updates", "per_second": 2.0, "seconds_left": 1500.0,
    }  # fmt: skip
    assert by_stage["distill"]["images_per_second"] == 128.0 and by_stage["pairs"]["seconds_left"] == 280.0


def test_status_names_the_error_of_a_stage_that_failed(broken: Path):
    manifest = broken / "results/small/pairs/manifest.parquet"
    manifest.write_bytes(manifest.read_bytes()[:-1] + b"x")
    assert start_distill(broken).wait(PATIENCE) == 1
    distill = stages(broken, "small")["distill"]
    assert distill["state"] == "failed" and distill["faults"][0]["log"] == LOG
    assert distill["faults"][0]["message"].startswith("error: results/small/pairs/manifest.parquet is damaged")


@pytest.mark.parametrize("words", [["--json"], []])
def test_status_again_and_again_ends_with_an_interrupt(finished: Path, words: list[str]):
    line = [sys.executable, "-m", "dmd.status", "--watch", "0.1", *words, "small"]
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # jobs in the background of a shell do not
    with subprocess.Popen(
        line, stdout=subprocess.PIPE, text=True, env=PYTHON, cwd=finished, preexec_fn=heed
    ) as process:
        assert process.stdout is not None
        first = process.stdout.readline()
        seen = [process.stdout.readline() for _ in range(30)]
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(PATIENCE) == 0
    assert first in seen


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_status_again_after_no_time_is_refused(tmp_path: Path, seconds: str):
    answer = status(tmp_path, "--watch", seconds)
    assert answer.returncode == 2 and "Traceback" not in answer.stderr
    assert answer.stderr.endswith(f"argument --watch: '{seconds}' is not a positive number of seconds\n")


def test_status_of_results_that_cannot_be_read_is_one_line(tmp_path: Path):
    write_config(tmp_path, SMALL)
    (tmp_path / "results").symlink_to("results")
    answer = status(tmp_path)
    assert answer.returncode == 1 and answer.stdout == ""
    assert len(answer.stderr.splitlines()) == 1 and answer.stderr.startswith("error: ") and "results" in answer.stderr
