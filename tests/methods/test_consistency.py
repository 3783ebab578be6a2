"""Consistency models: exact on a Gaussian, schedules of the papers, targets, resume, drawing."""

import math
from dataclasses import dataclass
from statistics import NormalDist

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from dmd.config.method_base import Mode, PlannedPhase
from dmd.config.methods.consistency import Consistency as Section
from dmd.config.methods.consistency import ConsistencyLevels
from dmd.config.training import Distill
from dmd.methods import consistency
from dmd.methods.base import Clock, Facts
from dmd.methods.consistency import Consistency, level_probabilities, number_of_levels, target_decay
from dmd.methods.parts.distances import pseudo_huber
from dmd.models import loading
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser, per_sample
from dmd.models.networks import build
from dmd.models.student_calls import Calls
from dmd.provenance import tensor_files
from dmd.sampling.sampler import Sampler
from dmd.train.data import ImageStream, PreparedStep
from dmd.train.log_columns import UpdateLog
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import assemble, loader, plan

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3, "dropout": 0.5}
MEAN, STD = 0.3, 0.5  # of the Gaussian data of all laws
SIGMA_MIN, SIGMA_MAX = 0.002, 80.0
CPU = torch.device("cpu")
PHASES = [{"updates": 6}]


def section(**changed) -> Section:
    return Section.model_validate({"name": "consistency", "batch_size": 7, "phases": PHASES} | changed)


def clock(update: int = 0, total: int = 6) -> Clock:
    config = section(phases=[{"updates": total}])
    return Clock(update, total, PlannedPhase(0, 0, config.phases[0]))


def flow(image: torch.Tensor, sigma: torch.Tensor, end: torch.Tensor, std: float = STD) -> torch.Tensor:
    """The exact flow map of N(MEAN, std^2), from levels sigma to levels `end`."""
    ratio = ((std**2 + end.square()) / (std**2 + sigma.square())).sqrt()
    return MEAN + (image - MEAN) * per_sample(ratio, image)


class ExactStudent(nn.Module):
    """The denoiser whose consistency map is the flow map to SIGMA_MIN."""

    def __init__(self, std: float = STD) -> None:
        super().__init__()
        self.std, self.sigma_data = std, 0.7
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, image, sigma, label):
        variance = self.sigma_data**2
        skip, own = variance / ((sigma - SIGMA_MIN).square() + variance), variance / (sigma.square() + variance)
        ratio = (sigma - SIGMA_MIN).clamp(min=1e-9) / sigma
        mapped = flow(image, sigma, torch.full_like(sigma, SIGMA_MIN), self.std)
        return per_sample(own, image) * image + (mapped - per_sample(skip, image) * image) / per_sample(ratio, image)


class ExactStep(nn.Module):
    """A teacher whose Euler step ends exactly where the flow does, on a given grid."""

    def __init__(self, sigmas: torch.Tensor) -> None:
        super().__init__()
        self.lower = dict(zip(sigmas[1:].tolist(), sigmas[:-1].tolist(), strict=True))

    def forward(self, image, sigma, label):
        lower = torch.tensor([self.lower[one] for one in sigma.tolist()], dtype=sigma.dtype)
        slope = (flow(image, sigma, lower) - image) / per_sample(lower - sigma, image)
        return image - per_sample(sigma, image) * slope


def on_gaussian(config: Section, std: float = STD, **networks: nn.Module) -> Consistency:
    teacher = GaussianMixtureDenoiser(torch.full((1, 1, 2, 2), MEAN), torch.tensor([std]), torch.ones(1))
    modules = {"teacher": teacher, "student": ExactStudent(std), **networks}
    return Consistency(config, modules, Facts((1, 2, 2), 0, 0.7), CPU)


def loss_everywhere(method: Consistency, num: int, image: torch.Tensor) -> float:
    """Mean loss over all pairs of neighbours of `num` levels, float64."""
    sigmas, noise = method.sigmas(num), torch.linspace(-1, 2, 4, dtype=torch.float64).expand(num - 1, 4)
    noise = noise.reshape(num - 1, 1, 2, 2)
    rows = {"image": image.expand(num - 1, 1, 2, 2), "label": torch.full((num - 1,), -1), "noise": noise}
    rows |= {"sigma": sigmas[1:], "lower_sigma": sigmas[:-1], "bin": torch.zeros(num - 1, dtype=torch.int64)}
    (step,) = Consistency.steps(method.config, clock())
    return float(method.loss(step, step.parts[0], rows, clock(), UpdateLog(BatchSplit())))


def network(architecture: dict, seed: int) -> Denoiser:
    """Random weights everywhere, the layers that start at zero too."""
    denoiser = Denoiser(build(architecture), sigma_data=0.5)
    random = torch.Generator().manual_seed(seed)
    for parameter in denoiser.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return denoiser


@dataclass
class Images:
    """Random images, whole in memory."""

    architecture: dict
    num_classes: int = 3

    def __len__(self) -> int:
        return 20

    @property
    def labels(self) -> torch.Tensor:
        return torch.arange(20) % 3

    def batch(self, indices: torch.Tensor) -> torch.Tensor:
        random = torch.Generator().manual_seed(5)
        side = self.architecture["resolution"]
        return torch.randn((20, self.architecture["channels"], side, side), generator=random)[indices]


def trainer(architecture: dict = MLP, **changed):
    """A trainer of random networks and the loader of its rows."""
    training = Distill.model_validate(
        {
            "method": {"name": "consistency", "batch_size": 7, "phases": PHASES} | changed,
            "optimisers": {"student": {"learning_rate": 1.0e-2}},
            "schedule": {"warmup": 0},
            "ema_decay": 0.9,
        }
    )
    modules = {role: network(architecture, 0 if role == "teacher" else 1) for role in training.method.roles()}
    side = architecture["resolution"]
    facts = Facts((architecture["channels"], side, side), 3, 0.5)
    found = assemble(training, modules, facts, distances={}, split=BatchSplit())
    planned, _ = plan(training.method)
    rows = loader(found, {"images": ImageStream(Images(architecture))}, planned, stage="distill")
    return found, lambda update: found.update(planned.clock(update), rows.take(update)), rows


def weights(module: nn.Module) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()]).clone()


@pytest.mark.parametrize("num", [2, 11, 18, 151, 1281])
def test_student_is_the_image_at_the_lowest_level_exactly(num):
    method = Consistency(section(), {"student": network(MLP, 1)}, Facts((2, 1, 1), 3, 0.5), CPU)
    sigma = method.sigmas(num)[:1].float().expand(5)
    image = torch.randn(5, 2, 1, 1)
    assert torch.equal(method.map("student", image, sigma, torch.zeros(5, dtype=torch.int64)), image)
    assert method.sigmas(num)[-1] == SIGMA_MAX and (method.sigmas(num).float().diff() > 0).all()


def test_student_map_is_the_papers_scales_on_the_raw_network():
    student = network(MLP, 1)
    method = Consistency(section(), {"student": student}, Facts((2, 1, 1), 3, 0.5), CPU)
    sigma, image, label = torch.tensor([0.002, 0.01, 0.5, 3.0, 80.0]), torch.randn(5, 2, 1, 1), torch.arange(5) % 3
    _, _, c_in, condition = student.preconditioning(sigma)
    raw = student.predict(image * per_sample(c_in, image).float(), condition, label)
    skip = 0.25 / ((sigma - 0.002).square() + 0.25)
    out = 0.5 * (sigma - 0.002) / (sigma.square() + 0.25).sqrt()
    expected = per_sample(skip, image) * image + per_sample(out, image) * raw
    torch.testing.assert_close(method.map("student", image, sigma, label), expected)


@pytest.mark.parametrize(("solver", "order"), [("euler", 1), ("heun", 2)])
def test_loss_of_the_exact_map_falls_with_the_order_of_the_solver(solver, order):
    method = on_gaussian(section(solver=solver))
    image = torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64)
    losses = [loss_everywhere(method, num, image) for num in (321, 641, 1281)]
    for coarse, fine in zip(losses, losses[1:], strict=False):  # the error of a step falls by 2^(order + 1)
        assert coarse / fine == pytest.approx(2 ** (2 * (order + 1)), rel=0.1)


@pytest.mark.parametrize("num", [2, 3, 18])
def test_loss_of_the_exact_map_is_zero_where_the_teacher_steps_exactly(num):
    image = torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64)
    config = section(solver="euler")
    method = on_gaussian(config, teacher=ExactStep(on_gaussian(config).sigmas(num)))
    assert loss_everywhere(method, num, image) < 1e-20
    assert loss_everywhere(on_gaussian(config), num, image) > 1e-8


@pytest.mark.parametrize("num", [2, 3, 18])
def test_training_on_one_image_has_the_exact_flow(num):
    method = on_gaussian(section(teach="training", weighting="gap"), std=0.0)
    assert loss_everywhere(method, num, torch.full((1, 1, 2, 2), MEAN, dtype=torch.float64)) < 1e-20
    assert loss_everywhere(method, num, torch.full((1, 1, 2, 2), 0.9, dtype=torch.float64)) > 1e-8


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_teacher_step_is_the_solvers(solver):
    from dmd.sampling.ode_solvers import SOLVERS

    teacher = GaussianMixtureDenoiser(torch.full((1, 1, 2, 2), MEAN), torch.tensor([STD]), torch.ones(1))
    image = 10 * torch.randn((3, 1, 2, 2), dtype=torch.float64)
    label, ends = torch.full((3,), -1), torch.tensor([10.0, 6.0], dtype=torch.float64)
    expected = SOLVERS[solver](teacher, image.clone(), label, ends)
    sigma, lower = (ends[place].expand(3) for place in (0, 1))
    found = consistency.teacher_step(teacher, image, label, sigma, lower, heun=solver == "heun")
    torch.testing.assert_close(found, expected)


def test_euler_step_has_the_sheets_values():
    teacher = GaussianMixtureDenoiser(torch.full((1, 1, 1, 1), MEAN), torch.tensor([STD]), torch.ones(1))
    image, sigmas = torch.full((1, 1, 1, 1), 2.0, dtype=torch.float64), torch.tensor([10.0, 6.0, 3.0]).double()
    for sigma, lower in zip(sigmas[:-1], sigmas[1:], strict=True):
        image = consistency.teacher_step(teacher, image, None, sigma[None], lower[None], heun=False)
    assert float(image) == pytest.approx(0.81437, abs=1e-5)


def test_root_schedule_ends_one_above_its_last():
    number = section(levels={"number": {"kind": "root"}}).levels.number
    found = [number_of_levels(number, clock(update, 1000)) for update in range(1000)]
    assert found[0] == 2 and found[-1] == 151 and found == sorted(found)
    assert number_of_levels(number, clock(250, 1000)) == 76  # sqrt(.25 (151^2 - 4) + 4) = 75.52
    assert [round((num - 1) ** 2 / 22801, 1) for num in found[99::200]] == [0.1, 0.3, 0.5, 0.7, 0.9]


def test_doubling_schedule_doubles_to_1281_in_equal_parts():
    number = section(levels={"number": {"kind": "doubling"}}).levels.number
    found = [number_of_levels(number, clock(update, 400)) for update in range(400)]
    assert found == [num for num in (11, 21, 41, 81, 161, 321, 641, 1281) for _ in range(50)]
    assert [number_of_levels(number, clock(update, 3)) for update in range(3)] == [11, 21, 41]


@pytest.mark.parametrize("num", [2, 11, 1281])
def test_level_probabilities_are_those_of_a_normal_within_the_table(num):
    sigmas = on_gaussian(section()).sigmas(num)
    levels = ConsistencyLevels.model_validate({"distribution": "log-normal"})
    found = level_probabilities(sigmas, levels)
    assert float(found.sum()) == pytest.approx(1, abs=1e-12) and (found > 0).all()
    normal = NormalDist(-1.1, 2.0)
    below = [normal.cdf(math.log(sigma)) for sigma in sigmas.tolist()]
    expected = (torch.tensor(below, dtype=torch.float64).diff() / (below[-1] - below[0])).tolist()
    assert found.tolist() == pytest.approx(expected, rel=1e-8)
    assert level_probabilities(sigmas, ConsistencyLevels()).tolist() == pytest.approx([1 / (num - 1)] * (num - 1))


@pytest.mark.parametrize("distribution", ["uniform", "log-normal"])
def test_drawn_levels_are_neighbours_as_often_as_they_should(distribution):
    levels = {"distribution": distribution, "number": {"kind": "doubling"}}
    method = on_gaussian(section(levels=levels, batch_size=20000))
    (step,) = Consistency.steps(method.config, clock())
    rows = method.draw(step, clock(50, 400), torch.Generator().manual_seed(0))["images"]
    sigmas = method.sigmas(21)
    place = torch.searchsorted(sigmas.float(), rows["sigma"])
    assert torch.equal(sigmas.float()[place], rows["sigma"])
    assert torch.equal(sigmas.float()[place - 1], rows["lower_sigma"])
    expected = 20000 * level_probabilities(sigmas, method.config.levels)
    counts = torch.bincount(place - 1, minlength=20)
    assert float(((counts - expected).square() / expected.clamp(min=1)).sum()) < 45  # 0.1 % of chi-squared of 19


def test_pseudo_huber_is_of_whole_images():
    made, target = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    expected = [math.hypot(float((one - other).norm()), 0.1) - 0.1 for one, other in zip(made, target, strict=True)]
    assert pseudo_huber(made, target, 0.1).tolist() == pytest.approx(expected, rel=1e-5)
    made.requires_grad_()
    pseudo_huber(made, made.detach(), 0.1).sum().backward()
    assert torch.equal(made.grad, torch.zeros_like(made))


@pytest.mark.parametrize("metric", ["l2", "pseudo-huber"])
@pytest.mark.parametrize("weighting", ["one", "gap"])
def test_gradient_is_that_of_the_weighted_distance_to_a_constant(metric, weighting):
    config = section(teach="training", metric={"kind": metric}, weighting=weighting)
    student, (step,) = network(MLP, 1), Consistency.steps(config, clock())
    method = Consistency(config, {"student": student}, Facts((2, 1, 1), 3, 0.5), CPU)
    rows = method.draw(step, clock(), torch.Generator().manual_seed(0))["images"]
    rows |= {"image": torch.randn(7, 2, 1, 1), "label": torch.arange(7) % 3}
    parameters = list(student.parameters())
    loss = method.loss(step, step.parts[0], rows, clock(), UpdateLog(BatchSplit()))
    found = torch.autograd.grad(loss, parameters)
    made, target = (
        method.map("student", rows["image"] + per_sample(sigma, rows["image"]) * rows["noise"], sigma, rows["label"])
        for sigma in (rows["sigma"], rows["lower_sigma"])
    )
    square, c = (made - target.detach()).square().flatten(1).sum(1), 0.00054 * math.sqrt(2)
    each = square / 2 if metric == "l2" else (square + c**2).sqrt() - c
    expected = (each / (rows["sigma"] - rows["lower_sigma"]) if weighting == "gap" else each).mean()
    torch.testing.assert_close(found, torch.autograd.grad(expected, parameters))


def test_perceptual_distance_is_the_one_given():
    config = section(teach="training", metric={"kind": "lpips", "file": "vgg.pth"})
    assert config.distance() is config.metric and config.decoders() == ("none",)
    student, (step,) = network(MLP, 1), Consistency.steps(config, clock())
    given = {"none": lambda made, target: 3 * (made - target).abs().mean()}
    method = Consistency(config, {"student": student}, Facts((2, 1, 1), 3, 0.5), CPU, given)
    rows = method.draw(step, clock(), torch.Generator().manual_seed(0))["images"]
    rows |= {"image": torch.randn(7, 2, 1, 1), "label": torch.arange(7) % 3}
    log = UpdateLog(BatchSplit())
    loss = method.loss(step, step.parts[0], rows, clock(), log)
    columns = log.columns()
    assert columns["loss/consistency"] == pytest.approx(loss.item()) and columns["levels"] == 18


@pytest.mark.parametrize("teach", ["distillation", "training"])
def test_target_is_the_average_of_students(teach):
    found, update, _ = trainer(teach=teach, target_decay=0.8)
    start = weights(found.networks["student"])
    assert torch.equal(weights(found.networks["target"]), start)
    expected, teacher = start, weights(found.networks["teacher"]) if teach == "distillation" else None
    for number in range(3):
        update(number)
        expected = 0.8 * expected + 0.2 * weights(found.networks["student"])
    torch.testing.assert_close(weights(found.networks["target"]), expected)
    assert not torch.equal(expected, start)
    assert teacher is None or torch.equal(weights(found.networks["teacher"]), teacher)


def test_target_decay_follows_the_number_of_levels():
    config = section(levels={"number": {"kind": "root"}}, target_decay=0.9, target_schedule="levels")
    assert target_decay(config, clock(0, 1000)) == pytest.approx(0.9)
    assert target_decay(config, clock(250, 1000)) == pytest.approx(0.9 ** (2 / 76))
    assert target_decay(section(target_decay=0.9), clock(250, 1000)) == 0.9


def test_both_passes_drop_out_alike():
    found, _, rows = trainer(UNET, teach="training", target_decay=0.5, dropout=True)
    (prepared,) = rows.take(0)
    assert prepared.step.dropout == ("student", "target")
    given = dict(prepared.rows["images"])
    given["sigma"] = given["lower_sigma"]
    columns = found.update(clock(), [PreparedStep(prepared.step, {"images": given})])
    assert columns["loss/consistency"] == 0 and found.networks["student"].training
    _, update, _ = trainer(UNET, teach="training", target_decay=0.5, dropout=True)
    assert update(0)["loss/consistency"] > 0


@pytest.mark.parametrize("calls", [None, [80.0, 0.8]])
def test_exact_student_is_drawn_as_the_flow(calls):
    method = on_gaussian(section(calls=calls))
    drawn = Calls.of(method.sampling().facts())
    assert drawn == method.sampling() and drawn.num_fresh == (0 if calls is None else 1)
    noise, fresh = torch.randn(2, 5000, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    label = torch.full((5000,), -1)
    image = drawn.draw(method.networks["student"], noise, label, lambda number: fresh)
    low, high, middle = (torch.full((5000,), sigma).double() for sigma in (SIGMA_MIN, SIGMA_MAX, 0.8))
    expected = flow(80 * noise, high, low)
    if calls is not None:
        expected = flow(expected + (0.8**2 - SIGMA_MIN**2) ** 0.5 * fresh, middle, low)
    torch.testing.assert_close(image, expected)
    assert float(image.mean()) == pytest.approx(MEAN, abs=0.02) and float(image.std()) == pytest.approx(STD, abs=0.02)


@pytest.mark.parametrize("weights", ["ema", "raw"])
def test_a_student_of_several_calls_is_drawn_with_the_first_few_too(tmp_path, weights):
    """Of one training: its map leads to the image from any level, so that drawing may end after any call."""
    denoiser = Denoiser(build(MLP), sigma_data=0.6)
    nn.init.normal_(denoiser.network.last.weight)
    state = denoiser.network.state_dict()
    content = {f"ema.{name}": value for name, value in state.items()}
    content |= {f"raw.{name}": 1.1 * value for name, value in state.items()}
    facts = {"kind": "generator", "network": MLP, "shape": [2, 1, 1], "num_classes": MLP["num_classes"]}
    facts |= {"sigma": 80.0, "sigma_data": 0.6}
    calls = Calls((80.0, 6.0, 0.8), map="consistency", sigma_min=SIGMA_MIN)
    path = tmp_path / "generator.safetensors"
    tensor_files.save(path, content, facts | {"calls": calls.facts()})
    few = {
        number: next(Sampler(path, solver=None, weights=weights, calls=number).batches(range(50))) for number in (1, 3)
    }
    assert {number: batch.network_calls for number, batch in few.items()} == {1: 1, 3: 3}
    student, noise, label = loading.load_denoiser(path, weights=weights)[0], few[1].noise, few[1].label
    once = calls.x0(student, 80 * noise, torch.full((50,), 80.0), label)
    torch.testing.assert_close(few[1].image, once)
    assert not torch.allclose(few[3].image, once, atol=1e-2)
    whole = next(Sampler(path, solver=None, weights=weights).batches(range(50)))
    assert torch.equal(whole.image, few[3].image)
    for number in (0, 4):
        with pytest.raises(ValueError, match=f"is no student of {number} calls, but of 1, 2, 3"):
            loading.load_denoiser(path, calls=number)


def test_roles_are_what_the_configuration_needs():
    assert set(section().roles()) == {"teacher", "student"}
    assert set(section(teach="training").roles()) == {"student"}
    roles = section(target_decay=0.95).roles()
    assert roles["target"].mode is Mode.COPIED and section(target_decay=0.95).trained == ("student",)
    assert section().reads() == {"images"}


def test_student_learns_the_map_of_its_teacher():
    """On points of N(MEAN, STD^2), from a network that knows nothing, against the exact teacher."""
    training = Distill.model_validate(
        {
            "method": {"name": "consistency", "batch_size": 128, "phases": [{"updates": 400}]},
            "optimisers": {"student": {"learning_rate": 5.0e-3, "betas": [0.9, 0.99]}},
            "schedule": {"warmup": 10, "decay": "linear"},
            "ema_decay": 0.95,
        }
    )
    torch.manual_seed(0)
    student = Denoiser(build(MLP | {"num_classes": 0, "width": 32}), sigma_data=0.6)
    teacher = GaussianMixtureDenoiser(torch.full((1, 2, 1, 1), MEAN), torch.tensor([STD]), torch.ones(1))
    facts = Facts((2, 1, 1), 0, 0.6)
    found = assemble(training, {"teacher": teacher, "student": student}, facts, distances={}, split=BatchSplit())
    noise = torch.randn((2000, 2, 1, 1), generator=torch.Generator().manual_seed(7))

    def error() -> float:
        sigma, low = torch.full((2000,), SIGMA_MAX), torch.full((2000,), SIGMA_MIN)
        with torch.no_grad():
            made = found.method.map("student", SIGMA_MAX * noise, sigma, torch.full((2000,), -1))
        return float((made - flow(SIGMA_MAX * noise, sigma, low)).square().mean())

    before, random, (planned, _) = error(), torch.Generator().manual_seed(3), plan(training.method)
    for number in range(400):
        (step,) = Consistency.steps(training.method, planned.clock(number))
        rows = found.method.draw(step, planned.clock(number), random)["images"]
        rows["image"] = MEAN + STD * torch.randn((128, 2, 1, 1), generator=random)
        rows["label"] = torch.full((128,), -1)
        found.update(planned.clock(number), [PreparedStep(step, {"images": rows})])
    assert error() < 0.2 * before


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"target_schedule": "levels", "target_decay": 0.9}, "target_schedule"),
        ({"target_schedule": "levels", "levels": {"number": {"kind": "root"}}}, "target_schedule"),
        ({"weighting": "gap", "metric": {"kind": "lpips", "file": "vgg.pth"}}, "weighting"),
        ({"weighting": "gap", "metric": {"kind": "l2", "decoder": "full"}}, "weighting"),
        ({"teach": "training", "guidance": 2.0}, "guidance"),
        ({"teach": "training", "solver": "euler"}, "solver"),
        ({"levels": {"sigma_log_mean": -0.4}}, "sigma_log_mean"),
        ({"levels": {"sigma_log_std": 1.0}}, "sigma_log_std"),
        ({"calls": [0.8, 80.0]}, "calls"),
        ({"calls": [90.0]}, "calls"),
        ({"calls": [80.0, 0.002]}, "calls"),
        ({"levels": {"sigma_min": 1.0, "sigma_max": 0.5}}, "sigma_max"),
        ({"levels": {"number": {"kind": "doubling", "last": 5}}}, "last 5"),
    ],
)
def test_contradictions_are_refused_by_name(changed, named):
    with pytest.raises(ValidationError, match=named):
        section(**changed)


def test_defaults_that_have_no_effect_may_be_written():
    """So that a child can take back what its parent had set."""
    section(teach="training", solver="heun", guidance=1.0)
    section(levels={"distribution": "uniform", "sigma_log_mean": -1.1, "sigma_log_std": 2.0})


def test_text_and_a_level_that_nobody_names_are_refused():
    student = {"student": network(MLP, 1)}
    with pytest.raises(ValueError, match="text"):
        Consistency(section(), student, Facts((2, 1, 1), 0, 0.5, text=True), CPU)
    config = section(levels={"sigma_max": None})
    with pytest.raises(ValueError, match="sigma_max"):
        Consistency(config, student, Facts((2, 1, 1), 0, 0.5), CPU)
    method = Consistency(config, student, Facts((2, 1, 1), 0, 0.5, sigma_max=14.6), CPU)
    assert method.sampling().sigmas == (14.6,) and method.sigmas(5)[-1] == 14.6
