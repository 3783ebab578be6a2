"""Files from outside: what is too large to be read at once is refused, and signals pass."""

import json

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


VALUES = ["", "é\ud834\udd1e\n", -1, 2.5e-7, 10**30, True, None, [], {}, {"a": {"b": [1, [2]]}, "": "x"}]
ODD = "[NaN, -Infinity, 1E400]"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-32-be"])
def test_large_json_has_the_values_that_module_json_reads(tmp_path, encoding):
    """It is read by another decoder than a small one."""
    path = tmp_path / "a.json"
    text = json.dumps([[VALUES, {"pad": "x" * outside_files.AT_ONCE}]], ensure_ascii=encoding != "utf-8")
    path.write_bytes(text.encode(encoding, "surrogatepass"))
    assert outside_files.read_json(path) == json.loads(text)
    path.write_bytes(ODD.replace(",", f",{' ' * outside_files.AT_ONCE}").encode())
    assert repr(outside_files.read_json(path)) == repr(json.loads(ODD))


@pytest.mark.parametrize("text", ["[" * outside_files.AT_ONCE, "[1,]", '{"a": 1, "a"}', "[1] x", "'"])
def test_large_json_that_is_damaged_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "a.json").write_text(text + " " * (outside_files.AT_ONCE + 1))
    with pytest.raises(ValueError, match=f"^{tmp_path}/a.json cannot be read as JSON: .+$"):
        outside_files.read_json(tmp_path / "a.json")


@pytest.mark.parametrize("text", ["[],", '"":0,', "{},"])
def test_json_of_too_many_values_is_refused_before_it_is_parsed(tmp_path, text):
    (tmp_path / "a.json").write_text(f"[{text * outside_files.MAX_VALUES}0]")
    with pytest.raises(ValueError, match="a.json cannot be read as JSON: it has more than 8388608 values"):
        outside_files.read_json(tmp_path / "a.json")


def test_a_signal_is_no_fault_of_the_file(tmp_path):
    (tmp_path / "a").write_bytes(b"a")
    with pytest.raises(Stopped, match="^by a signal$"), outside_files.reading(tmp_path / "a"):
        raise Stopped("by a signal")
