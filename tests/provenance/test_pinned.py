"""Files from outside are the ones their digests say, whole, in part or as first seen."""

import hashlib
import os
from pathlib import Path

import pytest

from dmd.provenance import pinned, record

DIGEST = hashlib.sha256(b"weights").hexdigest()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "weights.bin").write_bytes(b"weights")
    return tmp_path / "weights.bin"


def test_whole_digest_is_compared_and_leaves_no_record(path):
    assert pinned.check(path, DIGEST) == DIGEST
    assert list(path.parent.iterdir()) == [path]
    with pytest.raises(
        ValueError, match=f"weights.bin has sha256 {DIGEST}, but features.sha256 pins {'0' * 64} \\(from x"
    ):
        pinned.check(path, "0" * 64, key="features.sha256", source="from x")


@pytest.mark.parametrize("sha256", [None, DIGEST[:8]])
def test_digest_that_is_not_whole_is_recorded_at_first_use_and_may_not_change(path, sha256):
    assert pinned.check(path, sha256) == pinned.check(path, sha256) == DIGEST
    assert {each.name for each in path.parent.iterdir()} == {"weights.bin", ".weights.bin.json"}
    path.write_bytes(b"other weights")
    changed = "has changed: sha256 .*remove .*weights.bin.json" if sha256 is None else "pins .*\\.\\.\\."
    with pytest.raises(ValueError, match=changed):
        pinned.check(path, sha256)
    with pytest.raises(ValueError, match="has changed"):
        record.check_inputs(weights=path)
    record.sidecar(path).unlink()
    assert pinned.check(path, None) == hashlib.sha256(b"other weights").hexdigest()


def test_damaged_record_is_named_and_not_written_anew(path):
    pinned.check(path, None)
    side = record.sidecar(path)
    side.write_text(side.read_text().replace(DIGEST, DIGEST[::-1]))
    with pytest.raises(ValueError, match="weights.bin.json, the record of .*, is damaged: .*remove only the record"):
        pinned.check(path, None)
    assert pinned.check(path, DIGEST) == DIGEST


def test_change_behind_equal_first_digits_is_noticed(path):
    pinned.write_record(path, f"{DIGEST[:8]}{'0' * 56}", 7)
    with pytest.raises(ValueError, match="has changed"):
        pinned.check(path, DIGEST[:8])


def test_missing_file_is_named_with_what_is_known_of_it(tmp_path):
    with pytest.raises(ValueError, match="gone.bin is missing: put the file with sha256 01234567... there \\(from y"):
        pinned.check(tmp_path / "gone.bin", "01234567", source="from y")
    with pytest.raises(ValueError, match="is missing: put the file there$"):
        pinned.check(tmp_path / "gone.bin", None)


def test_place_that_takes_no_record_asks_for_the_whole_digest(path):
    record.sidecar(path).with_name(f".{path.name}.lock").mkdir()  # as good as a folder nobody may write to
    with pytest.raises(ValueError, match=f"cannot be recorded .*write all of it into here.sha256: {DIGEST}"):
        pinned.check(path, None, key="here.sha256")
    assert pinned.check(path, DIGEST) == DIGEST


def test_pipe_in_place_of_a_file_is_named_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.bin")
    with pytest.raises(ValueError, match="pipe.bin cannot be read: it is a named pipe$"):
        pinned.check(tmp_path / "pipe.bin", None)
