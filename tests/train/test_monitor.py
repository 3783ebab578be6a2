"""The monitor of a training: how often it measures, what it keeps, and that processes agree."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd.config.training import Distill
from dmd.config.training import Monitor as Config
from dmd.metrics.features import Pixels
from dmd.metrics.teacher_comparison import FEATURES, SAME_NOISE
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.train import monitor as monitors
from dmd.train.image_measures import ImageMeasures, operations
from dmd.train.monitor import FIRST_SEED, MOST, SHARE, conditions, update_interval
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import assemble
from tests.train import monitored_updates
from tests.train.monitored_updates import CONFIG, FACTS, OneCall, measured, started
from tests.train.parallel_updates import MLP
from tests.trainings import changed

ROOT = Path(__file__).resolve().parents[2]


def test_measurements_and_teacher_take_at_most_their_share_of_the_passes():
    for total, training, teacher, once in [
        (600, 614_400, 2_800, 160),
        (750, 307_000, 2_800, 80),
        (10**5, 1e9, 5e3, 80),
    ]:
        interval = update_interval(total, training=training, teacher=teacher, once=once)
        number = math.ceil(total / interval)
        assert 1 <= number <= MOST and teacher + number * once <= SHARE * training
        more = math.ceil(total / max(interval - 1, 1))
        assert interval == 1 or number == MOST or more > MOST or teacher + more * once > SHARE * training


def test_a_short_training_is_measured_once_at_its_end():
    assert update_interval(16, training=100, teacher=2800, once=80) == 16
    assert update_interval(3, training=1e9, teacher=0, once=1) == 1


def test_a_student_of_fewer_calls_in_each_round_is_measured_within_the_share():
    phases = [{"steps": 2, "updates": 100}, {"steps": 1, "updates": 100}]
    section = {"method": {"name": "progressive", "batch_size": 4, "phases": phases}}
    modules: dict[str, Any] = {role: Denoiser(build(MLP), sigma_data=0.5) for role in ("teacher", "student")}
    trainer = assemble(Distill.model_validate(section), modules, FACTS, distances={}, split=BatchSplit())
    config, calls = CONFIG.model_copy(update={"every": None}), trainer.method.sampling()
    assert calls is not None and len(calls.sigmas) == 1
    images: Any = OneCall(modules["teacher"])
    measures = ImageMeasures(torch.device("cpu"), Pixels(8))
    monitor = monitors.Monitor(config, trainer, conditions(config, 3, None, 0), measures, images, calls)
    monitor.count_passes()
    monitor.start(200, training_passes=50_000)
    passes = 15 + sum(15 * (2 if done <= 100 else 1) for done in range(1, 201) if monitor.due(done, 200))
    assert SHARE * 50_000 / 2 < passes <= SHARE * 50_000


def test_conditions_are_classes_spread_over_all_or_the_first_prompts():
    config = Config(num_images=40, seeds=8)
    few = conditions(config, 3, None, 0)
    assert few.num == 3 and few.label.tolist() == [0, 1, 2] * 13
    many = conditions(config, 1000, None, 0)
    assert many.num == 5 and many.label[:5].tolist() == [0, 200, 400, 600, 800] and len(many) == 40
    one = conditions(config, 0, None, 0)
    assert one.num == 1 and set(one.label.tolist()) == {-1} and one.seeds == range(FIRST_SEED, FIRST_SEED + 40)
    states = torch.arange(6.0)[:, None, None].expand(-1, 2, 3)
    text = conditions(config, 0, lambda num: states[:num], 6)
    assert text.num == 5 and text.prompt[:6].tolist() == [0, 1, 2, 3, 4, 0]
    assert torch.equal(text.label[:, 0, 0], text.prompt.float())


def test_the_average_of_an_update_is_best_and_the_student_is_unchanged(distill_section):
    found, monitor = started(distill_section, BatchSplit())
    networks = found.trainer.networks
    before = {name: value.clone() for name, value in networks.weights("student").state_dict().items()}
    first = monitor.measure(0)
    assert all(torch.equal(value, before[name]) for name, value in networks.weights("student").state_dict().items())
    columns = [first]
    averages = [networks.average.module.state_dict()]
    averages = [{name: value.clone() for name, value in averages[0].items()}]
    for update in range(3):
        found.update(update)
        columns.append(monitor.measure(update + 1))
        averages.append({name: value.clone() for name, value in networks.average.module.state_dict().items()})
    values = [each[FEATURES] for each in columns]
    best = values.index(min(values))
    assert len(set(values)) == 4 and monitor.best.update == best and monitor.best.value == values[best]
    assert all(torch.equal(monitor.best.weights[name], value) for name, value in averages[best].items())
    assert SAME_NOISE in first


def test_a_restored_monitor_goes_on_without_drawing_the_teacher(distill_section):
    whole, kept = measured(distill_section, BatchSplit())
    found, monitor = started(distill_section, BatchSplit())
    monitor.measure(0)
    saved = {name: value.clone() for name, value in monitor.state().items()}
    again, other = started(distill_section, BatchSplit())
    other._teacher_images = None  # type: ignore[assignment]
    other.restore(saved)
    other.start(3, training_passes=10**5)
    other._teacher_images = monitor._teacher_images
    columns = []
    for update in range(2):
        again.update(update)
        columns.append(other.measure(update + 1))
    assert columns == whole[1:]
    state = other.state()
    assert state.keys() == kept.keys() and all(torch.equal(state[name], value) for name, value in kept.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("teacher"), "monitor.teacher is missing"),
        (lambda tensors: tensors.update(odd=torch.zeros(1)), "monitor.odd is unknown"),
        (lambda tensors: tensors.update(teacher=torch.zeros(3, 7).double()), "monitor.teacher is float64"),
        (lambda tensors: tensors.pop(next(name for name in tensors if name.startswith("best."))), "missing"),
    ],
)
def test_a_damaged_checkpoint_is_refused(distill_section, change, message):
    _, monitor = started(distill_section, BatchSplit())
    monitor.measure(0)
    tensors = monitor.state()
    change(tensors)
    with pytest.raises(ValueError, match=message):
        monitor.restore(tensors)


def test_several_processes_measure_the_same_as_one(distill_section, tmp_path):
    """15 images are shared by two processes, unequally."""
    command = [sys.executable, monitored_updates.__file__, str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    workers = [
        subprocess.Popen(
            [*command, str(rank), "2"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        for rank in range(2)
    ]
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(distill_section))
        worker.stdin.close()
    for worker in workers:
        assert worker.wait(120) == 0, worker.stderr and worker.stderr.read()
    (first, state), (second, other) = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert first == second
    assert all(torch.equal(value, other[name]) for name, value in state.items())
    alone, kept = measured(distill_section, BatchSplit())
    for mine, theirs in zip(alone, first, strict=True):
        assert theirs == pytest.approx(mine, rel=1e-3, abs=1e-4)
    assert kept.keys() == state.keys() and torch.equal(kept["numbers"][1], state["numbers"][1])


def test_same_noise_needs_a_student_that_starts_where_the_teacher_does(distill_section):
    config = CONFIG.model_copy(update={"best": "same_noise"})
    _, monitor = started(distill_section, BatchSplit(), config)
    assert monitor.measure(0)[SAME_NOISE] == monitor.best.value
    with pytest.raises(ValueError, match=r"monitor\.best: same_noise, but the student"):
        started(distill_section, BatchSplit(), config, sigma=2.5)
    _, other = started(distill_section, BatchSplit(), sigma=2.5)
    assert SAME_NOISE not in other.measure(0)


def test_weights_that_are_no_number_never_stay_the_best(distill_section, monkeypatch):
    _, monitor = started(distill_section, BatchSplit())
    values = iter([math.nan, 3.0, 2.0, 2.5])
    monkeypatch.setattr(monitors.comparison, "compare", lambda *_, **__: {FEATURES: next(values)})
    for done in range(4):
        monitor.measure(done)
    assert (monitor.best.update, monitor.best.value) == (2, 2.0)


def test_an_unknown_key_of_the_section_is_refused(distill_section):
    with pytest.raises(ValueError, match="num_images: 4 is less than seeds 8"):
        Config(num_images=4)
    with pytest.raises(ValueError, match="best: clip, but clip is false"):
        Config(best="clip")
    assert changed(distill_section, monitor=None)["monitor"] is None


def test_operations_are_those_of_products_and_convolutions():
    network = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3, padding=1), torch.nn.Flatten(), torch.nn.Linear(256, 5))
    with torch.no_grad():
        assert operations(lambda: network(torch.zeros(2, 1, 8, 8))) == 2 * (2 * 64 * 4 * 9 + 2 * 256 * 5)
