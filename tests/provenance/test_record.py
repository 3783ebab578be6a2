"""Records find damage; a second writer is refused."""

import itertools
import json
import subprocess
import sys

import pytest

from dmd.config.rule_table import VERSIONS
from dmd.provenance import files, record


@pytest.fixture
def artifact(tmp_path):
    path = tmp_path / "deep" / "artifact.json"
    with record.publish(path, stage="evaluate", inputs={"reference": {"r.safetensors": "ab"}}) as temporary:
        temporary.write_text("some content")
    return path


def flip(path, index: int = 3) -> None:
    content = bytearray(path.read_bytes())
    content[index] ^= 1
    path.write_bytes(content)


def test_record_says_what_the_artifact_is_and_what_it_was_made_from(artifact):
    assert record.read(artifact) == {
        "sha256": files.sha256(artifact),
        "size": 12,
        "stage": "evaluate",
        "version": VERSIONS["evaluate"],
        "inputs": {"r.safetensors": "ab"},
    }
    assert sorted(path.name for path in artifact.parent.iterdir()) == [".artifact.json.json", "artifact.json"]


def test_check_returns_the_digest_of_a_whole_file_with_or_without_record(artifact):
    assert record.check(artifact) == files.sha256(artifact)
    record.sidecar(artifact).unlink()
    assert record.check(artifact) == files.sha256(artifact)


def test_check_names_a_flipped_truncated_and_missing_file(artifact):
    content = artifact.read_bytes()
    flip(artifact)
    with pytest.raises(ValueError, match=f"{artifact} is damaged"):
        record.check(artifact)
    artifact.write_bytes(content[:-1])
    with pytest.raises(ValueError, match=f"{artifact} is damaged"):
        record.check(artifact)
    artifact.unlink()
    with pytest.raises(ValueError, match=f"{artifact} is missing"):
        record.check(artifact)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", "1.5", "[" * 100_000, "\udcff"])
def test_a_damaged_record_counts_as_none(artifact, text):
    record.sidecar(artifact).write_bytes(text.encode(errors="surrogateescape"))
    assert record.read(artifact) is None


def test_a_record_in_which_any_bit_flipped_is_damaged_and_so_is_what_it_is_of(artifact):
    side = record.sidecar(artifact)
    text, entry = side.read_bytes(), record.read(artifact)
    assert record.parse(text) == entry
    for index, bit in itertools.product(range(len(text)), range(8)):
        flipped = bytearray(text)
        flipped[index] ^= 1 << bit
        assert record.parse(bytes(flipped)) is None, bytes(flipped)
    side.write_bytes(text.replace(b"evaluate", b"evaluade"))
    with pytest.raises(ValueError, match=f"{side}, the record of {artifact}, is damaged: run `make verify`"):
        record.check(artifact)


def test_a_record_without_a_digest_of_itself_or_with_an_unknown_key_is_damaged(artifact):
    side, entry = record.sidecar(artifact), record.read(artifact)
    side.write_text(files.canonical_json(entry) + "\n")
    assert record.read(artifact) is None
    record.write(artifact, {**entry, "other": "0"})
    assert record.read(artifact) is None
    record.write(artifact, entry)
    assert record.read(artifact) == entry


def test_check_inputs_groups_digests_by_name_and_names_the_damaged_one(artifact, tmp_path):
    other = tmp_path / "other"
    other.write_text("x")
    digests = {str(path): files.sha256(path) for path in (artifact, other)}
    assert record.check_inputs(one=other, many=[artifact, other], none=None) == {
        "one": {str(other): digests[str(other)]},
        "many": digests,
    }
    flip(artifact)
    with pytest.raises(ValueError, match=str(artifact)):
        record.check_inputs(many=[other, artifact])


def test_provenance_holds_digests_but_no_paths():
    inputs = {"teacher": {"/a/t": "1"}, "blocks": {"/a/1": "3", "/a/0": "2"}}
    metadata = record.provenance("pairs", {"steps": 18}, inputs)
    assert metadata["inputs"] == {"teacher": "1", "blocks": ["2", "3"]}
    assert (metadata["stage"], metadata["version"], metadata["spec"]) == ("pairs", VERSIONS["pairs"], {"steps": 18})
    assert "/a" not in json.dumps(metadata)


def test_a_failed_publish_keeps_artifact_and_record(artifact):
    before = record.read(artifact)
    with pytest.raises(RuntimeError), record.publish(artifact, stage="evaluate", inputs={}) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert record.read(artifact) == before and record.check(artifact) == before["sha256"]


def test_exclusive_refuses_a_second_process_and_is_free_after_the_first(tmp_path):
    path = tmp_path / "new" / "artifact"
    code = (
        "import sys, pathlib; from dmd.provenance import record\nwith record.exclusive(pathlib.Path(sys.argv[1])): pass"
    )
    command = [sys.executable, "-c", code, str(path)]
    with record.exclusive(path):
        answer = subprocess.run(command, capture_output=True, text=True)
    assert answer.returncode == 1 and f"another process is writing {path}" in answer.stderr
    assert subprocess.run(command).returncode == 0
    assert list(path.parent.iterdir()) == []


def test_a_lock_falls_with_its_process_and_leaves_no_file_after_an_exception(tmp_path):
    path = tmp_path / "artifact"
    code = (
        "import os, sys, pathlib; from dmd.provenance import record\n"
        "with record.exclusive(pathlib.Path(sys.argv[1])): os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(path)]).returncode == -9
    with pytest.raises(RuntimeError), record.exclusive(path):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "entry",
    [
        {"sha256": True, "size": 1, "inputs": {}},
        {"sha256": "a", "inputs": {}},
        {"sha256": "a", "size": 1},
        {"sha256": "a", "size": 1, "inputs": {"b": 1}},
    ],
)
def test_record_without_all_that_a_record_says_is_none(tmp_path, entry):
    record.write(tmp_path / "a", entry)
    assert record.read(tmp_path / "a") is None


COUNT = """
import pathlib, sys
from dmd.provenance import record
path, left = pathlib.Path(sys.argv[1]), 300
while left:
    try:
        with record.exclusive(path):
            path.write_text(str(int(path.read_text()) + 1))
            left -= 1
    except ValueError as error:
        if "another process is writing" not in str(error):
            raise
"""


def test_three_writers_that_try_again_and_again_lose_nothing(tmp_path):
    """The lock file is removed before its lock is released: whoever opened it before that holds a lock on no name."""
    counter = tmp_path / "counter"
    counter.write_text("0")
    writers = [subprocess.Popen([sys.executable, "-c", COUNT, str(counter)]) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0] and counter.read_text() == "900"


WRITE = """
import logging, pathlib, sys
from dmd.provenance import record
logging.basicConfig(stream=sys.stdout, level=logging.INFO, format="%(message)s", force=True)
sys.stdout.reconfigure(line_buffering=True)
path = pathlib.Path(sys.argv[1])
try:
    with record.writing(path):
        print("begun")
        sys.stdin.readline()
        with record.publish(path, stage="evaluate", inputs={}) as temporary:
            temporary.write_text("whole")
except record.MadeMeanwhile:
    print("made meanwhile")
"""


@pytest.mark.parametrize(
    ("second", "killed", "said"),
    [("same", False, "made meanwhile"), ("other", False, "begun"), ("same", True, "begun")],
)
def test_a_second_writer_waits_and_makes_only_what_is_not_there(tmp_path, second, killed, said):
    """What the first has made stays, since a stage that failed would make Snakemake remove it."""

    def start(word: str) -> subprocess.Popen:
        command = [sys.executable, "-c", WRITE, str(tmp_path / "artifact"), word]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    with start("same") as first, start(second) as waiting:
        processes = {first.stdout.readline(): first, waiting.stdout.readline(): waiting}
        holder = processes.pop("begun\n")
        (line, other), = processes.items()  # fmt: skip
        assert line.startswith("another process is writing ")
        if killed:
            holder.kill()
        else:
            holder.communicate("\n")
        assert other.stdout.readline() == f"{said}\n"
        other.communicate("\n")
        assert other.returncode == 0 and (tmp_path / "artifact").read_text() == "whole"
    assert record.check(tmp_path / "artifact")
    assert {path.name for path in tmp_path.iterdir()} == {"artifact", ".artifact.json"}


def test_a_score_is_of_the_generator_that_the_records_between_them_lead_to(tmp_path):
    """A file between them that was made again since does not count, nor does another generator."""

    def made(name: str, content: str, *sources):
        digests = {"source": {str(source): files.sha256(source) for source in sources}}
        with record.publish(tmp_path / name, stage="evaluate", inputs=digests) as temporary:
            temporary.write_text(content)
        return tmp_path / name

    first = made("generator", "1")
    old, other = files.sha256(first), made("reference", "r")
    samples = [made(f"samples-{number}", f"{number}", first) for number in range(2)]
    score = made("score", "s", other, *(made(f"features-{number}", "f", each) for number, each in enumerate(samples)))
    assert record.made_from(score, first, old) and record.made_from(score, tmp_path / "." / "generator", old)
    assert not record.made_from(other, first, old)
    new = files.sha256(made("generator", "2"))
    assert record.made_from(score, first, old) and not record.made_from(score, first, new)
    for number, sample in enumerate(samples):
        made(sample.name, f"new {number}", first)
        made(f"features-{number}", f"new {number}", sample)
    assert not record.made_from(score, first, new) and not record.made_from(score, first, old)
    made("score", "s", tmp_path / "features-0")
    assert record.made_from(score, first, new)
