"""One update of any method: what a small one sees of phases, micro-batches, the log, and gradients."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import pytest
import torch
from pydantic import Field
from torch import Tensor, nn

from dmd.config.method_base import MethodSection, Mode, Phase, PlannedPhase, Role, Source
from dmd.config.section_base import Many
from dmd.config.training import Training
from dmd.methods.base import Clock, Facts, Method, Part, Rows, Step, StepLog
from dmd.train import state
from dmd.train.data import BatchLoader
from dmd.train.networks import NetworkSet
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Plan, Trainer, loader, plan
from tests.trainings import WHOLE, FixedRows, weights

NUM = 5
NOISE = torch.randn(NUM, 3, generator=torch.Generator().manual_seed(0))
FACTS = Facts((3,), 0, 1.0)


class CriticSection(MethodSection):
    """Of the method below."""

    name: Literal["critic"] = "critic"
    phases: Annotated[Many[Phase], Field(min_length=1)]

    def roles(self) -> dict[str, Role]:
        new = {"student": Mode.TRAINED, "critic": Mode.TRAINED, "target": Mode.COPIED, "teacher": Mode.FROZEN}
        return {role: Role(Source.NEW, mode) for role, mode in new.items()}


@dataclass
class Critic(Method[CriticSection]):
    """A student learns through a critic, which learns on the same rows; a target follows, statistics are kept.

    Attributes:
        seen: calls and rows, in order.
    """

    seen: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.buffers["scale"] = torch.ones(())

    @classmethod
    def steps(cls, config: CriticSection, clock: Clock) -> tuple[Step, ...]:
        student = Step("student", ("student",), (Part("made", NUM, "noise"),))
        return student, Step("critic", ("critic",), (Part("again", NUM, carries="made"),))

    def draw(self, step: Step, clock: Clock, random: torch.Generator) -> Mapping[str, Rows]:
        (part,) = step.parts
        return {part.name: {"level": torch.rand(NUM, generator=random)}}

    def configure(self, phase: PlannedPhase) -> None:
        self.seen.append(("configure", phase.index))

    def begin(self, phase: PlannedPhase) -> None:
        self.seen.append(("begin", phase.index))

    def loss(self, step: Step, part: Part, rows: Rows, clock: Clock, log: StepLog) -> Tensor:
        self.seen.append((part.name, rows))
        if step.name == "student":
            image = self.networks["student"](rows["noise"])
            rows["image"] = image.detach()
            answer = self.networks["critic"](image) * self.buffers["scale"]
            log.mean("answer/mean", answer)
            return (answer + rows["level"][:, None]).square().mean()
        return (self.networks["critic"](rows["image"]) - rows["level"][:, None]).square().mean()

    def after(self, step: Step, clock: Clock, log: StepLog) -> None:
        if step.name == "student":
            self.networks.follow("target", "student", 0.5)
            self.buffers["scale"] = 1.0 + log.value("answer/mean").abs().float()


def section(**keys: Any) -> Training:
    method = CriticSection.model_validate({"phases": keys.pop("phases", [{"updates": 10}])})
    given = {"optimisers": {"student": {"learning_rate": 0.01}}, "schedule": {"warmup": 0}}
    return Training.model_validate({"method": method, **given, **keys})


def trainer(split: BatchSplit = WHOLE, **keys: Any) -> tuple[Trainer, Plan, BatchLoader]:
    training = section(**keys)
    modules: dict[str, nn.Module] = {}
    for seed, role in enumerate(training.method.roles()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            modules[role] = nn.Linear(3, 3 if role in ("student", "target") else 1)
    networks = NetworkSet(modules, training.method.roles(), ema_decay=0.9)
    made = Trainer(training, Critic(training.method, networks, FACTS, networks.device), networks, split)
    made.start()
    phases, _ = plan(training.method)
    return made, phases, loader(made, {"noise": FixedRows({"noise": NOISE})}, phases, stage="critic")


def updated(num: int, split: BatchSplit = WHOLE, **keys: Any) -> tuple[Trainer, list[dict[str, float]]]:
    found, phases, rows = trainer(split, **keys)
    log = [found.update(phases.clock(update), rows.take(update)) for update in range(num)]
    rows.close()
    return found, log


def test_a_step_trains_its_roles_alone_through_the_others():
    """The first step has the closed gradient of the student, and leaves none on the critic."""
    found, phases, rows = trainer()
    steps = rows.take(0)
    student, critic = (found.networks[role] for role in ("student", "critic"))
    level = steps[0].rows["made"]["level"][:, None]
    loss = (critic(student(NOISE)) + level).square().mean()
    expected = torch.cat([grad.flatten() for grad in torch.autograd.grad(loss, list(student.parameters()))])
    before = {role: weights(found.networks[role]) for role in found.networks}
    log = found.update(phases.clock(0), steps[:1])
    assert log["gradient_norm/student"] == pytest.approx(float(expected.norm()), rel=1e-5)
    moved = {role for role in before if not torch.equal(weights(found.networks[role]), before[role])}
    assert moved == {"student", "target"} and critic.weight.grad is None
    torch.testing.assert_close(
        weights(found.networks["target"]), 0.5 * (before["target"] + weights(student)), rtol=1e-6, atol=1e-7
    )
    found.update(phases.clock(1), rows.take(1))
    assert not torch.equal(weights(critic), before["critic"])
    assert torch.equal(weights(found.networks["teacher"]), before["teacher"])
    rows.close()


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_update_as_the_batch_and_statistics_see_all_of_it(size):
    (whole, rows), (parts, cut) = updated(4), updated(4, BatchSplit(micro_batch_size=size))
    for one, other in zip(rows, cut, strict=True):
        assert one == pytest.approx(other, rel=1e-4)
    for role in whole.networks:
        torch.testing.assert_close(
            weights(parts.networks[role]), weights(whole.networks[role]), rtol=1e-4, atol=1e-6, msg=role
        )
    torch.testing.assert_close(parts.method.buffers["scale"], whole.method.buffers["scale"])
    assert float(whole.method.buffers["scale"]) > 1


@pytest.mark.parametrize("split", [WHOLE, BatchSplit(micro_batch_size=2)])
def test_rows_carried_to_a_later_step_keep_their_cut_and_what_the_loss_added(split):
    found, _ = updated(1, split)
    made = [rows for name, rows in found.method.seen if name == "made"]
    again = [rows for name, rows in found.method.seen if name == "again"]
    sizes = [place.stop - place.start for place in split.slices(NUM)]
    assert [len(rows["noise"]) for rows in made] == [len(rows["noise"]) for rows in again] == sizes
    for one, other in zip(made, again, strict=True):
        assert torch.equal(one["noise"], other["noise"]) and torch.equal(one["image"], other["image"])
        assert not torch.equal(one["level"], other["level"])  # drawn anew, for each step
    assert torch.equal(torch.cat([rows["noise"] for rows in again]), NOISE)


def test_phases_are_configured_whenever_they_come_and_begun_once():
    phases = [{"updates": 2}, {"updates": 3}]
    found, _ = updated(5, phases=phases)
    events = [each for each in found.method.seen if each[0] in ("configure", "begin")]
    assert events == [("configure", 0), ("begin", 0), ("configure", 1), ("begin", 1)]
    resumed, plan, rows = trainer(phases=phases)
    for update in (3, 4):
        resumed.update(plan.clock(update), rows.take(update))
    rows.close()
    assert [each for each in resumed.method.seen if each[0] in ("configure", "begin")] == [("configure", 1)]


@pytest.mark.parametrize("over", ["run", "phase"])
def test_learning_rates_count_all_updates_or_those_of_a_phase(over):
    phases = [{"updates": 2}, {"updates": 4, "learning_rate_scale": 3.0}]
    found, plan, rows = trainer(phases=phases, schedule={"warmup": 2, "over": over})
    rates = []
    for update in range(6):
        found.update(plan.clock(update), rows.take(update))
        rates.append([found.networks.optimisers[role].adamw.param_groups[0]["lr"] for role in ("student", "critic")])
    rows.close()
    factors = [0.5, 1, 3, 3, 3, 3] if over == "run" else [0.5, 1, 1.5, 3, 3, 3]
    assert rates == [pytest.approx([0.01 * factor] * 2) for factor in factors]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_phase_with_a_fresh_optimiser_forgets_the_moments_of_the_student_alone(fresh):
    found, _ = updated(5, phases=[{"updates": 3}, {"updates": 2, "fresh_optimiser": fresh}])
    steps = {role: float(found.networks.optimisers[role].tensors()["0.step"]) for role in ("student", "critic")}
    assert steps == {"student": 2 if fresh else 5, "critic": 5}


def test_a_training_that_is_restored_goes_on_bit_for_bit():
    """Weights, average, moments and buffers, the target too; frozen networks are in no checkpoint."""
    whole, log = updated(7)
    begun, _ = updated(4)
    kept = {name: value.clone() for name, value in state.state(begun).items()}
    assert "buffer.scale" in kept and "network.target.weight" in kept and not any("teacher" in name for name in kept)
    found, plan, rows = trainer()
    state.restore(found, kept)
    again = [found.update(plan.clock(update), rows.take(update)) for update in range(4, 7)]
    rows.close()
    assert again == log[4:]
    assert all(torch.equal(value, state.state(whole)[name]) for name, value in state.state(found).items())


@pytest.mark.parametrize(("split", "size"), [(WHOLE, 5), (BatchSplit(micro_batch_size=2), 2)])
def test_largest_pass_is_that_of_the_first_update(split, size):
    assert trainer(split)[0].pass_size() == size
