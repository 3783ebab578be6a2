"""Names of f-divergences, which several methods have."""

from __future__ import annotations

from typing import Literal

DivergenceName = Literal[
    "reverse-kl", "softened-reverse-kl", "jensen-shannon", "squared-hellinger", "forward-kl", "jeffreys", "neyman"
]
