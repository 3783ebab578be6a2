"""Whole networks and adapters, in a world of which a teacher can be trained in seconds: both learn its distribution."""

import copy

import pytest
import torch

from dmd.diffusion.denoiser import Denoiser, start_scale
from dmd.diffusion.solver import solve
from dmd.methods.denoising import DenoiserTraining
from dmd.methods.dmd import Distillation
from dmd.methods.numbers import Batch
from dmd.methods.regression import l2_distance
from dmd.methods.schedule import update_generator
from dmd.metrics.frechet import frechet_distance
from dmd.networks import build
from dmd.networks.adapters import carried, with_network
from dmd.networks.lora import original

MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 64, "layers": 3, "num_classes": 0}
HEUN = {"name": "heun", "steps": 12, "sigma_min": 0.02, "sigma_max": 8.0, "rho": 7.0}
NUM, BATCH, UPDATES = 2000, 128, 150
NONE = torch.full((BATCH,), -1)
PHASE = {"matching_scale": 1.0, "regression_scale": 0.0}


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def teacher() -> Denoiser:
    """Of two modes at (-1, 0) and (1, 0)."""
    numbers = {"updates": 800, "learning_rate": 2e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "ema_decay": 0.99}
    numbers |= {"warmup": 10, "decay": "cosine", "gradient_clip": 1.0, "sigma_log_mean": -0.5, "sigma_log_std": 1.4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        training = DenoiserTraining(Denoiser(build(MLP), sigma_data=0.8), numbers)
    for update in range(numbers["updates"]):
        random = torch.Generator().manual_seed(update)
        side = 2.0 * torch.randint(2, (BATCH, 1, 1, 1), generator=random) - 1
        image = 0.25 * torch.randn(BATCH, 2, 1, 1, generator=random)
        image[:, :1] += side
        training.update(update, image, NONE, random)
    return Denoiser(training.average.module, sigma_data=0.8).requires_grad_(False).eval()


def distance(points: torch.Tensor, other: torch.Tensor) -> float:
    moments = [(each.flatten(1).double().mean(0), each.flatten(1).double().T.cov()) for each in (points, other)]
    return frechet_distance(*moments[0], *moments[1])


def distilled(teacher: Denoiser, numbers: dict, *, whole: bool) -> tuple[list[float], Distillation]:
    """Distances of one-step points to those of the teacher, before and after updates of the matching loss alone."""
    if whole:
        parts = [copy.deepcopy(teacher) for _ in range(3)]
    else:
        carrier = copy.deepcopy(teacher)
        adapter = {"rank": 16, "alpha": None, "targets": None}
        views = carried(carrier.network, adapter, ("generator", "fake"), seed=0)
        parts = [with_network(carrier, view) for view in views]
    found = Distillation(*parts, numbers, l2_distance)
    noise, label = normal(NUM, 2, 1, 1, seed=1), torch.full((NUM,), -1)
    real, _ = solve(teacher, normal(NUM, 2, 1, 1, seed=2), label, HEUN)
    distances = [distance(found.generate_all(noise, label), real)]
    for update in range(UPDATES):
        found.set_learning_rate(1.0 - update / UPDATES)
        image, _ = found.generator_update(
            Batch(normal(BATCH, 2, 1, 1, seed=3 + update), NONE), PHASE, update_generator("distill", 0, update)
        )
        for number in range(3):
            found.fake_update(image, NONE, update_generator("fake", number, update))
    return [*distances, distance(found.generate_all(noise, label), real)], found


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "adapters"])
def test_matching_alone_brings_points_to_those_of_the_teacher(teacher, distill_numbers, whole):
    """The value of the matching loss says nothing of it: the distance does."""
    optimiser = distill_numbers["optimiser"] | {"learning_rate": 2e-3, "fake_learning_rate": 4e-3, "weight_decay": 0.0}
    levels = distill_numbers["levels"] | {"sigma_min": 0.02, "sigma_max": 8.0}
    numbers = distill_numbers | {"optimiser": optimiser, "levels": levels, "sigma": 8.0, "regression_weight": 0.0}
    assert start_scale(teacher, 8.0) == 8.0
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    (begun, ended), found = distilled(teacher, numbers, whole=whole)
    print(f"distance {begun:.3f} -> {ended:.3f}")
    assert begun > 0.3 and ended < 0.2 * begun
    if not whole:
        after = original(found.teacher.network.carrier.state_dict())
        assert all(torch.equal(value, before[f"network.{name}"]) for name, value in after.items())
