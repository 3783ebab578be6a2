"""Tables of items: round trip, same bytes, shards by row."""

import math
from itertools import accumulate, pairwise

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dmd.data import manifest
from dmd.provenance import files

METADATA = {"stage": "manifest", "facts": {"shape": [1, 8, 8], "sigma": 80.0}}


def table(sizes: tuple[int, ...] = (3, 2)) -> pa.Table:
    shard = [number for number, size in enumerate(sizes) for _ in range(size)]
    columns = {
        "key": [f"{index:08d}" for index in range(len(shard))],
        "shard": [f"../{number:05d}.tar" for number in shard],
        "index": list(range(len(shard))),
        "label": [-1] * len(shard),
        "seed": [2**31 + index for index in range(len(shard))],
        "offset": [1024 * index for index in range(len(shard))],
        "length": [1024] * len(shard),
        "size": [10_000 + number for number in shard],
        "sha256": [f"digest{number}" for number in shard],
    }
    return pa.table(columns, schema=manifest.SCHEMA)


def test_rows_metadata_and_shards_survive_a_round_trip(tmp_path):
    path = tmp_path / "blocks" / "manifest.parquet"
    path.parent.mkdir()
    manifest.write(path, table(), METADATA)
    found = manifest.read(path)
    assert found.metadata == METADATA
    assert found.table.to_pydict() == table().to_pydict()
    assert [(shard.path, shard.size, shard.sha256, shard.first, shard.num) for shard in found.shards] == [
        (tmp_path / "00000.tar", 10_000, "digest0", 0, 3),
        (tmp_path / "00001.tar", 10_001, "digest1", 3, 2),
    ]


def test_the_same_rows_give_the_same_bytes_however_they_were_joined(tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    manifest.write(whole, table(), METADATA)
    joined = pa.concat_tables([table().slice(0, 1), table().slice(1)]).replace_schema_metadata({"x": "y"})
    manifest.write(parts, joined, dict(reversed(METADATA.items())))
    assert whole.read_bytes() == parts.read_bytes()


def test_any_table_of_numbers_survives_with_its_not_a_numbers(tmp_path):
    path = tmp_path / "log.parquet"
    manifest.write(path, pa.table({"update": [0, 1], "loss": [0.5, math.nan]}), {})
    found, metadata = manifest.read_table(path)
    assert metadata == {} and found["update"].to_pylist() == [0, 1] and math.isnan(found["loss"][1].as_py())


def test_a_missing_truncated_or_foreign_table_is_named(tmp_path):
    path = tmp_path / "manifest.parquet"
    with pytest.raises(ValueError, match=f"{path} cannot be read"):
        manifest.read(path)
    manifest.write(path, table(), METADATA)
    content = path.read_bytes()
    for size in (0, 10, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{path} cannot be read"):
            manifest.read(path)
    pq.write_table(table(), path)
    with pytest.raises(ValueError, match=f"{path} has no 'dmd' metadata"):
        manifest.read(path)
    manifest.write(path, pa.table({"update": [0]}), {})
    with pytest.raises(ValueError, match=r"has columns \['update'\]"):
        manifest.read(path)


@pytest.mark.parametrize("sizes", [(7,), (3, 2, 9), (1, 1, 1, 1), (8, 8, 8)])
def test_parts_written_one_by_one_give_the_bytes_of_their_whole(tmp_path, monkeypatch, sizes):
    """A row group is held until it is full, whatever parts its rows come in."""
    monkeypatch.setattr(manifest, "ROW_GROUP", 4)
    rows = table((max(sum(sizes) - 2, 0), 2))
    edges = [0, *accumulate(sizes)]
    parts = [rows.slice(start, stop - start) for start, stop in pairwise(edges)]
    schema = manifest.SCHEMA.with_metadata({manifest.KEY: files.canonical_json(METADATA).encode()})
    pq.write_table(pa.concat_tables(parts).cast(schema), tmp_path / "whole", 4, compression="zstd")
    manifest.write_parts(tmp_path / "parts", parts, METADATA)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_a_part_of_the_size_of_a_stage_gives_the_bytes_of_write(tmp_path):
    """Nothing that was written before changes: one row group, the same metadata."""
    parts = [table((3, 2)), table((3, 2)).slice(0, 4)]
    manifest.write(tmp_path / "whole", pa.concat_tables(parts), METADATA)
    manifest.write_parts(tmp_path / "parts", iter(parts), METADATA)
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()


def test_shards_and_numbers_are_the_same_in_batches_of_any_size(tmp_path, monkeypatch):
    rows, path = table((3, 1, 5, 2)), tmp_path / "manifest.parquet"
    pq.write_table(rows.replace_schema_metadata({manifest.KEY: b"{}"}), path, 4)  # shards that cross row groups
    for size in (1, 2, 3, 64):
        monkeypatch.setattr(manifest, "BATCH", size)
        found = manifest.read(path)
        assert [(shard.first, shard.num, shard.sha256) for shard in found.shards] == [
            (0, 3, "digest0"),
            (3, 1, "digest1"),
            (4, 5, "digest2"),
            (9, 2, "digest3"),
        ]
        assert len(found) == 11
        for name in ("offset", "seed"):
            assert found.numbers(name).dtype == np.int64 and found.numbers(name).tolist() == rows[name].to_pylist()


def test_empty_cells_other_types_and_damaged_metadata_are_named(tmp_path):
    path = tmp_path / "manifest.parquet"
    for name in ("shard", "size", "sha256"):
        column = pa.array([None, *table()[name].to_pylist()[1:]], manifest.SCHEMA.field(name).type)
        manifest.write(path, table().set_column(manifest.SCHEMA.get_field_index(name), name, column), METADATA)
        with pytest.raises(ValueError, match=f"{path} cannot be read as a table: cells are empty"):
            manifest.read(path)
    manifest.write(path, table().set_column(7, "size", pa.array(["1"] * 5)), METADATA)
    with pytest.raises(ValueError, match=f"{path} has columns of .*, which no manifest has"):
        manifest.read(path)
    for text in (b"{", b"[]", b"\xff"):
        pq.write_table(table().replace_schema_metadata({manifest.KEY: text}), path)
        with pytest.raises(ValueError, match=f"{path} is damaged: its metadata are not (JSON|a JSON object)"):
            manifest.read(path)


@pytest.mark.parametrize(
    "name",
    ["/etc/passwd", "/a/00000.tar", "../../../00000.tar", "../../../../etc/passwd", "a/../../../../00000.tar", "..", ""]
    + ["../00000.npy", "00000", "../\x0000000.tar", "../../../tree-beside/00000.tar"],
)
def test_manifest_that_leads_out_of_its_tree_is_refused(tmp_path, name):
    path = tmp_path / "tree" / "experiment" / "pairs" / "manifest.parquet"
    path.parent.mkdir(parents=True)
    manifest.write(path, table().set_column(1, "shard", pa.array([name] * 5)), METADATA)
    with pytest.raises(ValueError, match=f"{path} .*which is no shard below {tmp_path}/tree:"):
        manifest.read(path)


def test_manifest_may_list_the_shards_of_a_parent_and_follow_links_of_the_user(tmp_path):
    path = tmp_path / "tree" / "child" / "pairs" / "manifest.parquet"
    elsewhere = tmp_path / "disk"
    elsewhere.mkdir()
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "child").symlink_to(elsewhere)
    path.parent.mkdir()
    name = "../../parent/pairs/00000.tar"
    manifest.write(path, table().set_column(1, "shard", pa.array([name] * 5)), METADATA)
    shard = tmp_path / "tree" / "parent" / "pairs" / "00000.tar"  # not beside the folder that the link leads to
    assert [found.path for found in manifest.read(path).shards] == [shard]
