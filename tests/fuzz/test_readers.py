"""Damaged files are read or refused with a message; more of them: `make fuzz CASES=3000`."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CASES = int(os.environ.get("DMD_FUZZ_CASES", "50"))
READERS = 24


def test_every_reader_reads_or_refuses_with_a_message(tmp_path: Path):
    line = [sys.executable, "-m", "tests.fuzz", "--cases", str(CASES), "--report", str(tmp_path / "report.json")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    answer = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = json.loads((tmp_path / "report.json").read_text())["readers"]
    assert len(found) == READERS
    for name, counts in found.items():
        assert counts["failed"] == 0 and counts["read"] + counts["refused"] == CASES, name
    assert sum(counts["read"] for counts in found.values()) > CASES
    assert sum(counts["refused"] > 0 for counts in found.values()) > READERS - 4  # checkpoints and records are ignored
