"""Whole networks and adapters, in a world of which a teacher can be trained in seconds: both learn its distribution."""

import copy

import pytest
import torch

from dmd.methods.base import Facts, Part, Rows
from dmd.metrics.frechet import frechet_distance
from dmd.models.adapters import add_adapters, with_network
from dmd.models.denoiser import Denoiser, start_scale
from dmd.models.lora import base_weights
from dmd.models.networks import build
from dmd.sampling.solvers import solve
from tests.trainings import Updates, changed

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 64, "layers": 3, "num_classes": 0}
HEUN = {"name": "heun", "steps": 12, "sigma_min": 0.02, "sigma_max": 8.0, "rho": 7.0}
NUM, BATCH, UPDATES = 2000, 128, 150
NONE = torch.full((BATCH,), -1)
FACTS = Facts((2, 1, 1), 0, 0.8)
TEACHER = {
    "method": {"name": "denoising", "batch_size": BATCH, "sigma_log_mean": -0.5, "sigma_log_std": 1.4},
    "optimisers": {"student": {"learning_rate": 2e-3, "weight_decay": 0.0, "gradient_clip": 1.0}},
    "schedule": {"warmup": 10, "decay": "cosine"},
    "ema_decay": 0.99,
}


class Modes:
    """A stream of two modes at (-1, 0) and (1, 0)."""

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        side = 2.0 * torch.randint(2, (BATCH, 1, 1, 1), generator=random) - 1
        image = 0.25 * torch.randn(BATCH, 2, 1, 1, generator=random)
        image[:, :1] += side
        return {"image": image, "label": NONE}


class Noise:
    """A stream of unit noise."""

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        return {"noise": torch.randn(part.size, 2, 1, 1, generator=random), "label": NONE}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    """Trained for 800 updates."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = Denoiser(build(MLP), sigma_data=0.8)
    section = changed(TEACHER, phases=[{"updates": 800}])
    training = Updates(section, {"student": made}, FACTS, {"images": Modes()})
    for update in range(800):
        training.update(update)
    return Denoiser(training.trainer.networks.average.module, sigma_data=0.8).requires_grad_(False).eval()


def distance(points: torch.Tensor, other: torch.Tensor) -> float:
    moments = [(each.flatten(1).double().mean(0), each.flatten(1).double().T.cov()) for each in (points, other)]
    return frechet_distance(*moments[0], *moments[1])


def distilled(teacher: Denoiser, section: dict, *, whole: bool) -> tuple[list[float], Updates]:
    """Distances of one-step points to those of the teacher, before and after updates of the matching loss alone."""
    roles = ("teacher", "student", "fake")
    if whole:
        parts = {role: copy.deepcopy(teacher) for role in roles}
    else:
        carrier = copy.deepcopy(teacher)
        adapter = {"rank": 16, "alpha": None, "targets": None}
        views = add_adapters(carrier.network, adapter, roles[1:], seed=0)
        parts = {role: with_network(carrier, view) for role, view in zip(roles, views, strict=True)}
    found = Updates(section, parts, FACTS, {"noise": Noise()})
    rows = {"noise": normal(NUM, 2, 1, 1, seed=1), "label": torch.full((NUM,), -1)}
    real, _ = solve(teacher, normal(NUM, 2, 1, 1, seed=2), rows["label"], HEUN)

    def error() -> float:
        with torch.no_grad():
            return distance(found.trainer.method.generate(rows), real)

    begun = error()
    for update in range(UPDATES):
        found.update(update)
    return [begun, error()], found


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_matching_alone_brings_points_to_those_of_the_teacher(teacher, distill_section, whole):
    """The value of the matching loss says nothing of it: the distance does."""
    section = changed(
        distill_section,
        student={"learning_rate": 2e-3, "weight_decay": 0.0},
        fake={"learning_rate": 4e-3},
        schedule={"warmup": 0, "decay": "linear"},
        levels={"sigma_min": 0.02, "sigma_max": 8.0},
        sigma=8.0,
        regression_weight=0.0,
        matching_batch_size=BATCH,
        phases=[{"updates": UPDATES, "fake_updates": 3}],
    )
    assert start_scale(teacher, 8.0) == 8.0
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    (begun, ended), found = distilled(teacher, section, whole=whole)
    print(f"distance {begun:.3f} -> {ended:.3f}")
    assert begun > 0.3 and ended < 0.2 * begun
    after = found["teacher"].state_dict()
    if not whole:
        weights = base_weights(found["teacher"].network.carrier.state_dict())
        after = {f"network.{name}": value for name, value in weights.items()}
    assert after.keys() == before.keys() and all(torch.equal(value, before[name]) for name, value in after.items())
