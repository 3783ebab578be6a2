"""The bench of scale measures what it says: stage manifest takes its synthetic blocks, all readers read every pair."""

import itertools

import pytest

from bench import readers, scale_rows, setting
from dmd.data import manifest as manifests
from dmd.data.pairs import PairReader
from dmd.stages import manifest


def test_synthetic_blocks_make_a_manifest_that_a_reader_opens(tmp_path):
    blocks = scale_rows.write_blocks(tmp_path, 20_000)
    output = tmp_path / "pairs" / "manifest.parquet"
    manifest.run(blocks=blocks, output=output, num=20_000, shard_size=scale_rows.SHARD_SIZE)
    found = manifests.read(output)
    assert [shard.path.name for shard in found.shards] == [f"{number:05d}.tar" for number in range(20)]
    assert {shard.num for shard in found.shards} == {1000} and len(PairReader(found, seed=0)) == 20_000


@pytest.mark.parametrize(("kind", "workers"), [("ours", 2), ("bytes", 2), ("webdataset", 1)])
def test_every_reader_reads_each_pair_of_each_epoch(tmp_path, monkeypatch, kind, workers):
    monkeypatch.setattr(readers, "SHARD_SIZE", 25)
    teacher, block = tmp_path / "teacher" / "denoiser.safetensors", tmp_path / "pairs" / "blocks" / "b.parquet"
    setting.write_exact_teacher(teacher, resolution=8)
    solver = {**setting.SOLVER, "name": "euler", "steps": 1}
    setting.draw_pairs(teacher, block, first=0, last=readers.NUM_SHARDS - 1, shard_size=25, solver=solver)
    processes = 1 if kind == "webdataset" else workers
    parts = [readers.KINDS[kind](block, worker, workers, 2) for worker in range(processes)]
    assert sum(itertools.chain(*parts)) == 2 * 100
