"""Rows one update ahead: what they hold, for every process, and what a reader that fails does."""

import shutil
import threading

import pytest
import torch

from dmd.config.training import Distill
from dmd.data import manifest as manifests
from dmd.data.pairs import PairReader
from dmd.methods.base import Facts, Part
from dmd.methods.dmd import METHOD
from dmd.methods.parts.level_table import LevelTable
from dmd.train.data import BatchLoader, ImageStream, NoiseStream, PairStream, PreparedStep
from dmd.train.parallel import BatchSplit
from dmd.train.randomness import update_generator
from dmd.train.trainer import plan
from tests.trainings import WHOLE, changed

FACTS = Facts((1, 8, 8), 10, 0.5)
LEVELS = (20, 981)  # of the student's matching loss


class Drawn(METHOD):
    """DMD as far as it needs no networks: its steps and what it draws."""

    def __init__(self, config) -> None:
        levels = torch.zeros(config.levels.count)
        self.config, self.facts, self.table = config, FACTS, LevelTable(levels, levels)


def loader(manifest, section: dict, split: BatchSplit = WHOLE) -> BatchLoader:
    training = Distill.model_validate(section)
    streams = {
        "noise": NoiseStream(FACTS),
        "pairs": PairStream(PairReader(manifests.read(manifest), seed=training.seed)),
    }
    phases, _ = plan(training.method)
    return BatchLoader(
        Drawn(training.method),
        streams,
        phases.clock,
        total=phases.total,
        stage="distill",
        seed=training.seed,
        split=split,
    )


def same(one: list[PreparedStep], other: list[PreparedStep]) -> bool:
    assert [each.step for each in one] == [each.step for each in other]
    pairs = zip(one, other, strict=True)
    return all(
        a.rows[part].keys() == b.rows[part].keys() and all(torch.equal(a.rows[part][n], b.rows[part][n]) for n in rows)
        for a, b in pairs
        for part, rows in b.rows.items()
    )


@pytest.mark.parametrize("updates", [range(16), (14, 2, 3, 3, 15, 0)])
def test_rows_of_an_update_are_a_function_of_the_update(manifest_file, distill_section, updates):
    """All draws come from one generator, step by step: noise and labels, then levels and noise."""
    found, reader = loader(manifest_file, distill_section), PairReader(manifests.read(manifest_file), seed=0)
    for update in updates:
        steps = found.take(update)
        random = update_generator("distill", 0, update)
        phase = 0 if update < 4 else 1 if update < 7 else 2
        names = {0: ["student"], 1: ["fake"], 2: ["student", "fake", "fake"]}[phase]
        assert [each.step.name for each in steps] == names
        for number, prepared in enumerate(steps):
            for part in prepared.step.parts:
                rows = prepared.rows[part.name]
                if part.stream == "noise":
                    assert torch.equal(rows["noise"], torch.randn(4, *FACTS.shape, generator=random))
                    assert torch.equal(rows["label"], torch.randint(10, (4,), generator=random))
                elif part.stream == "pairs":
                    position = 5 * update if update < 4 else 5 * (update - 3)  # phase 1 reads none
                    for name, theirs in zip(("noise", "label", "image"), reader.batch(position, 5), strict=True):
                        assert torch.equal(rows[name], theirs)
                else:
                    assert (part.carries, rows.keys()) == ("noise", {"level", "level_noise"})
            if phase:
                first = prepared.rows[prepared.step.parts[0].name]
                levels = LEVELS if prepared.step.name == "student" else (0, 1000)
                assert torch.equal(first["level"], torch.randint(*levels, (4,), generator=random)), number
                assert torch.equal(first["level_noise"], torch.randn(4, *FACTS.shape, generator=random))
    found.close()


def test_positions_are_sums_over_earlier_parts_also_where_phases_change_sizes(manifest_file, distill_section):
    phases = [
        {"updates": 2, "regression_batch_size": 3, "num_pairs": 7},
        {"updates": 2, "train": "fake"},
        {"updates": 1, "regression_scale": 0.0},
        {"updates": 3, "regression_batch_size": 2, "fake_updates": 0},
        {"updates": 2},
    ]
    found, reader = (
        loader(manifest_file, changed(distill_section, phases=phases)),
        PairReader(manifests.read(manifest_file), seed=0),
    )
    position = 0
    for update, size in enumerate([3, 3, 0, 0, 0, 2, 2, 2, 5, 5]):
        given = [rows for prepared in found.take(update) for name, rows in prepared.rows.items() if name == "pairs"]
        assert len(given) == bool(size)
        for rows in given:
            noise, _, image = reader.batch(position, size, among=7 if update < 2 else None)
            assert torch.equal(rows["noise"], noise) and torch.equal(rows["image"], image)
        position += size
    found.close()


@pytest.mark.parametrize("split", [WHOLE, BatchSplit(1, 2, 2)])
def test_a_loader_that_begins_in_the_middle_gives_the_rows_of_one_that_ran_through(
    manifest_file, distill_section, split
):
    section = changed(distill_section, match_pairs=True)
    whole = loader(manifest_file, section, split)
    for update in range(16):
        expected = whole.take(update)
        resumed = loader(manifest_file, section, split)
        assert same(resumed.take(update), expected)
        resumed.close()
    whole.close()


def test_each_process_gets_its_own_rows_and_draws_for_all(manifest_file, distill_section):
    (whole, *more) = loader(manifest_file, distill_section).take(8)
    parts = [loader(manifest_file, distill_section, BatchSplit(rank, 3)).take(8) for rank in range(3)]
    assert [len(part[0].rows["pairs"]["noise"]) for part in parts] == [1, 2, 2]
    assert [len(part[0].rows["noise"]["noise"]) for part in parts] == [1, 1, 2]
    for place, expected in enumerate((whole, *more)):
        for name, rows in expected.rows.items():
            for field, values in rows.items():
                assert torch.equal(torch.cat([part[place].rows[name][field] for part in parts]), values)


def test_next_rows_are_read_in_a_thread_before_they_are_asked_for(manifest_file, distill_section, monkeypatch):
    read, done = PairReader.batch, threading.Event()

    def seen(reader: PairReader, position: int, num: int, **given):
        if position == 5:
            assert threading.current_thread() is not threading.main_thread()
            done.set()
        return read(reader, position, num, **given)

    monkeypatch.setattr(PairReader, "batch", seen)
    found = loader(manifest_file, distill_section)
    found.take(0)
    assert done.wait(10)
    found.close()


def test_a_reader_that_fails_says_so_where_its_rows_are_taken(manifest_file, distill_section, tmp_path):
    shutil.copytree(manifest_file.parent, tmp_path / "pairs")
    damaged = tmp_path / "pairs" / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    section = changed(distill_section, regression_batch_size=1, seed=4)
    found, taken = loader(tmp_path / "pairs" / "manifest.parquet", section), 0
    with pytest.raises(ValueError, match=f"{damaged} has .* bytes, its manifest says"):
        for taken in range(16):  # noqa: B007
            found.take(taken)
    order = PairReader(manifests.read(manifest_file), seed=4)
    first = next(place for place in range(12) if order._row(place, 12) >= 6)
    assert taken == first > 0  # all rows before them came whole
    found.close()


@pytest.mark.parametrize("num_classes", [0, 3])
def test_images_are_drawn_uniformly_for_all_processes_and_read_by_one(num_classes):
    """Ten images, each drawn anew; a process reads its own alone."""
    read = []

    class Images:
        labels = torch.arange(10) % 3

        def __init__(self) -> None:
            self.num_classes = num_classes

        def __len__(self) -> int:
            return 10

        def batch(self, indices: torch.Tensor) -> torch.Tensor:
            read.append(indices)
            return indices.float()[:, None, None, None].expand(-1, 1, 2, 2)

    part, stream = Part("images", 500, "images"), ImageStream(Images())
    draws = [update_generator("teacher", 0, 3) for _ in range(4)]
    whole = stream.rows(part, 0, slice(0, 500), draws[0])
    for rank, random in enumerate(draws[1:3]):
        mine = BatchSplit(rank, 2).part(500)
        rows = stream.rows(part, 0, mine, random)
        assert all(torch.equal(rows[name], whole[name][mine]) for name in whole) and len(rows["image"]) == 250
    assert all(torch.equal(draws[0].get_state(), random.get_state()) for random in draws[1:3])
    assert [len(indices) for indices in read] == [500, 250, 250]
    assert torch.equal(read[0], torch.randint(10, (500,), generator=draws[3]))
    assert torch.equal(whole["image"][:, 0, 0, 0], read[0].float())
    assert torch.equal(whole["label"], read[0] % 3 if num_classes else torch.full((500,), -1))
