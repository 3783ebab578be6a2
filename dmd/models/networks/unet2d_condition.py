"""diffusers' UNet2DConditionModel, the network of Stable Diffusion, as a network of this package."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd.models.networks.diffusers_network import DiffusersNetwork
from dmd.models.networks.layers import check_condition, check_flag
from dmd.models.networks.shapes import check_image, check_states

GUIDANCE_WIDTH = 256  # `time_cond_proj_dim` of a network with the guidance as an input: features of the guidance


class UNet2DCondition(DiffusersNetwork):
    """The network of a text-conditional pipeline, of pixels or latents.

    Args:
        config: arguments of UNet2DConditionModel; `dmd.models.outside_config` says which are refused.
        guidance_input: whether noise_condition has a second column with the guidance. The layer that embeds it starts
            at zero.

    Attributes:
        channels, resolution: of its square images.
        text_width: E of text states (B, L, E).
        num_classes: 0.

    Raises:
        ValueError: arguments that are refused or that UNet2DConditionModel cannot use, a sample_size that is not
            square, or unequal numbers of input and output channels.
    """

    kind, attribute = "unet2d-condition", "unet"
    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any], guidance_input: bool = False) -> None:
        super().__init__()
        check_flag("guidance_input", guidance_input)
        self.guidance_input = guidance_input
        added = {"time_cond_proj_dim": GUIDANCE_WIDTH} if guidance_input else {}
        self.unet = self.new("UNet2DConditionModel", config, added)
        if guidance_input:
            nn.init.zeros_(self.unet.time_embedding.cond_proj.weight)
        self.set_extent()
        self.text_width = self.unet.config["cross_attention_dim"]
        if not isinstance(self.text_width, int):
            raise ValueError(f"network {self.kind}: cross_attention_dim {self.text_width!r} is no single width")

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) the time, label (B, L, E) float text states -> (B, C, R, R).

        With the guidance as an input, noise_condition is (B, 2): time and guidance.

        Raises:
            ValueError: image, time or text states have another shape.
        """
        check_image(self, image)
        check_states(self, label)
        check_condition(noise_condition, added=int(self.guidance_input))
        time, features = noise_condition, None
        if self.guidance_input:
            time, guidance = noise_condition.unbind(1)
            features = guidance_features(guidance, GUIDANCE_WIDTH).to(image.dtype)
        # time is not rounded to an integer, since it may lie between two levels
        return self.unet(image, time.float(), timestep_cond=features, encoder_hidden_states=label).sample


def guidance_features(guidance: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of 1000 (w - 1) at frequencies from 1 to 1e-4: float32 (B, width).

    These are what pipelines of diffusers give a network with `time_cond_proj_dim`; 1000 (w - 1) is a timestep there.

    Args:
        guidance: w, (B,).
        width: even.
    """
    half = width // 2
    frequencies = (torch.arange(half, device=guidance.device) * (-math.log(1e4) / (half - 1))).exp()
    angles = (1000 * (guidance.float() - 1))[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=1)
