"""A checkpoint is restored whole or refused by name, also where its record calls it whole."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dmd.provenance import record, tensor_files
from dmd.train import checkpoints, state
from dmd.train.trainer import Trainer
from tests.small_distillation import distillation

ROWS = [{"update": float(update), "phase": 0.0, "loss": 0.5} for update in range(3)]
AVERAGE, MOMENT = "state.average.module.last.bias", "state.optimiser.fake.0.exp_avg"
Tensors = dict[str, torch.Tensor]


def saved(folder: Path) -> tuple[Path, Tensors]:
    checkpoints.save(folder, key="key", stage="distill", update=3, tensors=state.state(distillation()), rows=ROWS)
    path = folder / "00000003.safetensors"
    return path, tensor_files.load(path)[0]


def resumed(folder: Path, trainer: Trainer, said: list[str] | None = None) -> tuple[int, list[dict[str, float]]]:
    return checkpoints.resume(folder, key="key", trainer=trainer, log=[].append if said is None else said.append)


def test_checkpoint_is_restored_bit_for_bit(tmp_path: Path):
    _, tensors = saved(tmp_path)
    other = distillation()  # other random weights
    said: list[str] = []
    assert resumed(tmp_path, other, said) == (3, ROWS)
    assert said == [f"continuing at update 3 from {tmp_path / '00000003.safetensors'}"]
    learnt = state.state(other)
    assert len(learnt) == len(tensors) - 3
    assert all(torch.equal(value, tensors[f"state.{name}"]) for name, value in learnt.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop(AVERAGE), "module.last.bias is missing"),
        (lambda held: held.update({AVERAGE: held[AVERAGE][:1]}), r"module.last.bias is float32 \(1,\), not .* \(2,\)"),
        (lambda held: held.update({AVERAGE: held[AVERAGE].double()}), "module.last.bias is float64"),
        (lambda held: held.update({f"{AVERAGE}.x": torch.zeros(2)}), "module.last.bias.x is unknown"),
        (lambda held: held.update({"state.more": torch.zeros(2)}), "more is unknown"),
        (lambda held: held.update({"more": torch.zeros(2)}), "more is unknown"),
        (lambda held: held.pop(MOMENT), "moments or steps of some parameters are missing"),
        (lambda held: held.update({MOMENT: held[MOMENT][:1]}), "0.exp_avg is float32"),
        (lambda held: held.update({f"{MOMENT}.codes": held.pop(MOMENT)}), "moments or steps of some"),
        (
            lambda held: held.update({MOMENT.replace("0", "9"): held.pop(MOMENT)}),
            "9.exp_avg belongs to none of 4 param",
        ),
        (lambda held: held.update({MOMENT.replace("0", "-1"): held.pop(MOMENT)}), "-1.exp_avg belongs to none"),
        (lambda held: held.pop("log.phase"), "log.phase is not a column of phase numbers"),
        (lambda held: held["log.update"].fill_(0.5), "log.update is not a column of update numbers"),
        (lambda held: held.update({"log.loss": held["log.loss"][:2]}), r"log.* is float64 \(3?,?\), not float64"),
        (lambda held: held.update({"log.loss": held["log.loss"].sum()}), r"log.* is float64 \(3?,?\), not float64"),
    ],
)
def test_checkpoint_of_other_contents_is_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
):
    path, tensors = saved(tmp_path)
    change(tensors)
    publish(path, tensors, {"key": "key", "update": 3})
    with pytest.raises(ValueError, match=f"{path} is not a usable checkpoint.*{message}"):
        resumed(tmp_path, distillation())


@pytest.mark.parametrize("update", [None, 4, 3.0, "3", True, -3])
def test_checkpoint_of_another_update_than_its_name_says_is_refused(tmp_path: Path, update: object):
    path, tensors = saved(tmp_path)
    publish(path, tensors, {"key": "key", "update": update})
    with pytest.raises(ValueError, match=f"{path} is not a usable checkpoint .its update is {update!r}"):
        resumed(tmp_path, distillation())


def publish(path: Path, tensors: Tensors, metadata: dict[str, object]) -> None:
    with record.publish(path, stage="distill", inputs={}) as temporary:
        tensor_files.write(temporary, tensors, metadata)


def with_buffers() -> Trainer:
    found = distillation()
    found.method.buffers |= {"counts": torch.zeros(4, dtype=torch.int64), "ratios": torch.ones(2, 3)}
    return found


def test_buffers_of_a_method_are_kept_and_set_in_place(tmp_path: Path):
    one, other = with_buffers(), with_buffers()
    one.method.buffers["counts"] += torch.arange(4)
    one.method.buffers["ratios"] *= 0.5
    checkpoints.save(tmp_path, key="key", stage="distill", update=3, tensors=state.state(one), rows=ROWS)
    held = dict(other.method.buffers)
    assert resumed(tmp_path, other) == (3, ROWS)
    assert torch.equal(held["counts"], torch.arange(4)) and torch.equal(held["ratios"], torch.full((2, 3), 0.5))
    assert all(other.method.buffers[name] is value for name, value in held.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda held: held.pop("state.buffer.counts"), "buffer.counts is missing"),
        (lambda held: held.update({"state.buffer.more": torch.zeros(1)}), "buffer.more is unknown"),
        (
            lambda held: held.update({"state.buffer.counts": torch.zeros(4)}),
            r"buffer.counts is float32 \(4,\), not int64",
        ),
        (
            lambda held: held.update({"state.buffer.ratios": torch.zeros(3, 2)}),
            r"buffer.ratios is float32 \(3, 2\), not",
        ),
    ],
)
def test_buffers_of_another_method_are_refused_by_name(
    tmp_path: Path, change: Callable[[Tensors], object], message: str
):
    learnt = state.state(with_buffers())
    checkpoints.save(tmp_path, key="key", stage="distill", update=3, tensors=learnt, rows=ROWS)
    path = tmp_path / "00000003.safetensors"
    tensors = tensor_files.load(path)[0]
    change(tensors)
    publish(path, tensors, {"key": "key", "update": 3})
    with pytest.raises(ValueError, match=f"{path} is not a usable checkpoint.*{message}"):
        resumed(tmp_path, with_buffers())
