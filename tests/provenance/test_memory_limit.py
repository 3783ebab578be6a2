"""Numbers that were computed where memory was tight are not written: libraries do without it, and round otherwise."""

import subprocess
import sys
from pathlib import Path

import pytest

from dmd.provenance import memory_limit

pytestmark = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="no /proc here")

WORK = """
import mmap, resource, sys
from pathlib import Path
from dmd.provenance import memory_limit, record

KINDS = {{"VmSize": resource.RLIMIT_AS, "VmData": resource.RLIMIT_DATA}}

def limit(name, more):
    now = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name + ":"))
    resource.setrlimit(KINDS[name], ((now << 10) + more, resource.RLIM_INFINITY))

def pass_by(size):
    mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS).close()

{work}
with record.publish(Path(sys.argv[1]), stage="evaluate", inputs={{}}) as temporary:
    temporary.write_text("numbers")
"""
MARGIN = memory_limit.MARGIN


def publish(path: Path, work: str) -> str:
    """What a process says that publishes a file after some `work`."""
    line = [sys.executable, "-c", WORK.format(work=work), str(path)]
    return subprocess.run(line, capture_output=True, text=True).stderr


@pytest.mark.parametrize("name", ["VmSize", "VmData"])
@pytest.mark.parametrize(
    ("work", "written"),
    [
        ("limit({name!r}, {margin} * 3)", True),
        ("limit({name!r}, {margin} * 3); pass_by({margin})", True),
        ("limit({name!r}, {margin} // 2)", False),
        ("limit({name!r}, {margin} * 3); pass_by({margin} * 5 // 2)", False),  # was tight for a moment
    ],
)
def test_nothing_is_written_once_a_limit_of_memory_was_near(tmp_path: Path, name: str, work: str, written: bool):
    stderr = publish(tmp_path / "scores.json", work.format(name=name, margin=MARGIN))
    assert written or "MemoryError: the process came within 128 MiB of its limit" in stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".scores.json.json", "scores.json"] * written, stderr


def test_without_a_limit_nothing_is_tight(tmp_path: Path):
    work = "pass_by({margin} * 9); assert memory_limit.bytes_left() is None and not memory_limit.tight()"
    assert publish(tmp_path / "scores.json", work.format(margin=MARGIN)) == ""
    assert (tmp_path / "scores.json").exists()
