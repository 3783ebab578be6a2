"""How a run with a fault ended, from what its commands said and what they left.

survived    after the way back all artifacts are equal, byte for byte, to those of the run that nothing disturbed
stopped     the rerun ended with a message: of altered bytes one that names the altered file; else that another
            process is writing, after whose end one more rerun makes them equal
wrong       a run said that all is well, but bytes differ
lost        everything else: another failure, a message that names another file, a traceback of a stage, missing files

A run that said that all is well may lack what another run, which failed beside it, said that it removed.
"""

import contextlib
import json
import re
from pathlib import Path

from tests.faults import chain
from tests.faults.fault import Fault

BUSY = "another process is writing"
_ERROR = re.compile(r"^(?:\d\d:\d\d:\d\d )?error(?: in process \d+ of \d+)?: .*$", re.MULTILINE)
_REMOVED = re.compile(r"^Removing output files of failed job .*:\n(.*)$", re.MULTILINE)
_FRAME = re.compile(rf'^\s*File "{re.escape(str(chain.ROOT))}/dmd/.*$', re.MULTILINE)

Verdict = tuple[str, str]  # outcome and why


def of_run(fault: Fault, status: int, output: str, wanted: dict[str, str]) -> Verdict | None:
    """What is bad about the run that was struck, None where nothing is."""
    if (found := traceback(output)) and not fault.wordless:
        return "lost", f"a stage ended in a traceback: {found}"
    if status == 0 and (bad := _silent(fault, wanted)):
        return bad
    if status and fault.altered and not named(output, fault.altered):
        return "lost", f"no message names {fault.altered[0]}: {output[-600:]}"
    return None


def of_return(fault: Fault, wanted: dict[str, str], run: chain.Run, said: list[str]) -> Verdict:
    """The way back and what is there at its end; what the commands say is appended to `said`."""
    if fault.unlock:
        status, output = chain.make(fault.folder, "--unlock")
        if status:
            return "lost", f"--unlock: {output}"
    if fault.altered:
        status, output = chain.verify(fault.folder)
        if status == 2 or (status == 1 and not any(_mentions(output, path) for path in fault.altered)):
            return "lost", f"verify: {output}"
    status, output = chain.make(fault.folder, "--cores", "2", chain.FID)
    said.append(output)
    if not status:
        return compared(fault, wanted, "survived")
    if (outcome := stopped(output, fault.altered)) != "busy":
        return outcome, output
    run.outlived()
    status, output = chain.make(fault.folder, "--cores", "2", chain.FID)  # it has ended, as the message asks
    said.append(output)
    return ("lost", output) if status else compared(fault, wanted, "stopped")


def stopped(output: str, altered: list[Path]) -> str:
    """What a rerun that failed is: "stopped", "lost", or "busy" where another process is in its way."""
    if traceback(output):
        return "lost"
    if altered:
        return "stopped" if named(output, altered) else "lost"
    messages = _ERROR.findall(output)
    return "busy" if messages and all(BUSY in message for message in messages) else "lost"


def traceback(output: str) -> str:
    """The innermost line of ours in a traceback of a stage, nothing where there is none; Snakemake may print others."""
    return (_FRAME.findall(output) or [""])[-1].strip()


def named(output: str, altered: list[Path]) -> bool:
    """Whether a message of a stage names an altered file, or the artifact whose record was altered."""
    return any(_mentions(message, path) for message in _ERROR.findall(output) for path in altered)


def _mentions(text: str, path: Path) -> bool:
    names = [str(path)]
    if path.name.startswith(".") and path.suffix == ".json":
        names.append(str(path.with_name(path.name[1:-5])))
    return any(re.search(rf"(?<![\w./]){re.escape(name)}(?![\w/-]|\.\w)", text) for name in names)


def compared(fault: Fault, wanted: dict[str, str], outcome: str) -> Verdict:
    """`outcome` if all artifacts are there and equal to those `wanted`, by relative path."""
    found = chain.digests(fault.folder)
    if missing := sorted(set(wanted) - set(found)):
        return "lost", f"missing: {missing}"
    if differing := [name for name in found if found[name] != wanted.get(name)]:
        return "wrong", differences(fault, differing)
    return outcome, ""


def _silent(fault: Fault, wanted: dict[str, str]) -> Verdict | None:
    """What is bad about the artifacts of a run that succeeded, the damaged files themselves apart."""
    found, altered = chain.digests(fault.folder), {str(path.relative_to("results")) for path in fault.altered}
    if differing := [name for name in found if name in {*wanted} - altered and found[name] != wanted[name]]:
        return "wrong", f"the run itself said that all is well, but {differences(fault, differing)}"
    removed = {name.removeprefix("results/") for line in _REMOVED.findall(fault.beside) for name in line.split(", ")}
    if missing := sorted({*wanted} - altered - removed - {*found}):
        return "lost", f"the run itself said that all is well, but missing: {missing}"
    return None


def differences(fault: Fault, names: list[str]) -> str:
    """How many files differ, which of them were made first, and where the first one differs from the one it should be.

    What a stage made wrong comes before what later stages made of it.
    """
    first, *others = sorted(names, key=lambda name: ((fault.folder / "results" / name).stat().st_mtime_ns, name))
    after = f", then {', '.join(others[:5])}" if others else ""
    return f"differing: {len(names)} files, first {first}{after}; {_difference(fault, first)}"


def _difference(fault: Fault, name: str) -> str:
    ours, should = fault.folder / "results" / name, fault.whole / "results" / name
    if not should.exists():
        return "it should not be there"
    left, right = ours.read_bytes(), should.read_bytes()
    with contextlib.suppress(ValueError, AttributeError):  # no JSON, or no object
        one, other = json.loads(left), json.loads(right)
        keys = [key for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
        return "; ".join(f"{key}: {one.get(key)!r:.80}, should be {other.get(key)!r:.80}" for key in keys[:3])
    places = [place for place, (a, b) in enumerate(zip(left, right, strict=False)) if a != b]
    sizes = f"{len(left)} bytes, should be {len(right)}"
    return f"{sizes}; {len(places)} of them differ" + (f", first byte {places[0]}" if places else "")
