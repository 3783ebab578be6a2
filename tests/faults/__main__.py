"""The fault campaign: python -m tests.faults --runs 100 --seed 0

Every run takes a finished chain back to a random stage, lets it go on, strikes it with one fault at a random moment of
a stage (or, one in five, while a stage still loads), takes the way back of docs/outputs.md, and compares all artifacts
with those of the run that nothing disturbed: `judging` says what survived, stopped, lost and wrong mean.

Exit status 1: something was lost or wrong, whether the fault struck or not. Everything lies in one temporary folder,
which is removed with its mounts; --keep leaves the folders of runs that were lost or wrong. --output FILE holds the
figures as JSON after every run. --again NUMBER ... runs those once more and puts them in place of theirs in FILE.
"""

import argparse
import contextlib
import fcntl
import json
import os
import platform
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

from tests.faults import chain, judging, report
from tests.faults.disks import Damage
from tests.faults.fault import Fault
from tests.faults.kinds import KINDS


class Whole(NamedTuple):
    """The run that nothing disturbed: its folder, the digests of all its artifacts, the times of its stages."""

    folder: Path
    wanted: dict[str, str]
    times: Mapping[str, chain.Times]


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="faults that struck")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only faults whose name has this in it")
    parser.add_argument("--first", type=int, default=0, help="number of the first run")
    parser.add_argument("--again", type=int, nargs="+", metavar="NUMBER", help="just these runs")
    parser.add_argument("--output", type=Path, help="figures as JSON")
    parser.add_argument("--at-once", type=int, default=1, help="runs at a time")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--lock", type=Path, help="a file that is locked (shared) during each run")
    parsed = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that mounts and processes end with this one
    kinds = [kind for kind in KINDS if (parsed.kind or "") in kind.name]
    for kind in [kind for kind in kinds if kind.missing()]:
        print(f"left out: {kind.name}: {kind.missing()}")
        kinds.remove(kind)
    folder = Path(tempfile.mkdtemp(prefix="dmd-faults-"))
    try:
        found = Campaign(parsed, kinds, _undisturbed(folder / "undisturbed", parsed.seed)).all()
    finally:
        if not parsed.keep:
            shutil.rmtree(folder, ignore_errors=True)
    report.show(found)
    sys.exit(1 if found["all"]["lost"] + found["all"]["wrong"] else 0)


def _undisturbed(folder: Path, seed: int) -> Whole:
    folder.mkdir()
    chain.configure(folder)
    began = time.monotonic()
    status, output = chain.make(folder, "--cores", "2", chain.FID)
    if status:
        sys.exit(f"the chain itself fails:\n{output}")
    whole = Whole(folder, chain.digests(folder), chain.times(folder))
    took = ", ".join(f"{name} {times.start:.1f}+{times.work:.1f}" for name, times in whole.times.items())
    print(f"seed {seed}, {len(whole.wanted)} files compared, undisturbed run {time.monotonic() - began:.0f} s: {took}")
    return whole


class Campaign:
    """Runs of one seed; several may go on at once."""

    def __init__(self, parsed: argparse.Namespace, kinds: list[type[Fault]], whole: Whole) -> None:
        self.parsed, self.kinds, self.whole = parsed, kinds, whole
        self.runs: dict[int, dict[str, Any]] = {}
        self.before, self.began, self.lock = 0.0, time.monotonic(), threading.Lock()
        self.over = False  # interrupted: runs that go on end, no other begins
        if parsed.again:
            kept = json.loads(parsed.output.read_text()) if parsed.output and parsed.output.exists() else {}
            self.runs = {run["number"]: run for run in kept.get("runs", []) if run["number"] not in parsed.again}
            self.before = kept.get("minutes", 0.0)

    def all(self) -> dict[str, Any]:
        """All runs: the report of them."""
        wanted, numbers = self.parsed.runs, iter(range(self.parsed.first, self.parsed.first + 3 * self.parsed.runs))
        if self.parsed.again:
            wanted, numbers = sys.maxsize, iter(self.parsed.again)

        def work() -> None:
            while True:
                with self.lock:
                    enough = sum(map(report.counts, self.runs.values())) >= wanted
                    number = None if enough or self.over else next(numbers, None)
                if number is None:
                    return
                with _locked(self.parsed.lock):
                    self._add(self.one(number))

        with ThreadPoolExecutor(self.parsed.at_once) as pool:
            try:
                for each in as_completed([pool.submit(work) for _ in range(self.parsed.at_once)]):
                    each.result()
            except BaseException:
                self.over = True
                raise
        return self._report()

    def _add(self, run: dict[str, Any]) -> None:
        with self.lock:
            self.runs[run["number"]] = run
            if self.parsed.output is not None:
                report.write(self.parsed.output, self._report())

    def _report(self) -> dict[str, Any]:
        machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, Linux {platform.release().split('-')[0]}"
        minutes = round(self.before + (time.monotonic() - self.began) / 60, 1)
        found = {"seed": self.parsed.seed, "machine": machine, "python": platform.python_version(), "minutes": minutes}
        runs = [self.runs[number] for number in sorted(self.runs)]
        return found | report.figures(runs, [kind.name for kind in self.kinds])

    def one(self, number: int) -> dict[str, Any]:
        """One run with one fault: what was done and how it ended."""
        began, folder = time.monotonic(), self.whole.folder.with_name(f"run-{number}")
        chosen, kind = random.Random(f"{self.parsed.seed} {number}"), self.kinds[number % len(self.kinds)]
        stages = [name for name in chain.STAGES if name != "teacher" or not issubclass(kind, Damage)]
        first = chosen.choices(stages, [chain.STAGES[name].weight for name in stages])[0]
        shutil.copytree(self.whole.folder, folder, symlinks=True, ignore=shutil.ignore_patterns("said-*"))
        chain.forget(folder, first)
        fault = kind(folder, chosen, self.whole.folder, self.whole.times)
        fault.skipped = chosen.randrange(max(1, chain.STAGES[first].jobs - 1))
        entry = {"number": number, "kind": kind.name, "from": first, "struck": False, "outcome": "lost", "why": ""}
        entry |= {"status": -1, "continued": None}
        _tried(fault, self.whole.wanted, entry)
        entry |= {"told": fault.told, "stage": fault.stage, "when": fault.when, "why": entry["why"][-1500:]}
        bad, seconds = entry["outcome"] in report.BAD, time.monotonic() - began
        outcome = entry["outcome"] if report.counts(entry) else "missed"
        place = f"{fault.stage} {fault.when}".strip()
        line = f"{number:4} {kind.name:22} from {first:9} {place:38} {fault.told[:60]:60} {outcome}  {seconds:.0f} s"
        print(f"{line}{'  ' + entry['why'][-1000:] if bad else ''}", flush=True)
        if not (self.parsed.keep and bad):
            shutil.rmtree(folder, ignore_errors=True)
        return entry


def _tried(fault: Fault, wanted: dict[str, str], entry: dict[str, Any]) -> None:
    """Strikes, goes the way back, and writes into `entry` how that ended; whatever is raised, the run is lost."""
    run, said = None, list[str]()
    try:
        fault.prepare()
        run = chain.Run(fault.folder, "--cores", "2", chain.FID, environment=fault.environment)
        entry["struck"] = fault.strike(run)
        entry["status"] = run.ended()
        bad = judging.of_run(fault, entry["status"], run.output, wanted)
        if fault.unlock and fault.chosen.random() < 0.5:
            run.outlived()  # the other half meets the job that goes on
        fault.recover()
        entry["outcome"], entry["why"] = judging.of_return(fault, wanted, run, said)
        if bad and entry["outcome"] != "wrong":
            entry["outcome"], entry["why"] = bad
        updates = re.findall(r"continuing at update (\d+)", "".join(said))
        entry["continued"] = int(updates[-1]) if updates else None
    except Exception:
        entry["outcome"], entry["why"] = "lost", traceback.format_exc()
    finally:
        with contextlib.suppress(Exception):  # what it raised above is told
            if run is not None:
                run.kill()
            fault.recover()


@contextlib.contextmanager
def _locked(path: Path | None) -> Iterator[None]:
    if path is None:
        yield
        return
    with open(path) as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


if __name__ == "__main__":
    main()
