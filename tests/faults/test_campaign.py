"""The campaign sees what it is there to see, and counts it: what is missing or differs, what messages do not say."""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.faults import __main__ as campaign
from tests.faults import chain, judging, report
from tests.faults.chain import Times
from tests.faults.disks import FlippedByte
from tests.faults.fault import AFTER, BEFORE, BETWEEN, DURING, Fault
from tests.faults.kinds import KINDS, Twice
from tests.faults.memory import AddressSpace

MADE = {
    "teacher": ["teacher/denoiser.safetensors", "teacher/.denoiser.safetensors.json"],
    "reference": ["reference/reference.safetensors"],
    "pairs": ["pairs/00000.tar", "pairs/.00000.tar.json", "pairs/blocks/00000-00001.parquet"],
    "manifest": ["pairs/manifest.parquet", "pairs/.manifest.parquet.json"],
    "distill": ["distill/generator.safetensors"],
    "sample": ["samples/00000.tar"],
    "features": ["features/00000-00003.safetensors"],
    "evaluate": ["fid.json", ".fid.json.json"],
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder with a file of each kind that the chain makes, and a log."""
    for name in [*sum(MADE.values(), []), "logs/teacher.log"]:
        path = tmp_path / "whole/results" / chain.NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "whole"


def left(folder: Path) -> set[str]:
    return {name.removeprefix(f"{chain.NAME}/") for name in chain.digests(folder)}


@pytest.mark.parametrize("stage", chain.STAGES)
def test_chain_is_taken_back_to_a_stage_and_what_follows_it(whole: Path, stage: str):
    names = list(MADE)
    gone = {stage, *names[names.index("features" if stage == "reference" else stage) :]}
    gone -= {"reference"} - {stage}
    assert left(whole) == set(sum(MADE.values(), []))
    chain.forget(whole, stage)
    assert left(whole) == set(sum((MADE[name] for name in names if name not in gone), []))


def test_missing_is_lost_and_differing_is_wrong(whole: Path, tmp_path: Path):
    wanted = chain.digests(whole)
    for change, outcome in ((Path.unlink, "lost"), (lambda path: path.write_text("other"), "wrong")):
        shutil.copytree(whole, tmp_path / outcome)
        fault = struck(KINDS[0], tmp_path / outcome, whole)
        assert judging.compared(fault, wanted, "survived") == ("survived", "")
        change(tmp_path / outcome / "results" / chain.NAME / "samples/00000.tar")
        found, why = judging.compared(fault, wanted, "survived")
        assert found == outcome and "samples/00000.tar" in why
    (tmp_path / "wrong/results" / chain.NAME / "pairs" / ".tmp-00001.tar").touch()
    found, why = judging.compared(fault, wanted, "survived")
    assert found == "wrong" and "differing: 2 files" in why  # what is left over counts, too


def test_what_was_made_first_is_told_first_and_where_it_differs(whole: Path, tmp_path: Path):
    (whole / "results/points/fid.json").write_text('{"value": 1.5, "num": 3}')
    shutil.copytree(whole, tmp_path / "other")
    tar, score = (tmp_path / "other/results/points" / name for name in ("samples/00000.tar", "fid.json"))
    score.write_text('{"value": 1.25, "num": 3}')
    fault, wanted = struck(KINDS[0], tmp_path / "other", whole), chain.digests(whole)
    assert judging.compared(fault, wanted, "survived") == (
        "wrong",
        "differing: 1 files, first points/fid.json; value: 1.25, should be 1.5",
    )
    tar.write_text("samples/000x0.tar!")
    os.utime(tar, (1, 1))
    found, why = judging.compared(fault, wanted, "survived")
    assert why == (
        "differing: 2 files, first points/samples/00000.tar, then points/fid.json; "
        "18 bytes, should be 17; 1 of them differ, first byte 11"
    )


def test_every_fault_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS) == 14 and all(kind.name for kind in KINDS)


TAR, RECORD = Path("results/points/pairs/00000.tar"), Path("results/points/pairs/.00000.tar.json")
DAMAGED = "09:00:00 error: results/points/pairs/00000.tar is damaged: sha256 a but b was recorded\n"
BUSY = "09:00:00 error: another process is writing results/points/pairs/00000.tar: wait for it or stop it\n"
FRAME = f'Traceback (most recent call last):\n  File "{chain.ROOT}/dmd/stages/pairs.py", line 9, in run\n'
OTHERS = 'Traceback (most recent call last):\n  File "/site-packages/snakemake/cli.py", line 9, in main\n'


@pytest.mark.parametrize(
    ("output", "altered", "outcome"),
    [
        (DAMAGED, [TAR], "stopped"),
        (DAMAGED, [RECORD], "stopped"),
        (DAMAGED, [Path("results/points/samples/00000.tar")], "lost"),
        (DAMAGED.replace("00000.tar", "00000.tar.bak"), [TAR], "lost"),
        (DAMAGED.replace("error: ", ""), [TAR], "lost"),
        (DAMAGED + FRAME, [TAR], "lost"),
        (DAMAGED + OTHERS, [TAR], "stopped"),
        (DAMAGED, [], "lost"),
        (BUSY, [], "busy"),
        (BUSY, [RECORD.with_name("x")], "lost"),
        (BUSY + FRAME, [], "lost"),
        (BUSY + DAMAGED, [], "lost"),
        ("", [], "lost"),
    ],
)
def test_rerun_that_fails_is_lost_unless_its_message_names_what_is_altered(output, altered, outcome):
    assert judging.stopped(output, altered) == outcome


def struck(kind: type[Fault], folder: Path, whole: Path | None = None) -> Fault:
    return kind(folder, random.Random(0), whole or folder, {"pairs": Times(0.3, 0.4)})


def test_run_that_was_struck_may_not_trace_back_nor_succeed_with_other_bytes(whole: Path):
    wanted, fault = chain.digests(whole), struck(KINDS[0], whole)
    assert judging.of_run(fault, 0, "", wanted) is None and judging.of_run(fault, 1, OTHERS, wanted) is None
    assert judging.of_run(fault, 1, FRAME, wanted)[0] == "lost"
    (whole / "results/points/samples/00000.tar").write_text("other")
    assert judging.of_run(fault, 1, "", wanted) is None
    assert judging.of_run(fault, 0, "", wanted)[0] == "wrong"


REMOVED = "Removing output files of failed job evaluate since they might be corrupted:\nresults/points/fid.json, {}\n"


def test_run_that_succeeded_may_lack_only_what_another_said_that_it_removed(whole: Path):
    wanted, fault = chain.digests(whole), struck(Twice, whole)
    (whole / "results/points/fid.json").unlink()
    assert judging.of_run(fault, 0, "", wanted) == (
        "lost",
        "the run itself said that all is well, but missing: ['points/fid.json']",
    )
    fault.beside = REMOVED.format("results/points/kid.json")
    assert judging.of_run(fault, 0, "", wanted) is None
    (whole / "results/points/samples/00000.tar").unlink()
    assert judging.of_run(fault, 0, "", wanted)[0] == "lost"
    (whole / "results/points/features/00000-00003.safetensors").write_text("other")
    assert judging.of_run(fault, 0, "", wanted)[0] == "wrong"


def test_traceback_is_excused_only_while_a_stage_loads_in_too_small_an_address_space(whole: Path):
    fault = struck(AddressSpace, whole)
    for fault.when, bad in ((BEFORE, False), (DURING, True), (AFTER, True)):
        assert bool(judging.of_run(fault, 1, FRAME, chain.digests(whole))) == bad


def test_run_that_meets_altered_bytes_must_name_them(whole: Path):
    wanted, fault = chain.digests(whole), struck(FlippedByte, whole)
    fault.prepare()
    path = fault.altered[0]
    name = str(path.with_name(path.name[1:-5]) if path.name.startswith(".") else path)
    assert chain.digests(whole) != wanted and fault.when == BETWEEN
    assert judging.of_run(fault, 1, f"09:00:00 error: {name} is damaged: ...", wanted) is None
    assert judging.of_run(fault, 1, "09:00:00 error: other.tar is damaged: ...", wanted)[0] == "lost"
    assert judging.of_run(fault, 0, "", wanted) is None  # nothing read it


def run(number: int, **changed) -> dict:
    first = {"number": number, "kind": "a", "struck": True, "outcome": "survived", "when": DURING}
    return first | {"status": 1, "continued": None} | changed


def test_what_is_lost_or_wrong_counts_though_nothing_struck():
    runs = [run(0), run(1, struck=False), run(2, struck=False, outcome="lost"), run(3, kind="b", continued=20)]
    runs.append(run(4, struck=False, outcome="wrong", status=0, when=AFTER))
    found = report.figures(runs, ["a", "b"])
    assert found["missed"] == 1 and found["all"]["tried"] == 4 and found["all"]["ended the run"] == 3
    assert {name: found["all"][name] for name in report.OUTCOMES} == {
        "survived": 2,
        "stopped": 0,
        "lost": 1,
        "wrong": 1,
    }
    assert found["all"][DURING] == 3 and found["all"][AFTER] == found["all"]["continued"] == 1
    assert (found["kinds"]["a"]["tried"], found["kinds"]["b"]["tried"]) == (3, 1)


class Broken(Fault):
    """Something of the campaign itself, or of the machine, that nobody thought of."""

    name = "broken"

    def prepare(self) -> None:
        raise KeyError("unforeseen")

    def strike(self, run: chain.Run) -> bool:
        return False


@pytest.mark.parametrize("at_once", [1, 3])
def test_whatever_is_raised_loses_one_run_and_leaves_the_others(whole: Path, tmp_path: Path, at_once: int):
    output = tmp_path / "faults.json"
    parsed = argparse.Namespace(seed=3, runs=5, first=2, again=None, at_once=at_once, output=output)
    vars(parsed).update(lock=None, keep=False)
    state = campaign.Whole(whole, chain.digests(whole), {})
    found = campaign.Campaign(parsed, [Broken], state).all()
    assert found["all"]["tried"] == found["all"]["lost"] == len(found["runs"]) >= 5
    assert all("KeyError: 'unforeseen'" in each["why"] and not each["struck"] for each in found["runs"])
    assert [each["number"] for each in found["runs"]] == list(range(2, 2 + len(found["runs"])))
    assert json.loads(output.read_text())["runs"] == found["runs"]
    parsed.again = [3]
    again = campaign.Campaign(parsed, [Broken], state).all()
    assert [each["number"] for each in again["runs"]] == [each["number"] for each in found["runs"]]


class Interrupted(Broken):
    """The tenth run brings an interrupt with it."""

    name = "interrupted"

    def prepare(self) -> None:
        if self.folder.name == "run-10":
            raise KeyboardInterrupt
        super().prepare()


def test_interrupt_lets_no_further_run_begin(whole: Path, tmp_path: Path):
    parsed = argparse.Namespace(seed=3, runs=500, first=0, again=None, at_once=2, output=None, lock=None, keep=False)
    state = campaign.Campaign(parsed, [Interrupted], campaign.Whole(whole, chain.digests(whole), {}))
    with pytest.raises(KeyboardInterrupt):
        state.all()
    assert 9 <= len(state.runs) < 100 and 10 not in state.runs


WORKING = """
import sys, time
time.sleep(0.4)
open(sys.argv[-1], "w").write("09:00:00 works")
time.sleep(60)
"""


def test_faults_strike_before_and_after_the_log_of_a_stage_is_there(tmp_path: Path):
    """Stands in for a stage: a process that opens its log after a while and then works for long."""
    found = []
    for seed in range(6):
        log = tmp_path / f"logs-{seed}" / "pairs.log"
        log.parent.mkdir()
        fault = struck(KINDS[0], tmp_path)
        fault.chosen = random.Random(seed)
        with subprocess.Popen([sys.executable, "-c", WORKING, "--log", str(log)]) as process:
            try:
                began = time.monotonic()
                fault._wait(psutil.Process(process.pid), log)
                fault._note(log)
                found.append((fault.when, log.exists()))
                assert time.monotonic() - began < 30
            finally:
                process.kill()
    assert set(found) == {(BEFORE, False), (DURING, True)} and found.count((DURING, True)) > 2
    log.write_text("09:00:01 done in 0.1 s")
    fault._note(log)
    assert fault.when == AFTER
