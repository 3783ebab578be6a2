"""Files from outside: what is too large to be read at once is refused, and signals pass."""

import pytest

from dmd.jobs.signals import Stopped
from dmd.provenance import outside_files


@pytest.mark.parametrize("read", [outside_files.read_json, outside_files.read_text])
def test_text_that_is_too_large_is_refused_before_it_is_read(read, tmp_path):
    path = tmp_path / "a.json"
    with path.open("wb") as stream:
        stream.write(b"[")
        stream.truncate(outside_files.MAX_TEXT + 1)
    with pytest.raises(ValueError, match=f"{path} cannot be read .*: it has 268435457 bytes, more than 268435456$"):
        read(path)


def test_a_signal_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(Stopped, match="^by a signal$"), outside_files.reading(tmp_path / "a"):
        raise Stopped("by a signal")
