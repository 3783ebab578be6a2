"""Learning rate over updates, and one source of randomness per update."""

import math
from collections.abc import Callable

import numpy as np
import torch

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def learning_rate_factor(update: int, *, total: int, warmup: int, decay: str) -> float:
    """Factor on the learning rate of update 0 .. total-1: linear warm-up, then `decay` towards 0 at the end.

    Raises:
        ValueError: an unknown decay.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay {decay!r} is not one of {list(DECAYS)}")
    if update < warmup:
        return (update + 1) / warmup
    return DECAYS[decay]((update - warmup) / max(total - warmup, 1))


def update_generator(stage: str, seed: int, update: int) -> torch.Generator:
    """The random numbers of one update of a stage, a function of (stage, seed, update).

    A resumed run draws what it would have drawn. torch's CPU generator keeps 32 bits of a seed: of N updates about
    N^2 / 2^33 repeat another's numbers, which does no harm in training.
    """
    return torch.Generator().manual_seed(_seed(*stage.encode(), seed, update))


def seed_pass(seed: int, update: int, *place: int) -> None:
    """Seeds torch's global generators for one pass that draws in it (dropout), a function of its place in an update."""
    torch.manual_seed(_seed(*b"pass", seed, update, *place))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
