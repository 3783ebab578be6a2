"""Damage of every kind is found, and removed with exactly what was made from it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmd import verify
from dmd.provenance import record

TEACHER = Path("results/a/teacher/denoiser.safetensors")
TARS = [Path(f"results/a/pairs/{shard:05d}.tar") for shard in range(3)]
BLOCKS = [
    Path("results/a/pairs/blocks/00000-00001.parquet"),
    Path("results/a/pairs/blocks/00002-00002.parquet"),
]
MANIFEST = Path("results/a/pairs/manifest.parquet")
GENERATOR = Path("results/a/distill/generator.safetensors")
SCORE = Path("results/a/fid.json")
REFERENCE = Path("results/a/reference/reference.safetensors")
NETWORK = Path("resources/network.safetensors")
DOWNSTREAM = {MANIFEST, GENERATOR, SCORE}
EVERYTHING = {TEACHER, *TARS, *BLOCKS, *DOWNSTREAM, REFERENCE}


def write(path: Path, content: str, *sources: Path) -> None:
    """An artifact with its record, as a stage leaves it."""
    inputs = record.check_inputs(sources=list(sources))
    with record.publish(path, stage="teacher", inputs=inputs) as temporary:
        temporary.write_text(content)


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A whole results folder: teacher -> two blocks of shards -> manifest -> generator -> score <- reference."""
    monkeypatch.chdir(tmp_path)
    NETWORK.parent.mkdir()
    NETWORK.write_text("features")
    write(TEACHER, "teacher")
    for tar in TARS:
        write(tar, tar.name, TEACHER)
    write(BLOCKS[0], "first block", TEACHER, *TARS[:2])
    write(BLOCKS[1], "second block", TEACHER, TARS[2])
    write(MANIFEST, "manifest", *BLOCKS)
    write(GENERATOR, "generator", TEACHER, MANIFEST)
    write(REFERENCE, "reference", NETWORK)
    write(SCORE, "score", REFERENCE, GENERATOR)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def bad() -> set[Path]:
    return set(verify.run(folder=Path("results"), delete=True))


def test_verify_finds_nothing_in_whole_results():
    assert bad() == set()
    assert all(path.is_file() for path in EVERYTHING)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize(
    ("path", "lost"),
    [
        (TEACHER, EVERYTHING - {REFERENCE}),
        (TARS[0], {TARS[0], BLOCKS[0], *DOWNSTREAM}),
        (BLOCKS[1], {BLOCKS[1], *DOWNSTREAM}),
        (MANIFEST, DOWNSTREAM),
        (REFERENCE, {REFERENCE, SCORE}),
        (SCORE, {SCORE}),
    ],
)
def test_verify_removes_a_damaged_artifact_and_exactly_what_was_made_from_it(path, lost, damage):
    damage(path)
    assert bad() == lost
    for artifact in EVERYTHING:
        assert artifact.exists() == (artifact not in lost)
        assert not (artifact in lost and record.sidecar(artifact).exists())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [(flip, "altered"), (truncate, "truncated: 6 of 7 bytes"), (Path.unlink, "missing")],
)
def test_verify_says_what_is_wrong(damage, reason):
    damage(TEACHER)
    assert reason in verify.run(folder=Path("results"), delete=False)[TEACHER]


def test_without_delete_it_names_but_removes_nothing():
    flip(TEACHER)
    assert verify.run(folder=Path("results"), delete=False)
    assert all(path.is_file() for path in EVERYTHING | {record.sidecar(GENERATOR)})


def test_artifact_that_a_stage_wrote_meanwhile_is_kept(monkeypatch):
    looked = verify.audit

    def slow(folder, stored_sizes):
        found = looked(folder, stored_sizes)
        write(GENERATOR, "generator", TEACHER, MANIFEST)  # the same bytes again
        return found

    flip(GENERATOR)
    monkeypatch.setattr(verify, "audit", slow)
    with pytest.raises(ValueError, match=f"a stage wrote {GENERATOR} during the check, so it was not removed"):
        bad()
    assert record.check(GENERATOR) and SCORE.exists()  # nothing was removed
    monkeypatch.setattr(verify, "audit", looked)
    assert bad() == set()


def test_artifact_that_a_stage_writes_is_not_removed(monkeypatch):
    looked = verify.audit

    def slow(folder, stored_sizes):
        found = looked(folder, stored_sizes)
        lock.__enter__()
        return found

    flip(MANIFEST)
    lock = record.exclusive(GENERATOR)
    monkeypatch.setattr(verify, "audit", slow)
    with pytest.raises(ValueError, match=f"another process is writing {GENERATOR}"):
        bad()
    lock.__exit__(None, None, None)
    assert GENERATOR.exists() and MANIFEST.exists()


def test_artifact_of_an_input_made_anew_is_named_and_kept(capsys):
    write(TEACHER, "retrained teacher")
    assert bad() == set()
    assert f"{GENERATOR}: out of date, since {TEACHER} has changed; kept" in capsys.readouterr().out
    assert all(path.is_file() for path in EVERYTHING)


def test_artifact_of_a_changed_file_outside_is_named_and_kept(capsys):
    NETWORK.write_text("other features")
    assert bad() == set()
    assert f"{REFERENCE}: out of date, since {NETWORK} has changed; kept" in capsys.readouterr().out
    assert NETWORK.exists() and REFERENCE.exists()


def test_out_of_date_artifact_of_a_damaged_input_is_removed():
    write(TEACHER, "retrained teacher")
    flip(TEACHER)
    assert bad() == EVERYTHING - {REFERENCE}


def test_missing_file_outside_is_noted_and_nothing_is_removed(capsys):
    NETWORK.unlink()
    assert bad() == set()
    assert f"{NETWORK} is missing" in capsys.readouterr().out


def test_shard_written_anew_by_a_larger_block_is_kept():
    larger = Path("results/a/pairs/blocks/00000-00002.parquet")
    write(TARS[2], "another third shard", TEACHER)
    write(larger, "larger block", TEACHER, *TARS)
    assert bad() == set()
    assert larger.exists() and BLOCKS[1].exists() and all(tar.exists() for tar in TARS)


@pytest.mark.parametrize("content", [None, "{", '{"size": 7}'])
def test_artifact_without_readable_record_is_removed(content):
    side = record.sidecar(MANIFEST)
    side.unlink() if content is None else side.write_text(content)
    assert bad() == DOWNSTREAM


@pytest.mark.parametrize(
    "name",
    ["a/notes.json", "a/fid-before.json", "a/pairs/copy.tar", "a/teacher/old.safetensors", "mine/deep/fid.json"]
    + ["fid.json", "tables/notes.json", "tables/notes.md", "a/.notes.json"],
)
def test_file_that_no_stage_makes_is_left_alone(name, capsys):
    path = Path("results", name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{}")
    assert bad() == set() and path.exists()
    assert path.suffix == ".md" or f"{path}: has no record" in capsys.readouterr().out


def test_deleted_artifact_and_record_are_missed_by_what_was_made_from_them():
    TEACHER.unlink()
    record.sidecar(TEACHER).unlink()
    assert bad() == EVERYTHING - {REFERENCE, TEACHER}


def test_shard_of_an_unfinished_job_is_kept():
    tar = Path("results/a/pairs/00003.tar")
    write(tar, "made before the job was stopped", TEACHER)
    assert bad() == set()
    assert tar.exists()


def test_scratch_folders_and_temporary_files_are_passed_over():
    for name in ("distill/checkpoints/1.safetensors", "benchmarks/a.json", "logs/b.json", ".tmp-fid.json"):
        path = Path("results/a", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("scratch")
    assert bad() == set()


def test_verify_refuses_while_a_stage_writes():
    with record.exclusive(GENERATOR), pytest.raises(ValueError, match="wait until it has finished"):
        bad()


def test_command_line_exits_with_what_it_found():
    def run(*flags: str) -> subprocess.CompletedProcess:
        command = [sys.executable, "-m", "dmd.verify", *flags]
        root = Path(verify.__file__).parents[1]
        environment = {"PYTHONPATH": str(root)}
        return subprocess.run(command, check=False, capture_output=True, text=True, env=environment)

    assert run("results").returncode == 0
    flip(SCORE)
    kept, removed = run("results"), run("results", "--delete")
    assert (kept.returncode, removed.returncode, run("results").returncode) == (1, 1, 0)
    assert f"    {SCORE}" in removed.stdout and f"    {SCORE}" not in kept.stdout
    assert run("absent").returncode == 2
    assert json.loads(record.sidecar(GENERATOR).read_text())["size"] == len("generator")
