"""AdamW as both trained denoisers use it: gradients of all processes, clipped, one fused step."""

from typing import Any

import torch

from dmd.methods.share import Share


class Optimiser(torch.optim.AdamW):
    """Fused AdamW of one network, with its own configured learning rate and gradient clip."""

    def __init__(
        self, network: torch.nn.Module, numbers: dict[str, Any], *, learning_rate: float, share: Share
    ) -> None:
        """numbers: betas, weight_decay and gradient_clip of section `optimiser`."""
        super().__init__(
            network.parameters(),
            lr=learning_rate,
            betas=tuple(numbers["betas"]),
            weight_decay=numbers["weight_decay"],
            fused=True,
        )
        self._network, self._rate, self._clip, self._share = network, learning_rate, numbers["gradient_clip"], share

    def update(self) -> torch.Tensor:
        """One step on the gradient of the whole batch, which is then forgotten; returns its L2 norm before the clip."""
        self._share.add_up_gradients(self._network.parameters())
        norm = torch.nn.utils.clip_grad_norm_(self._network.parameters(), self._clip)
        self.step()
        self.zero_grad()
        return norm

    def scale_rate(self, factor: float) -> None:
        """Sets the learning rate to the configured one times `factor`."""
        for group in self.param_groups:
            group["lr"] = self._rate * factor

    def forget_moments(self) -> None:
        """Clears the moments, for a phase whose gradient has another scale.

        Second moments of a regression phase are tiny: carried into a matching phase they would multiply its first
        steps by up to 1 / sqrt(1 - beta2), about 30, and undo what was learnt.
        """
        self.state.clear()
