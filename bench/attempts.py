"""Runs measurements one after the other while there is time, and goes on after one that fails."""

from __future__ import annotations

import gc
import sys
import traceback
from collections.abc import Callable
from typing import Any

import torch

LATE = "left out: no time"
FAILED = "failed: "

Over = Callable[[], bool]


def attempt(work: Callable[[], Any], over: Over = lambda: False) -> Any:
    """The result of `work`, or a line that says why there is none: no time (`over()`), no memory, or another error."""
    if over():
        return LATE
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"
    except Exception as error:  # one failure must not lose the other figures; the suite ends with an error
        traceback.print_exc(file=sys.stderr)
        return f"{FAILED}{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    finally:
        forget()


def forget() -> None:
    """Frees memory; networks with checkpointed blocks are in reference cycles, which only `gc` frees."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
