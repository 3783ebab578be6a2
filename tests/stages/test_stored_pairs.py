"""Pairs in a storage: drawn once, found again by a machine that has none of them, and distilled to the same bytes."""

import logging
import shutil

import pytest

from dmd.data import retries
from dmd.data.storage import Storage
from dmd.provenance import record, tensor_files
from dmd.stages import manifest, pairs
from dmd.verify import run as verify
from tests import file_server, s3_server
from tests.trainings import digests, distil

BLOCK = "00000-00001.parquet"
TARS = ("00000.tar", "00001.tar")


@pytest.fixture(scope="module")
def moto():
    with s3_server.serving() as server:
        yield server


@pytest.fixture
def s3(moto, monkeypatch):
    for name, value in s3_server.CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(retries, "PAUSE", 0.01)
    moto.asked.clear()
    return moto


@pytest.fixture
def said(caplog) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="dmd")
    return caplog


class Machine:
    """A folder with a copy of the teacher, and the storage that it shares with others of the same test."""

    def __init__(self, folder, s3, teacher_file, numbers: dict, keep: bool = False) -> None:
        self.folder, self.numbers = folder / "results", numbers
        self.teacher = self.folder / "teacher" / teacher_file.name
        shutil.copytree(teacher_file.parent, self.teacher.parent)
        prefix = f"s3://{s3_server.BUCKET}/{folder.parent.name}"
        self.place = {"prefix": prefix, "folder": str(self.folder), "endpoint": s3.endpoint, "keep": keep}
        self.place |= {"cache": str(folder / "cache"), "cache_gb": 1.0}

    def draw(self, name: str = BLOCK, **changed):
        """The block file, whose shards are made or found."""
        block = self.folder / "pairs" / "blocks" / name
        pairs.run(teacher=self.teacher, output=block, **{**self.numbers, "storage": self.place, **changed})
        return block

    def manifest(self, num: int = 12, name: str = BLOCK):
        """The manifest."""
        block, output = self.folder / "pairs" / "blocks" / name, self.folder / "pairs" / "manifest.parquet"
        manifest.run(blocks=[block], output=output, num=num, shard_size=6, storage=self.place)
        return output

    def tars(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "pairs").glob("*.tar"))


@pytest.fixture
def machine(tmp_path, s3, teacher_file, pairs_numbers):
    """Makes machines by name."""
    return lambda name, **changed: Machine(tmp_path / name, s3, teacher_file, pairs_numbers, **changed)


def test_pairs_that_are_not_kept_have_the_same_block_and_manifest(machine, manifest_file):
    one = machine("one")
    assert one.draw().read_bytes() == (manifest_file.parent / "blocks" / BLOCK).read_bytes()
    assert one.tars() == []
    assert one.manifest().read_bytes() == manifest_file.read_bytes()


def test_pairs_are_kept_here_too_unless_told_otherwise(machine, manifest_file):
    one = machine("one", keep=True)
    one.draw()
    assert one.tars() == [*TARS]


def test_machine_with_nothing_draws_nothing_and_distills_the_same_bytes(
    machine, s3, said, manifest_file, distilled_folder, distill_section
):
    machine("one").draw()
    s3.asked.clear()
    two = machine("two")
    assert two.draw().read_bytes() == (manifest_file.parent / "blocks" / BLOCK).read_bytes()
    assert "2 shards were drawn before" in said.text and not s3.tars("PUT") + s3.tars("GET")
    assert two.manifest().read_bytes() == manifest_file.read_bytes()
    assert two.tars() == [] and not s3.tars("GET")
    s3.drops[:] = [700] * 4
    files = {"teacher": two.teacher, "manifest": two.folder / "pairs" / "manifest.parquet", "storage": two.place}
    distil(two.folder, distill_section, **files)
    assert digests(two.folder) == digests(distilled_folder)
    assert not s3.drops and len(list((two.folder.parent / "cache").glob("*.tar"))) == 2


def test_block_that_grows_draws_only_what_the_storage_lacks(machine, s3, teacher_file, pairs_numbers, tmp_path):
    one = machine("one")
    one.draw()
    s3.asked.clear()
    grown = one.draw("00000-00002.parquet", last=2)
    assert [key.rpartition("/")[2] for key in s3.tars("PUT")] == ["00002.tar"]
    plain = tmp_path / "plain" / "blocks" / "00000-00002.parquet"
    pairs.run(teacher=teacher_file, output=plain, **{**pairs_numbers, "last": 2})
    assert grown.read_bytes() == plain.read_bytes()


def test_shards_of_other_numbers_replace_those_of_this_folder_alone(
    machine, said, pairs_numbers, teacher_file, tmp_path
):
    one = machine("one")
    one.draw(first_seed=5)
    with pytest.raises(ValueError, match="00000.tar is another shard: .* It is not replaced"):
        machine("two").draw()
    assert "was made from other inputs or another spec" in said.text
    changed = one.draw()
    plain = tmp_path / "plain" / "blocks" / BLOCK
    pairs.run(teacher=teacher_file, output=plain, **pairs_numbers)
    assert changed.read_bytes() == plain.read_bytes()
    machine("three").draw()
    assert "2 shards were drawn before" in said.text


def test_shards_of_another_teacher_are_neither_taken_nor_replaced(machine, s3, teacher_file):
    machine("one").draw()
    two = machine("two")
    values, metadata = tensor_files.load(teacher_file)
    with record.publish(two.teacher, stage="teacher", inputs={}) as temporary:
        tensor_files.write(temporary, values, {**metadata, "trained": "elsewhere"})
    s3.asked.clear()
    with pytest.raises(ValueError, match="00000.tar is another shard"):
        two.draw()
    assert not s3.tars("PUT") + s3.tars("DELETE")


def test_shard_that_the_storage_lost_is_found_by_verify_and_made_again(machine, manifest_file, monkeypatch, said):
    one = machine("one")
    block = one.draw()
    assert verify(folder=one.folder, delete=True) == {}
    storage = Storage(one.place)
    storage._remote.remove(storage.name(one.folder / "pairs" / TARS[1]))
    with pytest.raises(ValueError, match="00001.tar is not there: run `make verify`"):
        one.manifest()
    bad = verify(folder=one.folder, delete=True)
    assert {path.name for path in bad} == {TARS[1], BLOCK} and not block.exists()
    one.draw()
    assert "1 shards of 6 images to draw" in said.text
    assert block.read_bytes() == (manifest_file.parent / "blocks" / BLOCK).read_bytes()


@pytest.mark.parametrize("what", ["damaged", "another"])
def test_tar_of_this_folder_that_is_wrong_gives_way_to_that_of_the_storage(machine, s3, manifest_file, what):
    two = machine("two", keep=True)
    two.draw(**({"first_seed": 5, "storage": None} if what == "another" else {"storage": None}))
    machine("one").draw()
    if what == "damaged":
        tar = two.folder / "pairs" / TARS[0]
        content = bytearray(tar.read_bytes())
        content[-1100] ^= 1
        tar.write_bytes(content)
    (two.folder / "pairs" / "blocks" / BLOCK).unlink()
    s3.asked.clear()
    two.draw()
    assert not s3.tars("PUT") and two.manifest().read_bytes() == manifest_file.read_bytes()
    assert two.tars() == ([] if what == "another" else [TARS[1]])


def test_damaged_block_of_a_web_server_is_drawn_here(machine, manifest_file, said):
    one = machine("one", keep=True)
    one.draw()
    served = {f"/deep/{path.relative_to(one.folder)}": path.read_bytes() for path in one.folder.rglob("*.*")}
    name = f"/deep/pairs/blocks/{BLOCK}"
    served[name] = served[name][:-1] + b"x"
    with file_server.serving(file_server.FileServer(b"", folder=served)) as server:
        two = machine("two", keep=True)
        two.place |= {"prefix": server.url.replace("weights.bin", "deep"), "endpoint": None}
        assert two.draw().read_bytes() == (manifest_file.parent / "blocks" / BLOCK).read_bytes()
    assert f"{BLOCK} is damaged" in said.text and "it cannot be removed there, so the block is made here" in said.text


def test_storage_that_cannot_be_asked_makes_no_shard_lost(machine, monkeypatch, capsys):
    one = machine("one")
    one.draw()
    for name in TARS:
        entry = record.read(tar := one.folder / "pairs" / name)
        record.write(tar, {**entry, "stored": {**entry["stored"], "endpoint": "http://127.0.0.1:9"}})
    monkeypatch.setattr(retries, "TRIES", 1)
    assert verify(folder=one.folder, delete=True) == {}
    assert "the storage could not be asked" in capsys.readouterr().out
