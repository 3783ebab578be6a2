"""diffusers' UNet2DConditionModel, the network of Stable Diffusion, as one of our networks."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmd.models.networks.diffusers_network import DiffusersNetwork
from dmd.models.networks.shapes import check_image, check_states

REFUSED = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")


class UNet2DCondition(DiffusersNetwork):
    """The network of a text-conditional pipeline, of pixels or latents.

    Args:
        config: arguments of UNet2DConditionModel; those that begin with an underscore are ignored.

    Attributes:
        channels, resolution: of its square images.
        text_width: E of text states (B, L, E).
        num_classes: 0.

    Raises:
        ValueError: arguments that UNet2DConditionModel does not take or cannot use, no square sample_size, a condition
            besides text, or other output than input channels.
    """

    kind, attribute = "unet2d-condition", "unet"
    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = self.new("UNet2DConditionModel", config, refused=REFUSED)
        self.set_extent()
        self.text_width = self.unet.config["cross_attention_dim"]
        if not isinstance(self.text_width, int):
            raise ValueError(f"network {self.kind}: cross_attention_dim {self.text_width!r} is no single width")

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) float: time, label float (B, L, E): text states -> (B, C, R, R).

        Raises:
            ValueError: image or text states have another shape.
        """
        check_image(self, image)
        check_states(self, label)
        # time stays real, since it may lie between two levels
        return self.unet(image, noise_condition.float(), encoder_hidden_states=label).sample
