"""diffusers' UNet2DModel as a network of this package."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmd.models.networks.diffusers_network import DiffusersNetwork
from dmd.models.networks.shapes import check_image


class UNet2D(DiffusersNetwork):
    """The network of an unconditional or class-conditional diffusers pipeline.

    A network with twice as many output as input channels also predicts a variance; that half is dropped.

    Args:
        config: arguments of UNet2DModel; `dmd.models.outside_config` says which are refused.

    Raises:
        ValueError: arguments that are refused or that UNet2DModel cannot use, a sample_size that is not square,
            or a number of output channels that is not one or two times the input's.
    """

    kind, attribute = "unet2d", "unet"

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.unet = self.new("UNet2DModel", config)
        self.set_extent(output_ratios=(1, 2))
        self.num_classes = self.unet.config["num_class_embeds"] or 0

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,) the time, label (B,) int64 -> (B, C, R, R).

        Raises:
            ValueError: the image has another shape, or a label is not one of the classes; -1 is refused, too.
        """
        check_image(self, image)
        classes = None
        if self.num_classes:
            classes = self._check_classes(label)
        # time is not rounded to an integer, since it may lie between two levels
        return self.unet(image, noise_condition.float(), class_labels=classes).sample[:, : self.channels]

    def _check_classes(self, label: Tensor) -> Tensor:
        if label.device.type == "cpu" and len(label):
            low, high = (int(bound) for bound in label.aminmax())
            if low < 0 or high >= self.num_classes:
                raise ValueError(f"label: {low} .. {high} is outside 0 .. {self.num_classes - 1}")
        return label


def rename_weights(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights of a UNet2DModel under their names in `UNet2D`."""
    return {f"unet.{name}": value for name, value in state.items()}
