"""Random numbers of an update as a function of (stage, seed, update)."""

import numpy as np
import torch


def update_generator(stage: str, seed: int, update: int) -> torch.Generator:
    """The generator of one update of a stage, a function of (stage, seed, update).

    So a resumed run draws the same numbers. torch's CPU generator keeps 32 bits of a seed: of N updates about
    N^2 / 2^33 repeat the numbers of another one, which does no harm in training.
    """
    return torch.Generator().manual_seed(_seed(*stage.encode(), seed, update))


def seed_pass(seed: int, update: int, *position: int) -> None:
    """Seeds torch's global generators for the dropout of one pass, whose `position` in the update is a few integers."""
    torch.manual_seed(_seed(*b"pass", seed, update, *position))


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint32)[0])
