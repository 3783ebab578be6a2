"""What a denoiser or a student learns from: one file a method, see `base`."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmd.methods.base import Method


def load(name: str) -> type[Method[Any]]:
    """The class of a method, from the file of its name."""
    found: type[Method[Any]] = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return found
