"""AdamW with moments of 32 and of 8 bits: size, restoring, learning rates."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from dmd.config.training import Optimiser as OptimiserSection
from dmd.train.optimiser import Optimiser, moment_bytes
from dmd.train.parallel import BatchSplit

KINDS = pytest.mark.parametrize("kind", ["fused", "8bit"])


def section(kind: str) -> OptimiserSection:
    return OptimiserSection.model_validate({"kind": kind, "learning_rate": 1e-2, "gradient_clip": 1.0})


def network() -> torch.nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.ReLU(), torch.nn.Linear(96, 64))


def trained(kind: str, updates: range, state: dict | None = None, weights: dict | None = None):
    """Weights and optimiser after updates on batches that depend on their number alone."""
    made = network()
    if weights is not None:
        made.load_state_dict(weights)
    optimiser = Optimiser(made, section(kind), BatchSplit())
    if state is not None:
        optimiser.restore(state)
    for update in updates:
        batch = torch.randn(8, 64, generator=torch.Generator().manual_seed(update))
        (made(batch) - batch).square().mean().backward()
        optimiser.scale_rate(1.0 / (1 + update))
        optimiser.update()
    return {name: value.clone() for name, value in made.state_dict().items()}, optimiser


@KINDS
def test_restored_state_goes_on_bit_for_bit(kind):
    whole, _ = trained(kind, range(6))
    weights, optimiser = trained(kind, range(3))
    state = {name: value.clone() for name, value in optimiser.tensors().items()}
    after, _ = trained(kind, range(3, 6), state, weights)
    assert all(torch.equal(after[name], whole[name]) for name in whole)
    fresh, _ = trained(kind, range(3, 6), None, weights)
    assert not all(torch.equal(fresh[name], whole[name]) for name in whole)  # the state counted


def test_norm_of_a_gradient_on_a_gpu_stays_there():
    """Tensors without memory say where they would lie; the log adds the norm to sums that lie on the GPU."""
    mode = FakeTensorMode()
    weight, gradient = (FakeTensor(mode, torch.empty(3, 3, device="meta"), torch.device("cuda:0")) for _ in range(2))
    with mode:
        network = nn.Module()
        network.weight = nn.Parameter(weight)
        network.weight.grad = gradient
        assert Optimiser(network, section("fused"), BatchSplit()).update().device.type == "cuda"


def test_moments_of_8_bits_take_a_quarter_and_their_scales():
    whole, large = {}, {}
    for kind in ("fused", "8bit"):
        _, optimiser = trained(kind, range(1))
        values = {name: value for name, value in optimiser.tensors().items() if ".exp_avg" in name}
        sizes = {name: value.numel() * value.element_size() for name, value in values.items()}
        whole[kind] = sum(sizes.values())
        large[kind] = sum(size for name, size in sizes.items() if name[0] in "02")  # of weights, not of biases
    tables = 2 * 2 * 256 * 4  # what codes stand for, of both moments of two weights; checkpoints leave them out
    assert whole["fused"] == moment_bytes(network().parameters(), "fused")
    assert whole["8bit"] + tables == moment_bytes(network().parameters(), "8bit")
    assert large["fused"] / large["8bit"] == pytest.approx(4 / (1 + 4 / 256))


def test_moments_of_8_bits_learn_nearly_the_same():
    exact, rough = (trained(kind, range(10))[0] for kind in ("fused", "8bit"))
    begun = network().state_dict()
    error, moved = (torch.cat([(one[name] - exact[name]).flatten() for name in exact]).norm() for one in (rough, begun))
    assert 0 < error < 0.1 * moved


@KINDS
def test_rates_scale_and_moments_are_forgotten(kind):
    _, optimiser = trained(kind, range(2))
    optimiser.scale_rate(0.25)
    assert float(optimiser.adamw.param_groups[0]["lr"]) == pytest.approx(2.5e-3)
    optimiser.forget_moments()
    assert optimiser.tensors() == {}


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'fused' or '8bit'"):
        section("4bit")
