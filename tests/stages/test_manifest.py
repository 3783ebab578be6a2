"""Helper stage manifest: one table over blocks, after every shard was hashed."""

import pytest

from dmd.data import manifest as manifests
from dmd.provenance import files
from dmd.stages import manifest, pairs


@pytest.fixture
def make(teacher_file, pairs_numbers, tmp_path):
    """Makes the block of some shards with cheap one-step images."""
    cheap = pairs_numbers | {"solver": {"name": "student", "calls": {"sigmas": [80.0]}}}

    def block(first: int, last: int, folder: str = "pairs", **changed):
        path = tmp_path / folder / "blocks" / f"{first:05d}-{last:05d}.parquet"
        pairs.run(teacher=teacher_file, output=path, **cheap | {"first": first, "last": last} | changed)
        return path

    return block


def join(blocks, output, num: int, shard_size: int = 6) -> manifests.Manifest:
    manifest.run(blocks=blocks, output=output, num=num, shard_size=shard_size)
    return manifests.read(output)


def test_manifest_lists_all_items_and_finds_the_shards_from_any_folder(make, tmp_path):
    blocks = [make(0, 1), make(2, 2)]
    output = tmp_path / "other" / "deep" / "manifest.parquet"
    found = join(blocks, output, 18)
    assert found.table["index"].to_pylist() == list(range(18))
    assert [shard.path.resolve() for shard in found.shards] == [
        tmp_path / "pairs" / f"{number:05d}.tar" for number in range(3)
    ]
    assert [shard.sha256 for shard in found.shards] == [files.sha256(shard.path) for shard in found.shards]
    assert found.metadata["facts"] == {"shape": [1, 8, 8], "num_classes": 10, "sigma": 80.0, "network_calls": 1}
    assert found.metadata["inputs"] == {"blocks": [files.sha256(block) for block in blocks]}


def test_manifest_has_the_same_bytes_again_and_may_list_fewer_items(make, tmp_path):
    blocks = [make(0, 2)]
    output = tmp_path / "manifest.parquet"
    join(blocks, output, 12)
    before = output.read_bytes()
    assert len(join(blocks, output, 12).table) == 12 and output.read_bytes() == before


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_named_and_nothing_written(make, tmp_path, damage):
    block, tar, output = make(0, 1), tmp_path / "pairs" / "00001.tar", tmp_path / "out" / "manifest.parquet"
    content = bytearray(tar.read_bytes())
    content[700] ^= 1
    tar.write_bytes(content if damage == "flipped" else content[:-1024])
    if damage == "missing":
        tar.unlink()
    with pytest.raises(ValueError, match="00001.tar"):
        join([block], output, 12)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("changed", [{"first_seed": 9}, {"solver": {"name": "student", "calls": {"sigmas": [40.0]}}}])
def test_blocks_of_different_specs_are_refused(make, tmp_path, changed):
    blocks = [make(0, 0), make(1, 1, "others", **changed)]
    with pytest.raises(ValueError, match="differ in inputs or spec"):
        join(blocks, tmp_path / "manifest.parquet", 12)


def test_gaps_wrong_counts_and_partial_shards_are_refused(make, tmp_path):
    output, first, third = tmp_path / "manifest.parquet", make(0, 0), make(2, 2)
    with pytest.raises(ValueError, match="hold 6 items, but num is 12"):
        join([first], output, 12)
    with pytest.raises(ValueError, match="num 4 must be a multiple of shard_size 6"):
        join([first], output, 4)
    for blocks in ([first, third], [third, first]):
        with pytest.raises(ValueError, match="0, 1, 2"):
            join(blocks, output, 12)
    assert not output.exists()
