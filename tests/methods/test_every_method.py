"""What holds for every method: micro-batches add up, a resumed training ends in the same bytes, a step trains its own.

A new method is one line of `METHODS`.
"""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dmd.config.method_base import Mode, Role, Source
from dmd.config.training import Distill
from dmd.methods import load
from dmd.methods.base import Clock, Facts, Rows, Step
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.loading import extended
from dmd.models.networks import build
from dmd.train import checkpoints, state
from dmd.train.data import NoiseStream, Stream
from dmd.train.log_columns import UpdateLog
from dmd.train.parallel import BatchSplit
from dmd.train.trainer import Trainer, assemble, loader, plan
from tests.trainings import WHOLE, FixedRows

NETWORK = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 3}
FACTS = Facts(shape=(2, 1, 1), num_classes=3, sigma_data=0.6, sigma_max=80.0, network=NETWORK)
FAKES = [{"updates": 2, "fake_updates": 2}, {"updates": 2, "fake_updates": 1, "fresh_optimiser": True}]
JUDGES = [{"updates": 2, "discriminator_updates": 2}, {"updates": 2}]
GAN = {"student_weight": 0.1, "fake_weight": 0.3, "r1": 0.5}
LCM = {"name": "lcm", "levels": {"kind": "karras"}, "times": {"kind": "karras"}}
METHODS: dict[str, dict[str, Any]] = {
    "dmd": {"name": "dmd", "matching_batch_size": 8, "regression_batch_size": 6, "phases": FAKES},
    "dmd2": {"name": "dmd2", "batch_size": 8, "calls": 2, "adversarial": GAN, "phases": FAKES},
    "decoupled": {"name": "dmd2", "batch_size": 8, "calls": 2, "guidance": 3.0, "decoupled": {}, "phases": FAKES},
    "tdm": {"name": "tdm", "batch_size": 8, "calls": 2, "phases": FAKES},
    "sid": {"name": "sid", "batch_size": 8, "phases": FAKES},
    "sim": {"name": "sid", "divergence": {"kind": "sim"}, "batch_size": 8, "phases": FAKES},
    "sida": {"name": "sid", "adversarial": {"student_weight": 0.1}, "batch_size": 8, "phases": FAKES},
    "uni-instruct": {
        "name": "sid",
        "divergence": {"kind": "f-divergence"},
        "adversarial": {"student_weight": 0.1},
        "batch_size": 8,
        "phases": FAKES,
    },
    "diff-instruct": {"name": "diff-instruct", "batch_size": 8, "phases": FAKES},
    "f-distill": {"name": "f-distill", "batch_size": 8, "adversarial": GAN, "phases": FAKES},
    "gan": {"name": "gan", "batch_size": 8, "phases": JUDGES},
    "ufogen": {"name": "ufogen", "batch_size": 8, "reconstruction_weight": 0.5, "r1": 0.5, "phases": JUDGES},
    "consistency": {
        "name": "consistency",
        "levels": {"number": {"kind": "root", "last": 9}},
        "batch_size": 8,
        "target_decay": 0.5,
        "phases": [{"updates": 4}],
    },
    "consistency-training": {
        "name": "consistency",
        "teach": "training",
        "metric": {"kind": "pseudo-huber"},
        "weighting": "gap",
        "batch_size": 8,
        "phases": [{"updates": 4}],
    },
    "reflow": {"name": "rectified-flow", "objective": "reflow", "batch_size": 6, "phases": [{"updates": 4}]},
    "flow-distillation": {
        "name": "rectified-flow",
        "objective": "distillation",
        "batch_size": 6,
        "phases": [{"updates": 4}],
    },
    "ect": {"name": "ect", "batch_size": 8, "stage_updates": 2, "phases": [{"updates": 4}]},
    "moment-matching": {"name": "moment-matching", "batch_size": 8, "calls": 2, "phases": FAKES},
    "mean-flow": {"name": "mean-flow", "batch_size": 8, "phases": [{"updates": 4}]},
    "scm": {"name": "scm", "batch_size": 8, "tangent_warmup": 2, "phases": [{"updates": 4}]},
    "tract": {
        "name": "tract",
        "levels": 8,
        "batch_size": 8,
        "phases": [{"updates": 2, "groups": 4}, {"updates": 2, "groups": 2}],
    },
    "boot": {
        "name": "boot",
        "levels": 9,
        "boundary_weight": 2.0,
        "batch_size": 8,
        "boundary_batch_size": 6,
        "phases": [{"updates": 4}],
    },
    "lcm": {**LCM, "guidance": {"lowest": 2.0, "highest": 6.0}, "batch_size": 8, "phases": [{"updates": 4}]},
    "lcm-lora": {**LCM, "embedded": False, "target_decay": 0.0, "batch_size": 8, "phases": [{"updates": 4}]},
    "meng": {"name": "meng", "batch_size": 8, "phases": [{"updates": 4}]},
    "imm": {"name": "imm", "particles": 2, "k": 3, "batch_size": 4, "phases": [{"updates": 4}]},
    "ctm": {"name": "ctm", "levels": 6, "solver_steps": 3, "batch_size": 8, "phases": [{"updates": 4}]},
    "dfno": {"name": "dfno", "states": 3, "batch_size": 6, "phases": [{"updates": 4}]},
    "progressive": {
        "name": "progressive",
        "batch_size": 8,
        "phases": [{"updates": 2, "steps": 4}, {"updates": 2, "steps": 2}],
    },
}


def denoiser(seed: int) -> Denoiser:
    """A denoiser with random weights."""
    torch.manual_seed(seed)
    made = Denoiser(build(NETWORK), sigma_data=0.6)
    for parameter in made.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return made


def trainer(method: dict[str, Any], *, split: BatchSplit = WHOLE, **keys: Any) -> Trainer:
    """Of a method whose networks all differ, but that copied ones begin as the student."""
    distill = Distill.model_validate(
        {"method": method, "optimisers": {"student": {"learning_rate": 1e-3}}, "schedule": {"warmup": 0}} | keys
    )
    modules: dict[str, nn.Module] = {}
    for seed, (name, role) in enumerate(distill.method.roles().items()):
        if role.source is Source.NEW:
            torch.manual_seed(seed)
            modules[name] = load(distill.method.name).new_network(distill.method, name, FACTS)
        else:
            modules[name] = _with_role(denoiser(1 if role.source is Source.STUDENT else seed), role)
    return assemble(distill, modules, FACTS, distances={"none": _squares}, split=split)


def random_guidance(network: nn.Module) -> None:
    """Gives the layer of a denoiser's guidance, which starts at zero, random weights: the output depends on it."""
    layer: Any = network.network.guidance_input.linear  # type: ignore[union-attr]
    layer.weight.data = 0.3 * torch.randn(layer.weight.shape, generator=torch.Generator().manual_seed(3))


def _with_role(found: Denoiser, role: Role) -> Denoiser:
    """The denoiser with what its role adds to it, and its guidance."""
    if added := role.additions():
        found = extended(found, NETWORK, **added)
    return found if role.guidance_input else with_guidance(found, torch.tensor(-1), role.guidance)


def _squares(image: Tensor, other: Tensor) -> Tensor:
    return (image - other).square().mean()


def streams() -> dict[str, Stream]:
    """Eight rows of each stream, and noise."""
    random = torch.Generator().manual_seed(5)
    label = torch.randint(3, (8,), generator=random)
    image, noise = torch.randn(2, 8, 2, 1, 1, generator=random)
    pairs = {"noise": noise[:6], "label": label[:6], "image": image[:6]}
    states = torch.randn(6, 3, 2, 1, 1, generator=random)
    paths = {"trajectory": states, "levels": torch.tensor([10.0, 0.5, 0.0]).expand(6, -1)}
    return {
        "noise": NoiseStream(FACTS),
        "images": FixedRows({"image": image, "label": label}),
        "pairs": FixedRows(pairs),
        "trajectories": FixedRows({"noise": noise[:6], "label": label[:6], **paths}),
    }


def train(found: Trainer, first: int, stop: int, given: Mapping[str, Stream] | None = None) -> list[dict[str, float]]:
    """The log of some updates, on `streams` or given ones."""
    phases, _ = plan(found.training.method)
    rows = loader(found, given or streams(), phases, stage="distill")
    logs = []
    for update in range(first, stop):
        clock = phases.clock(update)
        logs.append({"update": update, "phase": 0, **found.update(clock, rows.take(update))})
    rows.close()
    return logs


def steps(found: Trainer) -> tuple[Clock, list[tuple[Step, Mapping[str, Rows]]]]:
    """The steps of the first update, with their rows."""
    phases, _ = plan(found.training.method)
    rows = loader(found, streams(), phases, stage="distill")
    prepared = [(each.step, each.rows) for each in rows.take(0)]
    rows.close()
    return phases.clock(0), prepared


@pytest.mark.parametrize("name", METHODS)
def test_micro_batches_add_up_to_the_batch(name):
    found = [trainer(METHODS[name], split=split) for split in (WHOLE, BatchSplit(micro_batch_size=3))]
    logs = [train(each, 0, 3) for each in found]
    assert logs[0][0] == pytest.approx(logs[1][0], rel=1e-3, abs=1e-6, nan_ok=True)
    for role in found[0].training.method.trained:
        for one, other in zip(*(each.networks.weights(role).parameters() for each in found), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", METHODS)
def test_training_that_resumes_ends_in_the_same_bytes(tmp_path, name):
    whole, stopped, resumed = (trainer(METHODS[name]) for _ in range(3))
    train(whole, 0, 4)
    rows = train(stopped, 0, 3)
    checkpoints.save(tmp_path, key="key", stage="distill", update=3, tensors=state.state(stopped), rows=rows)
    first, _ = checkpoints.resume(tmp_path, key="key", trainer=resumed, log=print)
    train(resumed, first, 4)
    ends = state.state(whole), state.state(resumed)
    assert first == 3 and ends[0].keys() == ends[1].keys()
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())
    for role, config in whole.training.method.roles().items():
        assert any(each.startswith(f"network.{role}.") for each in ends[0]) == (config.mode is not Mode.FROZEN)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_leaves_gradients_on_what_it_trains_alone(name):
    found = trainer(METHODS[name])
    clock, prepared = steps(found)
    found.method.configure(clock.phase)
    rows: dict[str, Rows] = {}
    for step, drawn in prepared:
        found.networks.train_only(step.trains)
        for part in step.parts:
            rows[part.name] = {**rows.get(part.carries or "", {}), **drawn[part.name]}
            found.method.loss(step, part, rows[part.name], clock, UpdateLog(WHOLE)).backward()
        for role in found.networks:
            given = [each.grad for each in found.networks.weights(role).parameters() if each.grad is not None]
            assert any(bool(each.any()) for each in given) == (role in step.trains)
            found.networks.weights(role).zero_grad()


@pytest.mark.parametrize("name", METHODS)
def test_networks_that_are_frozen_stay_and_trained_ones_move(name):
    found = trainer(METHODS[name])
    before = {role: _weights(found, role) for role in found.networks}
    train(found, 0, 4)
    for role, config in found.training.method.roles().items():
        assert torch.equal(before[role], _weights(found, role)) == (config.mode is Mode.FROZEN), role


def _weights(found: Trainer, role: str) -> Tensor:
    return torch.cat([each.detach().flatten() for each in found.networks.weights(role).parameters()]).clone()
