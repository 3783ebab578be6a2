"""Figures that come after each other for as long as there is time, and do not stop at one that fails."""

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


def attempted(work: Callable[[], Any], over: Over = lambda: False) -> Any:
    """What `work` found; a line that says so where time is `over`, memory does not suffice, or something else fails."""
    if over():
        return LATE
    try:
        return work()
    except torch.OutOfMemoryError as error:
        return f"out of memory: {str(error).splitlines()[0]}"
    except Exception as error:  # minutes of a GPU are not thrown away for one figure; the suite ends with an error
        traceback.print_exc(file=sys.stderr)
        return f"{FAILED}{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    finally:
        forget()


def forget() -> None:
    """Gives memory back. Networks with checkpointed blocks refer to themselves: they wait for the collector."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
