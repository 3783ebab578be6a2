"""Shards: WebDataset reads them, random access equals reading on, damage is named."""

import io
import tarfile

import numpy as np
import pytest
import webdataset

from dmd.data import shards
from dmd.provenance import files

RECORD = {"origin": {"stage": "pairs"}, "shard": 3}


def items(first: int = 30, num: int = 5, *, shape: tuple[int, ...] = (3, 5, 7)) -> list[tuple[int, shards.Item]]:
    generator = np.random.default_rng(0)
    return [
        (
            index,
            {
                "image": generator.standard_normal(shape).astype(np.float32),
                "label": np.array(index % 3 - 1, np.int64),
                "noise": generator.standard_normal(shape).astype(np.float32),
            },
        )
        for index in range(first, first + num)
    ]


@pytest.fixture
def tar(tmp_path):
    path = tmp_path / "00003.tar"
    shards.write(path, items(), RECORD)
    return path


def same(found: shards.Item, expected: shards.Item) -> bool:
    return found.keys() == expected.keys() and all(
        np.array_equal(found[name], expected[name]) and found[name].dtype == expected[name].dtype for name in expected
    )


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 1), (1, 8, 8), (1, 16, 8)])
def test_items_survive_a_round_trip(tmp_path, shape):
    path = tmp_path / "a.tar"
    shards.write(path, items(shape=shape), RECORD)
    found = list(shards.read(path))
    assert [index for index, _ in found] == [30, 31, 32, 33, 34]
    assert all(same(item, expected) for (_, item), (_, expected) in zip(found, items(shape=shape), strict=True))


def test_webdataset_sees_exactly_the_items(tar):
    found = list(webdataset.WebDataset(str(tar), shardshuffle=False).decode())
    assert [sample["__key__"] for sample in found] == [f"{index:08d}" for index in range(30, 35)]
    for sample, (_, expected) in zip(found, items(), strict=True):
        fields = {name.removesuffix(".npy"): value for name, value in sample.items() if not name.startswith("__")}
        assert same(fields, expected)


def test_a_shard_is_a_plain_tar_without_times_or_owners(tar):
    with tarfile.open(tar) as archive:
        members = archive.getmembers()
    assert members[0].name == "__meta__/record.json"
    assert [member.name for member in members[1:4]] == [
        f"00000030.{field}.npy" for field in ("image", "label", "noise")
    ]
    assert {member.mtime for member in members} == {0}


def test_the_record_is_read_back_and_missing_elsewhere(tar, tmp_path):
    assert shards.read_record(tar) == RECORD
    (tmp_path / "text").write_text("no tar")
    assert shards.read_record(tmp_path / "text") is None
    assert shards.read_record(tmp_path / "none") is None


@pytest.mark.parametrize("shape", [(3, 5, 7), (2, 1, 1), (1, 16, 8), (3, 64, 64)])
@pytest.mark.parametrize(("first", "num"), [(30, 5), (0, 1), (99_999_998, 3), (0, 0)])
def test_bytes_are_those_of_a_plain_tar_of_python_and_numpy(tmp_path, shape, first, num):
    given = [(index, {**item, "a-b": item["image"][:, ::-1].T}) for index, item in items(first, num, shape=shape)]
    shards.write(tmp_path / "ours.tar", given, RECORD)
    members = {"__meta__/record.json": files.canonical_json(RECORD).encode()}
    for index, item in given:
        for name, array in sorted((f"{name}.npy", array) for name, array in item.items()):
            npy = io.BytesIO()
            np.lib.format.write_array(npy, np.asarray(array, order="C"), version=(1, 0))
            members[f"{index:08d}.{name}"] = npy.getvalue()
    with tarfile.open(tmp_path / "plain.tar", "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mode, info.uname, info.gname = len(content), 0o444, "bigdata", "bigdata"
            archive.addfile(info, io.BytesIO(content))
    assert (tmp_path / "ours.tar").read_bytes() == (tmp_path / "plain.tar").read_bytes()


def test_bytes_depend_on_content_alone(tar, tmp_path):
    again = tmp_path / "again.tar"
    turned = [(index, {name: item[name].copy() for name in reversed(item)}) for index, item in items()]
    shards.write(again, turned, dict(reversed(RECORD.items())))
    assert again.read_bytes() == tar.read_bytes()


def test_random_access_equals_reading_on(tar):
    expected = dict(items())
    with shards.Shard(tar, size=tar.stat().st_size, sha256=files.sha256(tar)) as shard:
        places = list(shard.index())
        assert [index for index, _ in places] == list(expected)
        assert all(b.offset == a.offset + a.length for (_, a), (_, b) in zip(places[:-1], places[1:], strict=True))
        for index, place in np.random.default_rng(1).permutation(np.array(places, object)):
            assert same(shard.item(place), expected[index])


def test_a_truncated_shard_is_named_with_a_manifest_and_inside_a_member_without(tar):
    size, digest, content = tar.stat().st_size, files.sha256(tar), tar.read_bytes()
    for kept in (0, 100, 512, 5000, size - 512):
        tar.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=str(tar)):
            shards.Shard(tar, size=size, sha256=digest)
    (_, last) = list(_index(tar, content))[-1]
    for kept in (0, 3 * 512 + 1, last.offset + last.length - 1):
        tar.write_bytes(content[:kept])
        with pytest.raises(ValueError, match=str(tar)):
            list(shards.read(tar))


def _index(tar, content):
    tar.write_bytes(content)
    with shards.Shard(tar) as shard:
        return list(shard.index())


@pytest.mark.parametrize("place", [0, 600, 2000, -2000])
def test_a_flipped_byte_is_named(tar, place):
    size, digest, content = tar.stat().st_size, files.sha256(tar), bytearray(tar.read_bytes())
    content[place] ^= 4
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=f"{tar} is damaged"):
        shards.Shard(tar, size=size, sha256=digest)


def test_a_broken_header_and_a_missing_shard_are_named(tar):
    content = bytearray(tar.read_bytes())
    with shards.Shard(tar) as shard:
        (_, place) = list(shard.index())[1]
    content[place.offset + 126] = ord("x")
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=f"{tar} is damaged"):
        list(shards.read(tar))
    tar.unlink()
    with pytest.raises(ValueError, match=f"{tar} is missing"):
        shards.Shard(tar)


@pytest.mark.parametrize(
    "name", ["../00000031.image.npy", "/a.npy", "a/00000031.image.npy", "00000031.npy", "00000031.a.b.npy", "x"]
)
def test_a_member_of_another_name_is_refused(tar, name):
    content = bytearray(tar.read_bytes())
    with shards.Shard(tar) as shard:
        (_, place) = list(shard.index())[1]
    content[place.offset : place.offset + 100] = name.encode().ljust(100, b"\0")
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=f"{tar} is damaged: member '{name}'"):
        list(shards.read(tar))


def test_a_damaged_number_header_and_a_place_elsewhere_are_named(tar):
    with shards.Shard(tar) as shard:
        (_, place) = list(shard.index())[1]
        for offset, length in ((-512, 512), (0, 1 << 40), (1 << 40, 512)):
            with pytest.raises(ValueError, match=f"{tar} has [0-9]+ bytes, too few for {length} at {offset}"):
                shard.item(shards.Extent(offset, length))
    content = bytearray(tar.read_bytes())
    content[place.offset + 512 + 20] = ord("(")  # numpy would go on with its own reading of a literal
    tar.write_bytes(content)
    with pytest.raises(ValueError, match=f"{tar} is damaged"):
        list(shards.read(tar))
