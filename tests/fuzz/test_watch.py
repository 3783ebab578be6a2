"""The watch over readers sees what it is there to see: each in a process of its own, since an audit lasts."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAME = """
import os, pathlib, pickle, socket, subprocess, sys, tempfile
from tests.fuzz import guard
guard.SECONDS = {seconds}
watch = guard.Watch(pathlib.Path(tempfile.gettempdir()) / "scratch")
guard.limit_memory()
try:
    with watch.armed():
        try:
            {code}
        except Exception:
            pass
except (guard.Overstepped, MemoryError) as error:
    sys.exit(f"seen: {{type(error).__name__}} {{error}}")
"""


@pytest.mark.parametrize(
    ("code", "seen"),
    [
        ("os.system('true')", "os.system"),
        ("subprocess.run(['true'])", "subprocess.Popen|os.posix_spawn|os.fork"),
        ("exec('1 + 1')", "exec"),
        ("eval('1 + 1')", "exec"),
        ("pickle.loads(b'cos\\nsystem\\n.')", "pickle.find_class"),
        ("socket.create_connection(('127.0.0.1', 9))", "socket."),
        ("open(tempfile.gettempdir() + '/elsewhere', 'w')", "open"),
        ("for _ in range(10**12): len('')", "longer than"),
    ],
)
def test_watch_ends_what_no_reader_may_do(tmp_path: Path, code: str, seen: str):
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", FRAME.format(code=code, seconds=0.3 if "range" in code else 20)]
    answer = subprocess.run(line, capture_output=True, text=True, cwd=ROOT, env=environment)
    assert answer.returncode == 1 and "seen: Overstepped" in answer.stderr, answer.stderr
    assert any(word in answer.stderr for word in seen.split("|"))
    assert not (tmp_path / "elsewhere").exists()


def test_harmless_reading_passes_the_watch(tmp_path: Path):
    code = "open(__import__('sys').executable, 'rb').read(10)"
    environment = {"PATH": "/usr/bin:/bin", "TMPDIR": str(tmp_path), "PYTHONPATH": str(ROOT)}
    line = [sys.executable, "-c", FRAME.format(code=code, seconds=20)]
    assert subprocess.run(line, cwd=ROOT, env=environment).returncode == 0
