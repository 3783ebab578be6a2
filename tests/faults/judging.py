"""How a run with a fault ended, from what its commands said and what they left.

survived    after the way back all artifacts are equal, byte for byte, to those of the run that nothing disturbed
stopped     the rerun ended with a message: of altered bytes one that names the altered file; else that another
            process is writing, after whose end one more rerun makes them equal
wrong       a run said that all is well, but bytes differ
lost        everything else: another failure, a message that names another file, a traceback of a stage, missing files
"""

import re
from pathlib import Path

from tests.faults import chain
from tests.faults.fault import Fault

BUSY = "another process is writing"
_ERROR = re.compile(r"^(?:\d\d:\d\d:\d\d )?error(?: in process \d+ of \d+)?: .*$", re.MULTILINE)
_FRAME = re.compile(rf'^\s*File "{re.escape(str(chain.ROOT))}/dmd/.*$', re.MULTILINE)

Verdict = tuple[str, str]  # outcome and why


def of_run(fault: Fault, status: int, output: str, wanted: dict[str, str]) -> Verdict | None:
    """What is bad about the run that was struck, None where nothing is."""
    if (found := traceback(output)) and not fault.wordless:
        return "lost", f"a stage ended in a traceback: {found}"
    if status == 0 and (differing := _silent(fault, wanted)):
        return "wrong", f"the run itself said that all is well, but differing: {differing}"
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
        return compared(fault.folder, wanted, "survived")
    if (outcome := stopped(output, fault.altered)) != "busy":
        return outcome, output
    run.outlived()
    status, output = chain.make(fault.folder, "--cores", "2", chain.FID)  # it has ended, as the message asks
    said.append(output)
    return ("lost", output) if status else compared(fault.folder, wanted, "stopped")


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


def compared(folder: Path, wanted: dict[str, str], outcome: str) -> Verdict:
    """`outcome` if all artifacts are there and equal to those `wanted`, by relative path."""
    found = chain.digests(folder)
    if missing := sorted(set(wanted) - set(found)):
        return "lost", f"missing: {missing}"
    if differing := sorted(name for name in found if found[name] != wanted.get(name)):
        return "wrong", f"differing: {differing}"
    return outcome, ""


def _silent(fault: Fault, wanted: dict[str, str]) -> list[str]:
    """Artifacts that a run left others than they should be, although it succeeded; not the damaged files themselves."""
    altered = {str(path.relative_to("results")) for path in fault.altered}
    found = chain.digests(fault.folder)
    return [name for name in sorted({*wanted} - altered) if found.get(name) != wanted[name]]
