"""diffusers' UNet2DModel behind the interface of our networks."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.networks.recompute import Recomputing


class UNet2D(Recomputing, nn.Module):
    """The network of an unconditional or class-conditional diffusers pipeline.

    A network with twice as many output as input channels learnt its variance, too; that half is left out.

    Args:
        config: arguments of UNet2DModel; those that begin with an underscore are diffusers' own notes.

    Raises:
        ValueError: arguments that UNet2DModel does not take or cannot use, no square sample_size, a condition other
            than a class, or another number of output channels.
    """

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from diffusers import UNet2DModel  # 20 s on a slow disk: only those who need it pay

        numbers = {key: value for key, value in config.items() if not key.startswith("_")}
        if numbers.get("class_embed_type") is not None:
            raise ValueError(f"network unet2d: class_embed_type {numbers['class_embed_type']!r} is not known here")
        self.unet: Any
        try:
            self.unet = UNet2DModel(**numbers)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"network unet2d: {error}") from error
        found = self.unet.config
        size = found["sample_size"]
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise ValueError(f"network unet2d: sample_size {size!r} is no side of a square image")
        self.resolution, self.channels = sides.pop(), found["in_channels"]
        if found["out_channels"] not in (self.channels, 2 * self.channels):
            raise ValueError(
                f"network unet2d: {found['out_channels']} output channels for {self.channels} of the image"
            )
        self.num_classes = found["num_class_embeds"] or 0

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass computes each block once more instead of keeping what is inside it."""
        return self.unet.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.set_recomputing(self.unet, value)

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) float: time, label (B,) int64 -> (B, C, R, R).

        Raises:
            ValueError: the image has another shape, or a label is not one of the classes: -1 is none of them.
        """
        expected = (self.channels, self.resolution, self.resolution)
        if image.shape[1:] != expected:
            raise ValueError(f"image: shape {tuple(image.shape)} is not (B, {', '.join(map(str, expected))})")
        classes = None
        if self.num_classes:
            classes = self._checked(label)
        # an integer time would lose what lies between the levels
        return self.unet(image, noise_condition.float(), class_labels=classes).sample[:, : self.channels]

    def _checked(self, label: Tensor) -> Tensor:
        if label.device.type == "cpu" and len(label):
            low, high = (int(bound) for bound in label.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"label: {low} .. {high} is outside 0 .. {self.num_classes - 1}")
        return label


def named(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a UNet2DModel under the names they have in `UNet2D`."""
    return {f"unet.{name}": value for name, value in state.items()}
