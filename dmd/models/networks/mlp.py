"""A small fully connected network for points in the plane."""

import torch
from torch import Tensor, nn

from dmd.models.networks.layers import (
    AddedInput,
    NoiseFeatures,
    check_flag,
    check_integer,
    geometric,
    one_hot,
    split_condition,
)
from dmd.models.networks.shapes import check_image
from dmd.models.networks.state_convolution import StateConvolution, check_num_states

_NUM_FREQUENCIES = 16


class MLP(nn.Module):
    """Fully connected SiLU network on the flattened image and sines and cosines of the noise condition.

    The label enters as a learned vector added to the first hidden layer; the last layer starts at zero.

    Args:
        channels: of the image; a point of the plane has 2.
        resolution: height and width of the image; a point has 1.
        width: features of each hidden layer.
        layers: number of hidden layers.
        num_classes: 0 for an unconditional network, which ignores labels.
        second_time, guidance_input: whether noise_condition has a further column with a second time, and after it one
            with the guidance.
        states: M: each M rows of a batch are the states of one path, and a convolution along them follows the hidden
            layers.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(
        self,
        *,
        channels: int,
        resolution: int,
        width: int,
        layers: int,
        num_classes: int,
        second_time: bool = False,
        guidance_input: bool = False,
        states: int = 1,
    ) -> None:
        super().__init__()
        extents = {"channels": channels, "resolution": resolution, "width": width, "layers": layers}
        for name, value in extents.items():
            check_integer(name, value, least=1)
        check_integer("num_classes", num_classes, least=0)
        self.channels, self.resolution, self.num_classes = channels, resolution, num_classes
        values = channels * resolution**2
        frequencies = geometric(_NUM_FREQUENCIES, last=32.0, endpoint=True) / 2  # 0.5 .. 16 per unit of ln(sigma)/4
        self.noise = NoiseFeatures(frequencies, sine_first=True)
        self.first = nn.Linear(values + 2 * _NUM_FREQUENCIES, width)
        self.label = nn.Linear(num_classes, width, bias=False) if num_classes else None
        check_flag("second_time", second_time)
        check_flag("guidance_input", guidance_input)
        check_num_states(states, second_time=second_time)
        hidden: list[nn.Module] = [nn.SiLU()]
        for _ in range(layers - 1):
            hidden += [nn.Linear(width, width), nn.SiLU()]
        self.hidden = nn.Sequential(*hidden)
        self.last = nn.Linear(width, values)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)
        self.second_time = AddedInput(width) if second_time else None
        self.guidance_input = AddedInput(width) if guidance_input else None
        self.num_states = states
        self.state_convolution = StateConvolution(width, states) if states > 1 else nn.Identity()

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,), label (B,) int64, -1 = none -> (B, C, R, R).

        With further inputs noise_condition is as `split_condition` takes it.

        Raises:
            ValueError: the image has another shape, or a label is not one of the classes.
        """
        return self.last(self._features(image, noise_condition, label)).view(image.shape)

    @property
    def bottleneck_shape(self) -> tuple[int, int]:
        """Features of the last hidden layer, as channels of one pixel."""
        return self.first.out_features, 1

    def bottleneck(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """The last hidden layer (B, width, 1, 1), for the inputs of `forward`."""
        return self._features(image, noise_condition, label)[:, :, None, None]

    def _features(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        check_image(self, image)
        condition, added = split_condition(noise_condition, self.second_time, self.guidance_input)
        hidden = self.first(torch.cat([image.flatten(1), self.noise(condition).to(image.dtype)], dim=1))
        if added is not None:
            hidden = hidden + added
        if self.label is not None:
            hidden = hidden + self.label(one_hot(label, self.num_classes).to(self.label.weight.dtype))
        return self.state_convolution(self.hidden(hidden))
