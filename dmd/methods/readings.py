"""What the log keeps of one update, put together from micro batches and processes."""

import torch

from dmd.methods.share import Share

NUM_BINS = 10  # of noise levels in the log


class Readings:
    """Values of one update. Each process sets its part and leaves zeros elsewhere; `whole` adds the parts up."""

    def __init__(self, share: Share) -> None:
        self._share = share
        self._parts: dict[str, torch.Tensor] = {}

    def add(self, name: str, value: torch.Tensor) -> None:
        """A scalar, added to what micro batches before it left."""
        self._parts[name] = self._parts[name] + value.detach() if name in self._parts else value.detach().clone()

    def put(self, name: str, values: torch.Tensor, place: slice, num: int) -> None:
        """Values of each sample of a micro batch, (b, ...), at its place in a batch of `num`."""
        if name not in self._parts:
            self._parts[name] = values.new_zeros((num, *values.shape[1:]), requires_grad=False)
        self._parts[name][place] = values.detach()

    def whole(self) -> dict[str, torch.Tensor]:
        """Every value of the whole batch, in the order of first mention; to be called once."""
        return {name: self._share.add_up(values) for name, values in self._parts.items()}


def matching_row(
    factor: torch.Tensor, finite: torch.Tensor, gap: torch.Tensor, index: torch.Tensor, *, num_levels: int
) -> dict[str, torch.Tensor]:
    """Log columns of the matching gradient, scalars.

    Args:
        factor: on (fake_x0 - real_x0), (B,).
        finite: 1 where the gradient of a sample is finite, else 0, (B,).
        gap: mean |real_x0 - fake_x0|, (B,).
        index: noise level of each sample, (B,) in 0 .. num_levels - 1.
    """
    row = {
        "matching_factor": torch.where(finite > 0, factor, torch.nan).nanmean(),
        "nonfinite_samples": (finite == 0).sum().float(),
    }
    return row | _binned(gap, index, num_levels)


def _binned(values: torch.Tensor, index: torch.Tensor, count: int) -> dict[str, torch.Tensor]:
    """Mean of `values` over samples of each tenth of the noise table; NaN where a bin is empty."""
    bins = index * NUM_BINS // count
    total = values.new_zeros(NUM_BINS).index_add(0, bins, values)
    number = values.new_zeros(NUM_BINS).index_add(0, bins, torch.ones_like(values))
    return {f"gap_bin{bin}": mean for bin, mean in enumerate(total / number)}
