"""The trained weight of a loss by noise level (Karras et al. 2024, arXiv 2312.02696)."""

from __future__ import annotations

from torch import Tensor, nn

from dmd.models.networks.layers import NoiseFeatures, geometric


class Uncertainty(nn.Module):
    """w(s), 0 at first."""

    def __init__(self) -> None:
        super().__init__()
        self.features = NoiseFeatures(geometric(16, last=32.0, endpoint=True) / 2, sine_first=True)
        self.linear = nn.Linear(32, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, sigma: Tensor) -> Tensor:
        """sigma (B,) -> w (B,)."""
        found: Tensor = self.linear(self.features(sigma.log() / 4))[:, 0]
        return found
