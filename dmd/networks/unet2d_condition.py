"""diffusers' UNet2DConditionModel, the network of Stable Diffusion, behind the interface of our networks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.networks.recompute import Recomputing

ABSENT = ("class_embed_type", "num_class_embeds", "addition_embed_type", "encoder_hid_dim_type")


class UNet2DCondition(Recomputing, nn.Module):
    """The network of a text-conditional pipeline, of pixels or latents.

    Args:
        config: arguments of UNet2DConditionModel; those that begin with an underscore are diffusers' own notes.

    Attributes:
        channels, resolution: of its square images.
        text_width: E of text states (B, L, E).
        num_classes: 0.

    Raises:
        ValueError: arguments that UNet2DConditionModel does not take or cannot use, no square sample_size, a condition
            besides text, or other output than input channels.
    """

    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from diffusers import UNet2DConditionModel

        numbers = {key: value for key, value in config.items() if not key.startswith("_")}
        if other := [key for key in ABSENT if numbers.get(key) is not None]:
            raise ValueError(f"network unet2d-condition: {other[0]} {numbers[other[0]]!r} is not known here")
        self.unet: Any
        try:
            self.unet = UNet2DConditionModel(**numbers)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"network unet2d-condition: {error}") from error
        found = self.unet.config
        size, width = found["sample_size"], found["cross_attention_dim"]
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise ValueError(f"network unet2d-condition: sample_size {size!r} is no side of a square image")
        if not isinstance(width, int):
            raise ValueError(f"network unet2d-condition: cross_attention_dim {width!r} is no single width")
        self.resolution, self.channels, self.text_width = sides.pop(), found["in_channels"], width
        if found["out_channels"] != self.channels:
            raise ValueError(
                f"network unet2d-condition: {found['out_channels']} output channels for {self.channels} of the image"
            )

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass computes each block once more instead of keeping what is inside it."""
        return self.unet.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.set_recomputing(self.unet, value)

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) float: time, label float (B, L, E): text states -> (B, C, R, R).

        Raises:
            ValueError: image or text states have another shape.
        """
        check_shapes(self, image, label)
        # an integer time would lose what lies between the levels
        return self.unet(image, noise_condition.float(), encoder_hidden_states=label).sample


def check_shapes(network: Any, image: Tensor, label: Tensor) -> None:
    """ValueError unless image is (B, channels, resolution, resolution) and label text states (B, L, text_width)."""
    expected = (network.channels, network.resolution, network.resolution)
    if image.shape[1:] != expected:
        raise ValueError(f"image: shape {tuple(image.shape)} is not (B, {', '.join(map(str, expected))})")
    if label.ndim != 3 or label.shape[2] != network.text_width or not torch.is_floating_point(label):
        raise ValueError(
            f"label: {label.dtype} of shape {tuple(label.shape)} is no text states (B, L, {network.text_width})"
        )
