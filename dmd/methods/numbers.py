"""What an update of DMD is told: the numbers of its section, and a batch."""

from dataclasses import dataclass
from typing import Any, NotRequired, TypedDict

import torch

from dmd.diffusion.compute import Compute
from dmd.networks.lora import Adapter


class Numbers(TypedDict):
    """Section `distill` of an experiment; what each number means stands in the config schema."""

    sigma: Any  # float; None in a spec, the last noise level of the network
    levels: dict[str, Any]
    weighting: str
    alpha_factor: bool
    fake_score: bool
    matching_weight: float
    regression_weight: float
    regression_distance: dict[str, Any]
    matching_batch_size: int
    regression_batch_size: int
    shared_noise: bool
    optimiser: dict[str, Any]
    ema_decay: float
    phases: list[dict[str, Any]]
    seed: int
    checkpoint_every: int
    grid_every: int
    log_every: int
    device: str
    threads: int
    guidance: NotRequired[float]
    match_pairs: NotRequired[bool]
    processes: NotRequired[int]
    tensorboard: NotRequired[bool]  # no part of what is learnt
    compute: NotRequired[Compute]
    adapter: NotRequired[Adapter | None]


@dataclass(frozen=True)
class Rows:
    """What a process has of a batch of `num` rows, indexed by places in the whole batch.

    Attributes:
        values: rows first .. first + len(values) - 1, on the CPU.
    """

    values: torch.Tensor
    first: int
    num: int

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, place: slice) -> torch.Tensor:
        """Rows place.start .. place.stop - 1; ValueError if this process has not all of them."""
        start, stop = place.start - self.first, place.stop - self.first
        if not 0 <= start <= stop <= len(self.values):
            last = self.first + len(self.values) - 1
            raise ValueError(f"rows {place.start} .. {place.stop - 1} wanted, here are {self.first} .. {last}")
        return self.values[start:stop]


@dataclass(frozen=True)
class Joined:
    """Rows of two batches, the second behind the first: x and x_ref."""

    first: torch.Tensor | Rows
    second: torch.Tensor | Rows

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def __getitem__(self, place: slice) -> torch.Tensor:
        """Rows of one of the two."""
        num = len(self.first)
        if place.start < num:
            return self.first[place]
        return self.second[slice(place.start - num, place.stop - num)]


Label = torch.Tensor | Rows | Joined
Pairs = tuple[torch.Tensor | Rows, torch.Tensor | Rows, torch.Tensor | Rows]  # noise, label, image


@dataclass(frozen=True)
class Batch:
    """Unit noise (B, C, H, W) and labels (B,) of the matching loss; pairs of the regression loss. All on the CPU.

    A label is int64 (B,), or text states float32 (B, L, E). Noise is that of the whole batch of an update, whatever
    part of it a process works on; of text states and of pairs a process may have its own part alone.
    """

    noise: torch.Tensor
    label: torch.Tensor | Rows
    pairs: Pairs | None = None

    @property
    def joined_label(self) -> Label:
        """Labels of the matching batch, and behind them those of the pairs."""
        return self.label if self.pairs is None else Joined(self.label, self.pairs[1])
