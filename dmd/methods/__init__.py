"""Methods: how a teacher or a student is trained, one file per method; `base` has their interface."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dmd.methods.base import Method


def load(name: str) -> type[Method[Any]]:
    """The class `METHOD` of the file that has the method's name."""
    method: type[Method[Any]] = importlib.import_module(f"{__name__}.{name.replace('-', '_')}").METHOD
    return method
