"""Types of keys that several methods have."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

DivergenceName = Literal[
    "reverse-kl", "softened-reverse-kl", "jensen-shannon", "squared-hellinger", "forward-kl", "jeffreys", "neyman"
]
MatchingWeighting = Literal["eq8", "sigma/alpha", "sigma3/alpha", "sigma2/alpha"]
X0Weighting = Annotated[
    Literal["truncated-snr", "snr+1", "network"],
    Field(description="max(1/sigma^2, 1), 1 + 1/sigma^2, or the weight of the network's preconditioning"),
]
Dropout = Annotated[bool, Field(description="dropout of the architecture, with the same mask for student and target")]
