"""diffusers' UNet2DConditionModel, the network of Stable Diffusion, as a network of this package."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmd.models.networks.diffusers_network import DiffusersNetwork
from dmd.models.networks.shapes import check_image, check_states


class UNet2DCondition(DiffusersNetwork):
    """The network of a text-conditional pipeline, of pixels or latents.

    Args:
        config: arguments of UNet2DConditionModel; `dmd.models.outside_config` says which are refused.

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

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = self.new("UNet2DConditionModel", config)
        self.set_extent()
        self.text_width = self.unet.config["cross_attention_dim"]
        if not isinstance(self.text_width, int):
            raise ValueError(f"network {self.kind}: cross_attention_dim {self.text_width!r} is no single width")

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) the time, label (B, L, E) float text states -> (B, C, R, R).

        Raises:
            ValueError: image or text states have another shape.
        """
        check_image(self, image)
        check_states(self, label)
        # time is not rounded to an integer, since it may lie between two levels
        return self.unet(image, noise_condition.float(), encoder_hidden_states=label).sample
