"""The command line of every stage: flags from paths, numbers from the spec, one line for an error."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from dmd.config.section_base import Section
from dmd.config.training import TeacherTraining
from dmd.jobs import job, job_status, processes, reporting, torch_setup
from dmd.provenance import memory_limit

TRAINING = {"method": {"name": "denoising", "batch_size": 4, "phases": [{"updates": 3}]}}


class Numbers(Section):
    """Numbers of the stage below."""

    weight: float
    name: str


@pytest.fixture(autouse=True)
def plain_log():
    """Takes away what `main` adds to the logger."""
    log = logging.getLogger("dmd")
    before, level, raising = list(log.handlers), log.level, logging.raiseExceptions
    yield
    log.handlers, log.level, logging.raiseExceptions = before, level, raising


def call(monkeypatch, *words: str, error: Exception | None = None) -> dict:
    """What `main` hands to a stage."""
    arguments = {}

    def run(*, teacher_file: Path, blocks: list[Path], output: Path, start: Path | None = None,
            steps: int, seed: int = 7, training: TeacherTraining | None = None,
            numbers: Numbers) -> None:  # fmt: skip
        arguments.update(locals())
        if error:
            raise error

    monkeypatch.setattr(sys, "argv", ["stage", "--teacher-file", "t", "--output", "o", *words])
    job.main(run)
    return arguments


def spec(**changed) -> list[str]:
    return ["--spec", json.dumps({"steps": 3, "weight": 0.5, "name": "x"} | changed), "--blocks", "a", "b"]


def test_paths_become_flags_and_numbers_come_from_the_spec(monkeypatch):
    arguments = call(monkeypatch, *spec())
    assert (
        arguments["teacher_file"] == Path("t")
        and arguments["blocks"] == [Path("a"), Path("b")]
        and arguments["start"] is None
    )
    assert (arguments["steps"], arguments["seed"]) == (3, 7)
    assert arguments["numbers"].with_defaults() == {"weight": 0.5, "name": "x"}
    assert call(monkeypatch, *spec(seed=8), "--start", "s")["start"] == Path("s")


def test_sections_of_the_configuration_are_built_or_refused_by_key(monkeypatch, capsys):
    training = call(monkeypatch, *spec(training=TRAINING | {"seed": 4}))["training"]
    assert isinstance(training, TeacherTraining) and (training.seed, training.method.phases[0].updates) == (4, 3)
    assert call(monkeypatch, *spec(training=None))["training"] is None
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(training=TRAINING | {"seed": -1, "sede": 3}))
    line = capsys.readouterr().err.splitlines()[-1]
    assert "--spec.training.seed: " in line and 'unknown key "sede"' in line


def test_several_objects_of_a_spec_add_up(monkeypatch):
    arguments = call(monkeypatch, "--spec", '{"steps": 3, "weight": 0.5}', '{"name": "x"}', "--blocks", "a")
    assert (arguments["steps"], arguments["numbers"].with_defaults()) == (3, {"weight": 0.5, "name": "x"})


def test_a_missing_path_is_refused_before_any_work(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, "--spec", "{}")
    assert "--blocks" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--spec", "{}"], "--spec lacks steps"),
        (["--spec", '{"steps": 3, "name": "x"}'], '--spec: lacks the key "weight", which has no default'),
        (spec(stepz=3), '--spec: unknown key "stepz"; keys are: weight, name'),
        (spec(output="x"), '--spec: unknown key "output"; keys are: weight, name'),
    ],
)
def test_missing_and_unknown_spec_keys_are_one_line_each(monkeypatch, capsys, words, message):
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *words, "--blocks", "a")
    assert stopped.value.code == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error: " in line]
    assert len(lines) == 1 and f"error: {message}" in lines[0]


@pytest.mark.parametrize("error", [ValueError("this number"), OSError("that file")])
def test_an_error_is_one_line_on_screen_and_a_traceback_in_the_log(monkeypatch, capsys, tmp_path, error):
    log = tmp_path / "logs" / "reporting.log"
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), "--log", str(log), error=error)
    screen = capsys.readouterr().err
    assert f"error: {error}" in screen.splitlines()[-1] and "Traceback" not in screen
    assert "Traceback" in log.read_text() and f"error: {error}" in log.read_text()


def test_an_error_about_a_name_that_is_not_utf_8_stands_in_the_log(monkeypatch, tmp_path):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), "--log", str(tmp_path / "log"), error=ValueError("a\udce9.png is damaged"))
    assert "a\\udce9.png is damaged" in (tmp_path / "log").read_text()


def test_a_missing_package_is_one_line_that_names_its_extra(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), error=ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: package peft is not installed: " in line and "pip install '.[text]' -c envs" in line
    with pytest.raises(ModuleNotFoundError):
        call(monkeypatch, *spec(), error=ModuleNotFoundError("No module named 'dmd.job'", name="dmd.job"))


def test_a_log_that_cannot_be_opened_is_one_line_before_any_work(monkeypatch, tmp_path):
    (tmp_path / "logs").write_text("no folder")
    with pytest.raises(SystemExit, match=f"error: cannot write the log {tmp_path}/logs/reporting.log: "):
        call(monkeypatch, *spec(), "--log", str(tmp_path / "logs/reporting.log"), error=AssertionError("it worked"))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_log_that_cannot_be_written_leaves_the_one_line_on_screen(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), "--log", "/dev/full", error=OSError("that disk"))
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].endswith("error: that disk") and not [line for line in lines if "Traceback" in line]


def test_a_gpu_too_small_is_one_line_that_says_what_helps(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), error=torch.OutOfMemoryError("Tried to allocate 2 GiB.\nMore"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: GPU memory does not suffice: Tried to allocate 2 GiB. Lower the batch size" in line


@pytest.mark.parametrize("ask", [lambda: np.empty(1 << 56), lambda: torch.empty(1 << 56), lambda: bytearray(1 << 62)])
def test_memory_that_does_not_suffice_is_one_line_that_says_what_helps(monkeypatch, capsys, ask):
    with pytest.raises((MemoryError, RuntimeError)) as refused:
        ask()
    with pytest.raises(SystemExit) as stopped:
        call(monkeypatch, *spec(), error=refused.value)
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 1 and len([line for line in lines if "error: memory does not suffice: " in line]) == 1
    assert "on a cluster `resources` asks for more" in lines[-1] and not any("Traceback" in line for line in lines)


def test_whatever_ends_a_stage_that_came_near_a_limit_of_memory_is_told_as_lack_of_it(monkeypatch, capsys):
    """So says Python where what it imports is refused memory."""
    monkeypatch.setattr(memory_limit, "tight", lambda: True)
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), error=SystemError("error return without exception set"))
    line = capsys.readouterr().err.splitlines()[-1]
    assert "error: memory does not suffice: SystemError error return without exception set; on a cluster" in line


FORGED = "a.png\n12:00:00 done in 1.0 s\x1b]0;title\x07\u202e\udcff"


def test_text_from_outside_forges_no_line_and_reaches_neither_terminal_nor_status(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), "--log", str(tmp_path / "log"), error=ValueError(f"{FORGED} cannot be read"))
    screen, log = capsys.readouterr().err, (tmp_path / "log").read_text()
    message = job_status.read(tmp_path / "log.status.json").message
    assert message == r"error: a.png\n12:00:00 done in 1.0 s\x1b]0;title\x07\u202e\udcff cannot be read"
    assert screen.splitlines()[-1].endswith(message)
    for text in (screen, log):
        assert not [line for line in text.splitlines() if line.startswith("12:00:00 done")]
        assert not set(text) & set("\x1b\x07\u202e\udcff")
    assert "Traceback" in log


def test_a_field_of_any_length_gives_a_short_log(monkeypatch, capsys, tmp_path):
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(), "--log", str(tmp_path / "log"), error=ValueError("y" * 10**7 + "; run again"))
    lines = capsys.readouterr().err.splitlines()
    assert max(map(len, lines)) < 2100 and lines[-1].endswith("; run again")
    assert (tmp_path / "log").stat().st_size < 20_000 and (tmp_path / "log.status.json").stat().st_size < 5000


def test_an_exception_that_nobody_caught_is_escaped_on_the_screen(capsys):
    reporting.print_exception(KeyError, KeyError("\x1b[2J"), None)
    reporting.print_exception(RuntimeError, RuntimeError(FORGED * 10**5), None)
    text = capsys.readouterr().err
    assert not set(text) & set("\x1b\x07\u202e\udcff") and len(text) < 10**6


def test_secrets_of_a_url_are_neither_in_the_log_nor_in_the_status_file(monkeypatch, capsys, tmp_path):
    url = "https://user:hunter2@host/file.bin?token=hunter2"
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(name=url), "--log", str(tmp_path / "log"), error=ValueError(f"{url} cannot be read"))
    for text in (capsys.readouterr().err, *(path.read_text() for path in tmp_path.iterdir())):
        assert "hunter2" not in text and "https://***@host/file.bin?***" in text


INHERITED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
INHERITED += ("TORCHELASTIC_RUN_ID", "PET_NNODES", "ROLE_RANK", processes.LAUNCHER)


@pytest.mark.parametrize("value", ["0", "1", "8", "x", ""])
def test_variables_of_another_torchrun_mean_nothing(monkeypatch, tmp_path, value):
    """Such as those of a shell that it started; `LAUNCHER` is inherited, too, but names another parent."""
    for name in INHERITED:
        monkeypatch.setenv(name, value)
    processes.launched.cache_clear()
    assert (processes.rank(), processes.count(), processes.local_rank()) == (0, 1, 0) and processes.first_to_fail()
    call(monkeypatch, *spec(), "--log", str(tmp_path / "log"))
    assert "done in " in (tmp_path / "log").read_text()
    assert not {*INHERITED[:-1]} & os.environ.keys()
    with processes.group(1, torch.device("cpu")):
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("error", [KeyError("bug"), RuntimeError("cuDNN")])
def test_a_bug_is_not_disguised_as_a_bad_input_and_stands_in_the_log(monkeypatch, tmp_path, error):
    with pytest.raises(type(error)):
        call(monkeypatch, *spec(), "--log", str(tmp_path / "log"), error=error)
    status = job_status.read(tmp_path / "log.status.json")
    assert (status.state, status.message) == ("failed", f"error: {type(error).__name__}: {error}")
    assert "Traceback (most recent call last)" in (tmp_path / "log").read_text()


def test_processes_that_cannot_be_shared_by_the_nodes_stand_in_the_log(monkeypatch, tmp_path):
    (tmp_path / "log").touch()
    job_status.end(tmp_path / "log", "stopped", "stopped by SIGUSR1 at update 3 of 5: run again to continue")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    with pytest.raises(SystemExit):
        call(monkeypatch, *spec(training=TRAINING | {"processes": 3}), "--log", str(tmp_path / "log"))
    assert job_status.read(tmp_path / "log.status.json").message == (
        "error: processes: 3 cannot be shared evenly by the 2 nodes of this job"
    )


def test_a_stage_of_its_own_process_ends_with_one_line_and_code_one(tmp_path):
    damaged = tmp_path / "denoiser.safetensors"
    damaged.write_bytes(b"nothing")
    numbers = {"solver": {"name": "heun"}, "first_seed": 0, "batch_size": 1, "labels": "random"}
    numbers |= {"shard_size": 1, "first": 0, "last": 0}
    output = tmp_path / "pairs" / "blocks" / "00000-00000.parquet"
    command = [sys.executable, "-m", "dmd.stages.pairs", "--teacher", str(damaged), "--output", str(output)]
    command += ["--spec", json.dumps(numbers), "--log", str(tmp_path / "log")]
    answer = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert answer.returncode == 1
    assert f"error: {damaged} cannot be read" in answer.stderr.splitlines()[-1] and "Traceback" not in answer.stderr
    assert f"dmd.stages.pairs --teacher {damaged}" in (tmp_path / "log").read_text()
    assert not [path for path in (tmp_path / "pairs").rglob("*") if path.is_file()]
    status = job_status.read(tmp_path / "log.status.json")
    assert status.state == "failed" and (status.message or "").startswith(f"error: {damaged} cannot be read")


def test_a_stage_that_ends_well_says_so_in_its_log_and_status_file(monkeypatch, tmp_path):
    call(monkeypatch, *spec(), "--log", str(tmp_path / "log"))
    assert (tmp_path / "log").read_text().splitlines()[-1].split(" ", 1)[1].startswith("done in ")
    assert json.loads((tmp_path / "log.status.json").read_text())["state"] == "done"


def test_progress_ends_with_all_items_counted(caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    assert list(reporting.progress("abc", total=3, unit="updates")) == ["a", "b", "c"]
    assert caplog.messages[-1].startswith("3/3 updates") and caplog.messages[-1].endswith(" 0 s left")


def test_device_and_threads_come_from_the_spec():
    assert torch_setup.choose_device("cpu") == torch.device("cpu")
    assert torch_setup.choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(ValueError, match="'tpu'"):
        torch_setup.choose_device("tpu")
    torch.backends.cudnn.allow_tf32 = True
    torch_setup.set_threads(1)
    assert torch.get_num_threads() == 1 and torch.are_deterministic_algorithms_enabled()
    assert not torch.backends.cudnn.allow_tf32


def test_a_gpu_does_not_pay_for_deterministic_algorithms(monkeypatch):
    torch_setup.set_threads(1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    assert torch_setup.choose_device("cpu").type == "cpu" and torch.are_deterministic_algorithms_enabled()
    assert torch_setup.choose_device("auto").type == "cuda" and not torch.are_deterministic_algorithms_enabled()
    torch_setup.set_threads(1)


STAGE = """
import sys
from pathlib import Path
from dmd.jobs import job, reporting
from dmd.provenance import record

def run(*, output: Path) -> None:
    with record.writing(output):
        reporting.log("begun")
        sys.stdin.readline()
        output.write_text("whole")

job.main(run)
"""


@pytest.mark.parametrize("stopped", [True, False])
def test_a_job_that_waits_for_another_leaves_its_log_and_status_alone(tmp_path, stopped):
    log, output = tmp_path / "a.log", tmp_path / "artifact"
    command = [sys.executable, "-c", STAGE, "--output", str(output), "--log", str(log)]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def read_until(job: subprocess.Popen[str], words: str) -> None:
        assert job.stderr is not None
        assert any(words in line for line in job.stderr)

    with start() as first:
        read_until(first, "begun")
        with start() as second:
            read_until(second, "another process is writing")
            if stopped:
                second.terminate()
                second.communicate()
                assert second.returncode != 0
            first.communicate("\n")
    assert (first.returncode, output.read_text()) == (0, "whole") and (stopped or second.returncode == 0)
    lines = log.read_text()
    assert "\0" not in lines and "begun" in lines and "done in" in lines and "another process" not in lines
    assert json.loads(job_status.path_beside(log).read_text())["state"] == "done"
