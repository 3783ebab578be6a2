"""Batches one update ahead: what they hold, for every process, and what a reader that fails does."""

import shutil
import threading

import pytest
import torch

from dmd.artifacts import manifest as manifests
from dmd.artifacts.pairs import PairReader
from dmd.methods.numbers import Rows
from dmd.methods.phases import plan
from dmd.methods.schedule import update_generator
from dmd.methods.share import Share
from dmd.stages.feed import Feed

SHAPE = (1, 8, 8)


def feed(manifest, numbers: dict, share: Share = Share()) -> Feed:  # noqa: B008
    reader = PairReader(manifests.read(manifest), seed=numbers["seed"])
    return Feed(reader, plan(numbers)[0], numbers, share, facts={"shape": SHAPE, "num_classes": 10})


@pytest.mark.parametrize("updates", [range(16), (14, 2, 3, 3, 15, 0)])
def test_batch_of_an_update_is_a_function_of_the_update(manifest_file, distill_numbers, updates):
    found, reader = feed(manifest_file, distill_numbers), PairReader(manifests.read(manifest_file), seed=0)
    for update in updates:
        batch, random = found.take(update)
        expected = update_generator("distill", 0, update)
        assert torch.equal(batch.noise, torch.randn(4, *SHAPE, generator=expected))
        assert torch.equal(batch.label, torch.randint(10, (4,), generator=expected))
        assert torch.equal(random.get_state(), expected.get_state())
        if 4 <= update < 7:  # the phase of the fake denoiser alone
            assert batch.pairs is None
            continue
        position = 5 * update if update < 4 else 5 * (update - 3)
        for mine, theirs in zip(batch.pairs, reader.batch(position, 5), strict=True):
            assert torch.equal(mine[0:5], theirs)
    found.close()


def test_each_process_reads_its_own_pairs_and_draws_the_noise_of_all(manifest_file, distill_numbers):
    whole, _ = feed(manifest_file, distill_numbers).take(8)
    parts = [feed(manifest_file, distill_numbers, Share(rank, 3)).take(8)[0] for rank in range(3)]
    assert [len(part.pairs[0].values) for part in parts] == [1, 2, 2]
    for field in range(3):
        values = torch.cat([part.pairs[field].values for part in parts])
        assert torch.equal(values, whole.pairs[field].values) and {len(part.pairs[field]) for part in parts} == {5}
    for part in parts:
        assert torch.equal(part.noise, whole.noise) and torch.equal(part.label, whole.label)


def test_next_batch_is_read_in_a_thread_before_it_is_asked_for(manifest_file, distill_numbers, monkeypatch):
    read, done = PairReader.batch, threading.Event()

    def seen(reader: PairReader, position: int, num: int, **given):
        if position == 5:
            assert threading.current_thread() is not threading.main_thread()
            done.set()
        return read(reader, position, num, **given)

    monkeypatch.setattr(PairReader, "batch", seen)
    found = feed(manifest_file, distill_numbers)
    found.take(0)
    assert done.wait(10)
    found.close()


def test_a_reader_that_fails_says_so_where_its_batch_is_taken(manifest_file, distill_numbers, tmp_path):
    shutil.copytree(manifest_file.parent, tmp_path / "pairs")
    damaged = tmp_path / "pairs" / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    numbers = distill_numbers | {"regression_batch_size": 1, "seed": 4}
    found, taken = feed(tmp_path / "pairs" / "manifest.parquet", numbers), 0
    with pytest.raises(ValueError, match=f"{damaged} has .* bytes, its manifest says"):
        for taken in range(16):  # noqa: B007
            found.take(taken)
    order = PairReader(manifests.read(manifest_file), seed=4)
    first = next(place for place in range(12) if order._row(place, 12) >= 6)
    assert taken == first > 0  # all batches before it came whole
    found.close()


def test_rows_of_others_are_refused():
    rows = Rows(torch.arange(3), 2, 7)
    assert rows[3:5].tolist() == [1, 2] and len(rows) == 7
    for place in (slice(1, 3), slice(4, 6)):
        with pytest.raises(ValueError, match=r"rows . \.\. . wanted, here are 2 \.\. 4"):
            rows[place]
