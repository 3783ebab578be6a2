"""Random numbers of an update as a function of (stage, seed, update)."""

import numpy as np
import torch


def update_generator(stage: str, seed: int, update: int) -> torch.Generator:
    """The random generator of one update, so that a resumed run draws the same numbers.

    torch's CPU generator keeps 32 bits of a seed: of N updates about N^2 / 2^33 repeat the random numbers of another
    update, which does no harm in training.
    """
    return torch.Generator().manual_seed(_seed(*stage.encode(), seed, update))


def seed_pass(seed: int, update: int, *position: int) -> None:
    """Seeds torch's global generators for the dropout of one pass; `position` numbers the pass within the update."""
    torch.manual_seed(_seed(*b"pass", seed, update, *position))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
