"""Blocks that the backward pass computes once more, in the setting of their first pass."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import checkpoint

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


class Recomputing:
    """A network with blocks to checkpoint.

    Attributes:
        contexts: called in each first pass of a block; returns what surrounds that pass and what surrounds the second
            one (`context_fn` of torch.utils.checkpoint). None is nothing.
    """

    contexts: Contexts | None = None

    def recomputed(self, block: Callable[..., Any], *given: Any, draws: bool = True) -> Any:
        """What `block` returns, of which only `given` is kept; `draws` says whether it takes random numbers."""
        more: dict[str, Any] = {} if self.contexts is None else {"context_fn": self.contexts}
        return checkpoint(block, *given, use_reentrant=False, preserve_rng_state=draws, **more)
