"""The fault campaign: python -m tests.faults --runs 100 --seed 0

Every run takes a finished chain back to a random stage, lets it go on, strikes it with one fault at a random moment,
takes the way back that README tells, and compares all artifacts with those of the run that nothing disturbed:

survived    they are equal, byte for byte
stopped     the rerun ends with a message that names the damaged file, or the process that is in its way
lost        the rerun fails otherwise, or artifacts are missing
wrong       the rerun says that all is well, but bytes differ

Exit status 1: something was lost or wrong. Everything lies in one temporary folder, which is removed with its mounts;
--keep leaves the folders of runs that were lost or wrong. --output FILE writes the figures as JSON.
"""

import argparse
import contextlib
import json
import os
import platform
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tests.faults import chain
from tests.faults.kinds import KINDS, Damage, Fault

OUTCOMES = ("survived", "stopped", "lost", "wrong")
CAUSES = ("another process is writing", "is damaged", "is truncated", "truncated?", "is missing", "cannot be read")


def main() -> None:
    """Command line: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100, help="faults that struck")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", help="only faults whose name has this in it")
    parser.add_argument("--first", type=int, default=0, help="number of the first run: with --runs 1 just that one")
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
        report = _campaign(folder, kinds, parsed)
    finally:
        if not parsed.keep:
            shutil.rmtree(folder, ignore_errors=True)
    if parsed.output is not None:
        parsed.output.write_text(json.dumps(report, indent=1) + "\n")
    _print(report)
    sys.exit(1 if report["all"]["lost"] + report["all"]["wrong"] else 0)


def _campaign(folder: Path, kinds: list[Any], parsed: argparse.Namespace) -> dict[str, Any]:
    """All runs: their outcomes by kind, and each run."""
    began = time.monotonic()
    whole = folder / "undisturbed"
    whole.mkdir()
    chain.configure(whole)
    status, output = chain.make(whole, "--cores", "2", chain.FID)
    if status:
        sys.exit(f"the chain itself fails:\n{output}")
    wanted = chain.digests(whole)
    print(f"seed {parsed.seed}, {len(wanted)} files compared, undisturbed run {time.monotonic() - began:.0f} s")
    runs: list[dict[str, Any]] = []

    def one(number: int) -> dict[str, Any]:
        with _locked(parsed.lock):
            return _run(folder / f"run-{number}", whole, wanted, number, kinds[number % len(kinds)], parsed)

    with ThreadPoolExecutor(parsed.at_once) as pool:
        while sum(run["struck"] for run in runs) < parsed.runs and len(runs) < 3 * parsed.runs:
            begin = parsed.first + len(runs)
            runs += pool.map(one, range(begin, begin + parsed.at_once))
    counted = [run for run in runs if run["struck"]]
    by_kind = {kind.name: _counts([run for run in counted if run["kind"] == kind.name]) for kind in kinds}
    machine = f"{platform.machine()}, {os.cpu_count()} CPU cores, Linux {platform.release().split('-')[0]}"
    report = {"seed": parsed.seed, "machine": machine, "python": platform.python_version()}
    report |= {"minutes": round((time.monotonic() - began) / 60, 1), "all": _counts(counted), "kinds": by_kind}
    return report | {"missed": len(runs) - len(counted), "runs": runs}


@contextlib.contextmanager
def _locked(path: Path | None) -> Any:
    import fcntl

    if path is None:
        yield
        return
    with open(path) as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        yield


def _run(
    folder: Path, whole: Path, wanted: dict[str, str], number: int, kind: Any, parsed: argparse.Namespace
) -> dict[str, Any]:
    """One run with one fault: what was done and how it ended. A fault that came too late did not strike."""
    chosen = random.Random(f"{parsed.seed} {number}")
    stages = [name for name in chain.STAGES if name != "teacher" or not issubclass(kind, Damage)]
    stage = chosen.choices(stages, [chain.STAGES[name].weight for name in stages])[0]
    shutil.copytree(whole, folder, symlinks=True, ignore=shutil.ignore_patterns("said-*"))
    chain.forget(folder, stage)
    fault, began = kind(folder, chosen, whole), time.monotonic()
    fault.skipped = chosen.randrange(max(1, chain.STAGES[stage].jobs - 1))
    run, struck, outcome, why = None, False, "lost", ""
    try:
        fault.prepare()
        run = chain.Run(folder, "--cores", "2", chain.FID, environment=fault.environment)
        struck = fault.strike(run)
        status = run.ended()
        first = run.output
        silent = _silent(folder, fault, wanted) if status == 0 else []
        if fault.unlock and chosen.random() < 0.5:
            run.outlived()  # the other half meets the job that goes on
        fault.recover()
        outcome, why = _returned(folder, fault, wanted, run)
        if silent:
            outcome, why = "wrong", f"the run itself said that all is well, but differing: {silent}"
    except (RuntimeError, AssertionError) as error:
        why, status, first = str(error), -1, ""
    finally:
        if run is not None:
            run.kill()
        fault.recover()
    entry = {"number": number, "kind": kind.name, "from": stage, "told": fault.told, "struck": struck}
    entry |= {"outcome": outcome, "why": why[-600:], "status": status, "traceback": "Traceback" in first}
    line = f"{number:4} {kind.name:22} from {stage:9} {fault.told[:60]:60} {outcome if struck else 'missed'}"
    more = f"  {why[-200:]}" if outcome in ("lost", "wrong") else ""
    print(f"{line}  {time.monotonic() - began:.0f} s{more}", flush=True)
    if not (parsed.keep and outcome in ("lost", "wrong")):
        shutil.rmtree(folder)
    return entry


def _returned(folder: Path, fault: Fault, wanted: dict[str, str], run: chain.Run) -> tuple[str, str]:
    """The way back, and what is there at its end."""
    if fault.unlock:
        status, output = chain.make(folder, "--unlock")
        if status:
            return "lost", f"--unlock: {output}"
    if fault.altered:
        status, output = chain.verify(folder)
        if status == 2:
            return "lost", f"verify: {output}"
    status, output = chain.make(folder, "--cores", "2", chain.FID)
    if status:
        named = [line for line in output.splitlines() if " error: " in line or line.startswith("error: ")]
        if not any(cause in line for line in named for cause in CAUSES) or "Traceback" in output:
            return "lost", output
        run.outlived()
        if "another process is writing" not in output:
            return "stopped", named[-1]
        status, output = chain.make(folder, "--cores", "2", chain.FID)  # it has ended, as the message asks
        if status:
            return "lost", output
        return _compared(folder, wanted, "stopped")
    return _compared(folder, wanted, "survived")


def _compared(folder: Path, wanted: dict[str, str], outcome: str) -> tuple[str, str]:
    found = chain.digests(folder)
    if missing := sorted(set(wanted) - set(found)):
        return "lost", f"missing: {missing}"
    if differing := sorted(name for name in found if found[name] != wanted.get(name)):
        return "wrong", f"differing: {differing}"
    return outcome, ""


def _silent(folder: Path, fault: Fault, wanted: dict[str, str]) -> list[str]:
    """Artifacts that a run left others than they should be, although it succeeded; not the damaged files themselves."""
    altered = {str(path.relative_to("results")) for path in fault.altered}
    found = chain.digests(folder)
    return [name for name in sorted({*wanted} - altered) if found.get(name) != wanted[name]]


def _counts(runs: list[dict[str, Any]]) -> dict[str, int]:
    found = Counter(run["outcome"] for run in runs)
    ended = sum(run["status"] != 0 for run in runs)
    return {"tried": len(runs), "ended the run": ended} | {name: found[name] for name in OUTCOMES}


def _print(report: dict[str, Any]) -> None:
    print(f"\nseed {report['seed']}, {report['machine']}, {report['minutes']} min, {report['missed']} came too late")
    names = list(report["all"])
    print(f"| fault | {' | '.join(names)} |\n|---{'|---:' * len(names)}|")
    for name, counts in {**report["kinds"], "all": report["all"]}.items():
        print(f"| {name} | {' | '.join(str(counts[each]) for each in names)} |")


if __name__ == "__main__":
    main()
