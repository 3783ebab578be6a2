"""Pairs in shuffled order: every epoch a permutation, any position on its own, damage named."""

import os
import resource

import numpy as np
import pyarrow as pa
import pytest
import torch

from dmd.data import manifest, shards
from dmd.data.pairs import PairReader
from dmd.data.shard_rows import SPARE
from dmd.provenance import files


def build(folder, *, num_shards: int, size: int) -> manifest.Manifest:
    """Shards of pairs whose noise, image and label all say their index."""
    rows: dict[str, list] = {name: [] for name in manifest.SCHEMA.names}
    for number in range(num_shards):
        path = folder / f"{number:05d}.tar"
        indices = range(number * size, (number + 1) * size)
        fields = ((index, np.full((1, 2, 2), index, np.float32)) for index in indices)
        shards.write(path, [(index, {"image": -x, "label": np.array(index), "noise": x}) for index, x in fields], {})
        with shards.Shard(path) as shard:
            for index, place in shard.index():
                found = [f"{index:08d}", path.name, index, index, index, place.offset, place.length]
                for name, value in zip(rows, [*found, path.stat().st_size, files.sha256(path)], strict=True):
                    rows[name].append(value)
    manifest.write(folder / "manifest.parquet", pa.table(rows, schema=manifest.SCHEMA), {})
    return manifest.read(folder / "manifest.parquet")


@pytest.fixture
def pairs(tmp_path):
    return build(tmp_path, num_shards=4, size=3)


def labels(reader: PairReader, position: int, num: int) -> list[int]:
    return reader.batch(position, num)[1].tolist()


def test_noise_label_and_image_of_a_pair_stay_together(pairs):
    noise, label, image = PairReader(pairs, seed=0).batch(5, 11)
    assert noise.shape == image.shape == (11, 1, 2, 2) and label.dtype == torch.int64
    assert torch.equal(noise[:, 0, 0, 0].long(), label) and torch.equal(image, -noise)


def test_every_epoch_is_another_permutation_of_all_pairs(pairs):
    reader = PairReader(pairs, seed=0)
    epochs = [labels(reader, 12 * epoch, 12) for epoch in range(5)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 5
    assert labels(PairReader(pairs, seed=1), 0, 12) != epochs[0]


def test_any_position_is_a_function_of_seed_and_position(pairs):
    whole = labels(PairReader(pairs, seed=3), 0, 60)
    reader = PairReader(pairs, seed=3)
    for position in np.random.default_rng(0).permutation(50):
        assert labels(reader, int(position), 10) == whole[position : position + 10]


def test_a_batch_may_be_larger_than_the_manifest(pairs):
    assert np.bincount(labels(PairReader(pairs, seed=0), 0, 36)).tolist() == [3] * 12


@pytest.mark.parametrize(("limit", "most"), [(SPARE + 17, 8), (1024, 80)])
def test_as_many_shards_stay_open_as_there_are_descriptors_for(tmp_path, monkeypatch, limit, most):
    """Shuffled pairs of paper runs lie in 500 shards: closing and opening them again costs more than reading."""
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limit, limit))
    reader = PairReader(build(tmp_path, num_shards=80, size=1), seed=0)
    before = len(os.listdir("/proc/self/fd"))
    assert sorted(labels(reader, 0, len(reader))) == list(range(len(reader)))
    held = len(os.listdir("/proc/self/fd")) - before  # collecting garbage may close others meanwhile
    assert 2 * most - 4 <= held <= 2 * most


def test_limit_of_descriptors_is_raised_where_it_may_be(tmp_path, monkeypatch):
    raised = []
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (140, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    PairReader(build(tmp_path, num_shards=20, size=1), seed=0)
    assert raised == [(SPARE + 40, 4096)]


@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_shard_is_named(pairs, damage):
    path = pairs.shards[2].path
    content = bytearray(path.read_bytes())
    content[-3000] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-512])
    if damage == "missing":
        path.unlink()
    with pytest.raises(ValueError, match=str(path)):
        PairReader(pairs, seed=0).batch(0, 12)
