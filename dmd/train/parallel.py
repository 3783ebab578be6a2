"""Splits batches among processes and into micro-batches, and sums tensors over all processes."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import distributed

from dmd.train.sharding import is_sharded

BUCKET = 2**24  # gradient values summed in one call


@dataclass(frozen=True)
class BatchSplit:
    """This process's part of every batch. The default is the whole batch in one pass.

    Losses are means over a whole batch: a micro-batch of b of the B images has weight b / B, so the gradients of all
    micro-batches and processes add up to the gradient of the batch, even if the parts are unequal.

    Attributes:
        rank: number of this process, from 0.
        processes: number of processes; several need torch.distributed's default group.
        micro_batch_size: images in a forward and backward pass; None: this process's whole part.
    """

    rank: int = 0
    processes: int = 1
    micro_batch_size: int | None = None

    @property
    def exchange_bytes(self) -> int:
        """Bytes of the buffer in which gradients are summed over processes; a large last gradient adds to it."""
        return 4 * BUCKET

    def slices(self, num: int) -> list[slice]:
        """This process's micro-batches of a batch of `num`; the last may be smaller.

        Raises:
            ValueError: fewer images than processes.
        """
        part = self.part(num)
        size = self.micro_batch_size or part.stop - part.start
        return [slice(start, min(start + size, part.stop)) for start in range(part.start, part.stop, size)]

    def part(self, num: int) -> slice:
        """The rows of a batch of `num` that this process works on.

        Raises:
            ValueError: fewer images than processes.
        """
        if num < self.processes:
            raise ValueError(f"a batch of {num} images cannot be shared among {self.processes} processes")
        return slice(*(rank * num // self.processes for rank in (self.rank, self.rank + 1)))

    def largest(self, num: int) -> int:
        """Images of the largest micro-batch of a batch of `num`, over all processes."""
        part = -(-num // self.processes)
        return min(part, self.micro_batch_size or part)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all processes, in place."""
        if self.processes > 1:
            distributed.all_reduce(values)
        return values

    def add_up_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums gradients over all processes, in place, with equal bits in each; FSDP2 sums sharded gradients."""
        if self.processes == 1:
            return
        gradients = (parameter.grad for parameter in parameters if parameter.grad is not None)
        for bucket in _buckets(gradient for gradient in gradients if not is_sharded(gradient)):
            flat = self.add_up(torch.cat([gradient.reshape(-1) for gradient in bucket]))
            sizes = [gradient.numel() for gradient in bucket]
            for gradient, values in zip(bucket, flat.split(sizes), strict=True):
                gradient.copy_(values.view(gradient.shape))


def _buckets(gradients: Iterable[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(part.numel() for part in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket
