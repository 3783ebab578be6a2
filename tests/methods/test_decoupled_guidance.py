"""Guidance with noise levels of its own: equal ones are the guided real score, none is matching alone."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dmd.config.training import Distill
from dmd.methods.base import Facts, Rows
from dmd.methods.dmd2 import Dmd2
from dmd.models.adapters import add_adapters, with_network
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import both_conditions, unguided, with_guidance
from dmd.train.log_columns import UpdateLog
from dmd.train.measured_update import measured_steps
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, plan
from tests.methods import test_conditions
from tests.methods.test_dmd2 import FACTS, LISTED, NoiseStream, denoiser, section, train, trainer
from tests.trainings import WHOLE, weights

EMPTY = torch.tensor(-1)
GUIDED: dict[str, Any] = {"guidance": 3.0, "decoupled": {}}
ROLES = ("teacher", "student", "fake")
TEXT = "guided epsilon of text"


def guided(distill: Distill, *, split: BatchSplit = WHOLE, adapters: bool = False) -> Trainer:
    """A training on points, with whole networks that all differ, or with adapters on one."""
    if adapters:
        carrier = denoiser(0)
        views = add_adapters(carrier.network, {"rank": 2, "alpha": None, "targets": None}, ROLES[1:], seed=0)
        modules = {role: with_network(carrier, view) for role, view in zip(ROLES, views, strict=True)}
        for seed, role in enumerate(ROLES[1:]):
            torch.manual_seed(seed)
            for parameter in modules[role].parameters():
                parameter.data = 0.3 * torch.randn(parameter.shape)
    else:
        modules = {role: denoiser(seed) for seed, role in enumerate(ROLES)}
    method: Any = distill.method
    modules["teacher"] = with_guidance(modules["teacher"], EMPTY, method.guidance)
    return assemble(distill, modules, FACTS, distances={}, split=split)


def of_text(distill: Distill) -> Trainer:
    """A training of a text network with the noise levels of its table."""
    base = test_conditions.made(TEXT, 0)
    method: Any = distill.method
    empty = torch.randn(5, 32, generator=torch.Generator().manual_seed(3))
    modules = {"teacher": with_guidance(base, empty, method.guidance)}
    modules |= {role: test_conditions.made(TEXT, seed) for seed, role in enumerate(ROLES[1:], start=1)}
    assert base.table is not None
    facts = Facts((4, 8, 8), 0, 1.0, text=True, sigma_max=float(base.table[1][-1]))
    return assemble(distill, modules, facts, distances={}, split=WHOLE)


def rows_of(found: Trainer, num: int = 4) -> Rows:
    """Rows of a student's step of the first call; both terms have the same noise levels and noise."""
    random, facts = torch.Generator().manual_seed(7), found.method.facts
    noise, other = torch.randn(2, num, *facts.shape, generator=random)
    label = torch.randn(num, 5, 32, generator=random) if facts.text else torch.randint(3, (num,), generator=random)
    level = torch.randint(20, 981, (num,), generator=random)
    return {"noise": noise, "label": label, "level": level, "level_noise": other} | {
        "guidance_level": level,
        "guidance_noise": other,
    }


def slopes(found: Trainer, rows: Rows) -> list[Tensor]:
    """The gradient of the student's weights in its step."""
    phases, _ = plan(found.training.method)
    step = found.method.steps(found.method.config, phases.clock(0))[0]
    found.networks.train_only(step.trains)
    found.method.loss(step, step.parts[0], dict(rows), phases.clock(0), UpdateLog(WHOLE)).backward()
    assert all(each.grad is None for role in ("teacher", "fake") for each in found.networks[role].parameters())
    given = [each.grad for each in found.networks.weights("student").parameters()]
    return [each for each in given if each is not None]


WEIGHTINGS = ["eq8", "sigma/alpha", "sigma3/alpha", "sigma2/alpha"]


@pytest.mark.parametrize("weighting", WEIGHTINGS)
@pytest.mark.parametrize("kind", ["labels", "adapters", "text"])
def test_equal_levels_noise_and_weights_are_the_guided_real_score(kind, weighting):
    keys = {"weighting": weighting, "guidance": 3.0, "alpha_factor": kind == "text"}
    if kind == "text":
        keys |= {"times": {"kind": "karras", "sigma_max": None}, "levels": {"kind": "teacher"}}
    found = []
    for decoupled in (None, {}):
        distill = section(method=keys | {"decoupled": decoupled})
        found.append(of_text(distill) if kind == "text" else guided(distill, adapters=kind == "adapters"))
    rows = rows_of(found[0])
    plain, split = (slopes(each, rows) for each in found)
    assert len(plain) == len(split) > 0 and max(float(each.abs().max()) for each in plain) > 1e-6
    for one, other in zip(plain, split, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4 * float(one.abs().max()))


@pytest.mark.parametrize("keys", [{}, LISTED])
def test_guidance_of_1_is_matching_alone_bit_for_bit(keys):
    found = trainer(section(method=keys | {"decoupled": {}})), trainer(section(method=keys))
    logs = [train(each, 0, 4) for each in found]
    assert str(logs[0]) == str(logs[1]) and "loss/guidance" not in logs[0][0]
    assert all(torch.equal(*(weights(each.networks[role]) for each in found)) for role in ("student", "fake"))


@pytest.mark.parametrize("matching_weight", [0.0, 0.5])
def test_each_term_has_its_weight_and_the_noise_level_of_its_own(matching_weight):
    """Eq. 8 by hand, with the teacher's estimates of two noised images."""
    found = guided(section(method=GUIDED | {"decoupled": {"matching_weight": matching_weight}}))
    rows = rows_of(found) | {"guidance_level": torch.tensor([30, 200, 500, 970])}
    rows["guidance_noise"] = torch.randn(rows["noise"].shape, generator=torch.Generator().manual_seed(1))
    method, label = found.method, rows["label"]
    assert isinstance(method, Dmd2)
    image = method.generate(rows)
    x, bare = image.detach(), unguided(found.networks["teacher"])  # type: ignore[arg-type]
    matched = method.table.noised(x, rows["level_noise"], rows["level"])
    other = method.table.noised(x, rows["guidance_noise"], rows["guidance_level"])
    with torch.no_grad():
        real, fake = bare(matched.image, matched.sigma, label), found.networks["fake"](*matched[:2], label)
        given, without = (bare(other.image, other.sigma, each) for each in (label, EMPTY.expand(4)))
    term = 2.0 * (given - without)

    def size(difference: Tensor) -> Tensor:
        return difference.abs().flatten(1).mean(1)[:, None, None, None]

    slope = matching_weight * (fake - real) / size(x - real - term) - term / size(x - given - term)
    parameters = list(found.networks["student"].parameters())
    expected = torch.autograd.grad(image, parameters, slope / x.numel(), allow_unused=True)
    for mine, theirs in zip(slopes(found, rows), [each for each in expected if each is not None], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5 * float(theirs.abs().max()))


def test_both_conditions_are_two_calls_in_one_and_need_guidance():
    found, rows = denoiser(0), rows_of(guided(section(method=GUIDED)))
    seen: list[int] = []
    found.network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    sigma = torch.tensor([0.1, 1.0, 5.0, 80.0])
    pair = both_conditions(with_guidance(found, EMPTY, 2.0), rows["noise"], sigma, rows["label"])
    assert seen == [8]
    for mine, label in zip(pair, (EMPTY.expand(4), rows["label"]), strict=True):
        torch.testing.assert_close(mine, found(rows["noise"], sigma, label))
    assert unguided(found) is found and unguided(with_guidance(found, EMPTY, 2.0)).network is found.network
    with pytest.raises(ValueError, match="without guidance|no guidance"):
        both_conditions(found, rows["noise"], sigma, rows["label"])


def drawn_levels(method: Mapping[str, Any], times: int = 40) -> dict[int, Tensor]:
    """Levels of the guidance term in many draws, by the trained call."""
    found = guided(section(method=GUIDED | dict(method)))
    clock, random = plan(found.training.method)[0].clock(0), torch.Generator().manual_seed(0)
    student, carried, _ = found.method.steps(found.method.config, clock)
    levels: dict[int, list[Tensor]] = {}
    for _ in range(times):
        rows = found.method.draw(student, clock, random)["noise"]
        number = rows["fresh"].shape[1] if "fresh" in rows else 0
        levels.setdefault(number, []).append(rows["guidance_level"])
        assert not any("guidance" in name for name in found.method.draw(carried, clock, random)["carried"])
        assert not torch.equal(rows["guidance_noise"], rows["level_noise"])
    table = found.method.table.sigmas  # type: ignore[attr-defined]
    return {number: table[torch.cat(each)] for number, each in levels.items()}


def test_guidance_term_draws_levels_below_the_trained_call_or_those_of_the_section():
    below = drawn_levels(LISTED)
    assert below.keys() == {0, 1, 2} and float(below[0].max()) > 20
    assert 0.5 < float(below[1].max()) < 5 and 0.1 < float(below[2].max()) < 0.8
    anywhere = drawn_levels(LISTED | {"decoupled": {"below_call": False}})
    assert all(float(each.max()) > 20 for each in anywhere.values())
    few = drawn_levels({"decoupled": {"min_index": 100, "max_index": 102}})
    assert few.keys() == {0} and len(few[0].unique()) == 3


def test_teacher_makes_three_passes_and_its_memory_is_that_of_the_doubled_batch():
    distill = section(method=GUIDED)
    found = measured_steps(guided(distill), {"noise": NoiseStream(FACTS)})
    passes = [next(iter(each.parts.values())).passes for each in found]
    assert passes == [{"student": 3, "fake": 1, "teacher": 3}, {"fake": 3}, {"student": 1, "fake": 3}]
    plain = measured_steps(guided(section(method={"guidance": 3.0})), {"noise": NoiseStream(FACTS)})
    mine, theirs = (each[0].parts["noise"] for each in (found, plain))
    assert theirs.passes["teacher"] == 2 and mine.activations.per_row >= theirs.activations.per_row > 0


@pytest.mark.parametrize("micro_batch_size", [3, 8])
def test_micro_batches_add_up_to_the_batch_and_its_log(micro_batch_size):
    distill = section(method=LISTED | GUIDED, optimisers={"student": {"learning_rate": 1e-4}})
    found = [guided(distill, split=split) for split in (WHOLE, BatchSplit(micro_batch_size=micro_batch_size))]
    logs = [train(each, 0, 3) for each in found]
    columns = {"loss/matching", "loss/guidance", "matching/norm", "guidance/norm", "guidance/nonfinite"}
    assert columns <= logs[0][0].keys() and logs[0][0]["guidance/norm"] > 0
    assert any(name.startswith("guidance/gap") for name in logs[0][0])
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-3, abs=1e-6, nan_ok=True)
    for role in ("student", "fake"):
        torch.testing.assert_close(*(weights(each.networks[role]) for each in found), rtol=1e-3, atol=2e-5)


class Unfinished(nn.Module):
    """A teacher's network that is not finite without condition."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor, condition: Tensor, label: Tensor) -> Tensor:
        out: Tensor = self.network(image, condition, label)
        return torch.where((label == -1)[:, None, None, None], float("inf"), out)


def test_a_term_that_is_not_finite_leaves_the_other_one():
    found = guided(section(method=GUIDED | {"weighting": "sigma2/alpha"}))
    teacher = found.networks["teacher"]
    assert isinstance(teacher, Denoiser)
    teacher.network.network = Unfinished(teacher.network.network)  # type: ignore[assignment]
    row = train(found, 0, 1)[0]
    assert (row["matching/nonfinite"], row["guidance/nonfinite"]) == (0, 8)
    assert row["loss/guidance"] == 0 and row["loss/matching"] > 0 and row["gradient_norm/student"] > 0


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"guidance": 1.0, "decoupled": {"matching_weight": 0.0}}, "decoupled.matching_weight: 0, but guidance 1"),
        ({"decoupled": {"min_index": 990}}, r"decoupled: indices 990..980 are not a range within 0..999"),
        ({"decoupled": {"max_index": 1000}}, r"decoupled: indices 20..1000 are not a range within 0..999"),
    ],
)
def test_section_refuses_what_leaves_nothing(keys, message):
    with pytest.raises(ValidationError, match=message):
        section(method=keys)


def test_levels_that_no_call_is_above_are_refused():
    keys = LISTED | GUIDED | {"decoupled": {"min_index": 900}}
    with pytest.raises(ValueError, match=r"decoupled.below_call: no noise level of indices 900..980 is below sigma 5 "):
        guided(section(method=keys))
