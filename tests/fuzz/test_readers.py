"""Damaged files are read or refused with a message; more of them: `make fuzz CASES=3000`."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz.readers import READERS

ROOT = Path(__file__).resolve().parents[2]
CASES = int(os.environ.get("DMD_FUZZ_CASES", "25"))
OPENERS = re.compile(r"outside_files\.(reading|read_json|read_text|check)\(|tensor_files\.(read|opened)\(")
OUTSIDE, HOSTILE = 24, 40  # readers of files from outside, and at least so many hostile files for each


def openers() -> set[str]:
    """Modules of the package that open files from outside."""
    modules = {str(path.relative_to(ROOT / "dmd")): path.read_text() for path in (ROOT / "dmd").rglob("*.py")}
    return {name for name, text in modules.items() if OPENERS.search(text)}


def test_every_reader_reads_or_refuses_with_a_message(tmp_path: Path):
    line = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--report", str(tmp_path / "report.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    answer = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "report.json").read_text())["readers"]
    for name, counts in found.items():
        assert counts["failed"] == 0 and counts["read"] + counts["refused"] == CASES, name
        assert counts["hostile failed"] == 0 and counts["hostile"] >= HOSTILE, name
    assert sum(counts["read"] for counts in found.values()) > CASES
    assert sum(counts["refused"] > 0 for counts in found.values()) > len(found) - 4  # checkpoints, records are ignored
    modules = set(json.loads((tmp_path / "report.json").read_text())["modules"])
    assert len(openers()) > 10 and not openers() - modules, "a module opens files from outside, but has no Reader"


def test_readers_of_files_from_outside_are_marked():
    assert sum(reader.outside for reader in READERS.values()) == OUTSIDE
