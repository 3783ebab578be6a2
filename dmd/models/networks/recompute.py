"""Activation checkpointing of blocks."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import checkpoint

Contexts = Callable[[], tuple[AbstractContextManager[Any], AbstractContextManager[Any]]]


class Recomputing:
    """A network whose blocks can be checkpointed.

    Attributes:
        contexts: returns the context managers of a block's first and second pass (`context_fn` of
            torch.utils.checkpoint); called in each first pass. None is no context.
    """

    contexts: Contexts | None = None

    def recompute(self, block: Callable[..., Any], *inputs: Any, random: bool = True) -> Any:
        """The result of `block(*inputs)`, saving only the inputs; `random`: whether the block draws random numbers."""
        options: dict[str, Any] = {} if self.contexts is None else {"context_fn": self.contexts}
        return checkpoint(block, *inputs, use_reentrant=False, preserve_rng_state=random, **options)
