"""Small parts of the networks: noise features, label one-hots, normalisation, resampling, initialisation."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class NoiseFeatures(nn.Module):
    """Sines and cosines of the noise condition.

    Args:
        freqs: frequencies, shape (K,): angular ones, unless `saved`.
        sine_first: whether sines stand before cosines.
        saved: for random frequencies: they belong to the state dict, and are multiplied by 2 pi.
    """

    freqs: Tensor

    def __init__(self, freqs: Tensor, *, sine_first: bool, saved: bool = False) -> None:
        super().__init__()
        self.register_buffer("freqs", freqs, persistent=saved)
        self.sine_first = sine_first
        self.scale = 2 * math.pi if saved else 1.0

    def forward(self, noise_condition: Tensor) -> Tensor:
        """noise_condition (B,) -> features (B, 2K)."""
        angle = noise_condition[:, None] * (self.freqs * self.scale)
        first, second = (angle.sin(), angle.cos()) if self.sine_first else (angle.cos(), angle.sin())
        return torch.cat([first, second], dim=1)


class AddedInput(nn.Module):
    """Embedding of a further input, a number in [0, 1], by a layer that starts at zero: at first it changes nothing.

    Args:
        width: of the embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        frequencies = geometric(16, last=32.0, endpoint=True) / 2  # 0.5 .. 16
        self.features = NoiseFeatures(frequencies, sine_first=True)
        self.linear = nn.Linear(2 * len(frequencies), width, bias=False)
        nn.init.zeros_(self.linear.weight)

    def forward(self, number: Tensor) -> Tensor:
        """number (B,) -> (B, width), in the precision of the weights."""
        embedding: Tensor = self.linear(self.features(number).to(self.linear.weight.dtype))
        return embedding


def split_condition(
    noise_condition: Tensor, second_time: AddedInput | None, guidance: AddedInput | None
) -> tuple[Tensor, Tensor | None]:
    """The noise condition (B,), and the embedding (B, width) of further inputs; None if there are none.

    Args:
        noise_condition: (B,), or with further inputs (B, 1 + their number): a second time in [0, 1], then guidance w,
            which is embedded as 1 - 1 / w.

    Raises:
        ValueError: the noise condition has another shape.
    """
    inputs = [each for each in (second_time, guidance) if each is not None]
    check_condition(noise_condition, added=len(inputs))
    if not inputs:
        return noise_condition, None
    condition, *numbers = noise_condition.unbind(1)
    if guidance is not None:
        numbers[-1] = 1 - 1 / numbers[-1]
    return condition, torch.stack([each(number) for each, number in zip(inputs, numbers, strict=True)]).sum(0)


def check_condition(noise_condition: Tensor, *, added: int) -> None:
    """ValueError unless the noise condition is (B,), or (B, 1 + added) with further inputs."""
    if noise_condition.shape[1:] != ((1 + added,) if added else ()):
        expected = f"(B, {1 + added})" if added else "(B,)"
        raise ValueError(f"noise_condition: shape {tuple(noise_condition.shape)} is not {expected}")


def check_integer(name: str, value: object, *, least: int) -> None:
    """ValueError unless the number called `name` is an integer of at least `least`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name}: {value!r} is no integer from {least} up")


def check_flag(name: str, value: object) -> None:
    """ValueError unless the argument called `name` is true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{name}: {value!r:.80} is neither true nor false")


def geometric(num: int, *, last: float, endpoint: bool) -> Tensor:
    """`num` values from 1 towards `last` in equal ratios; only with `endpoint` is `last` one of them.

    They are on the CPU even if the network is built on the meta device.
    """
    exponent = torch.arange(num, dtype=torch.float32, device="cpu") / (num - 1 if endpoint else num)
    return last**exponent


def one_hot(label: Tensor, num_classes: int) -> Tensor:
    """label (B,) int64 -> float32 (B, num_classes); the row of label -1 is zero.

    Raises:
        ValueError: a label lies outside -1 .. num_classes - 1 (on the CPU; a GPU raises its own error, a compiled
            or exported network none).
    """
    if label.device.type == "cpu" and not torch.compiler.is_compiling() and len(label):
        low, high = (int(bound) for bound in label.aminmax())
        if low < -1 or high >= num_classes:
            raise ValueError(f"label: {low} .. {high} is outside -1 .. {num_classes - 1} ({num_classes} classes)")
    return F.one_hot(label + 1, num_classes + 1)[:, 1:].float()


class GroupNorm(nn.GroupNorm):
    """GroupNorm that computes in the precision of its input, with statistics in float32.

    torch's autocast would cast bfloat16 images to float32 here and save both copies for the backward pass: 10 bytes per
    value instead of 6.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape and dtype."""
        if input.dtype == self.weight.dtype:
            return super().forward(input)
        weight, bias = self.weight.to(input.dtype), self.bias.to(input.dtype)
        with torch.autocast(input.device.type, enabled=False):
            return F.group_norm(input, self.num_groups, weight, bias, self.eps)


def group_norm(channels: int, eps: float) -> GroupNorm:
    """GroupNorm with min(32, channels // 4) groups.

    Raises:
        ValueError: the groups do not divide the channels.
    """
    groups = min(32, channels // 4)
    if groups < 1 or channels % groups:
        raise ValueError(f"width: {channels} channels cannot be normalised in {groups} groups")
    return GroupNorm(groups, channels, eps=eps)


class Box(nn.Module):
    """Resampling by 2 with the 2x2 mean (down) or the nearest pixel (up)."""

    def __init__(self, direction: str) -> None:
        super().__init__()
        self.up = direction == "up"

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        if self.up:
            return F.interpolate(image, scale_factor=2.0, mode="nearest")
        rows = image[:, :, ::2] + image[:, :, 1::2]
        return (rows[..., ::2] + rows[..., 1::2]) * 0.25  # avg_pool2d takes three times as long on a CPU


class Binomial(nn.Module):
    """Resampling by 2 with the separable filter (1, 3, 3, 1) / 8, zeros beyond the border.

    Args:
        direction: "up" or "down".
        padding: zeros added on each side; 0 if the image already has a border.
    """

    taps: Tensor

    def __init__(self, direction: str, *, padding: int = 1) -> None:
        super().__init__()
        row = torch.tensor([1.0, 3.0, 3.0, 1.0], device="cpu") / 8
        self.up, self.padding = direction == "up", padding
        self.register_buffer("taps", torch.outer(row, row)[None, None] * (4 if self.up else 1), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, 2H, 2W) or (B, C, H/2, W/2)."""
        channels = image.shape[1]
        taps = self.taps.to(image.dtype).expand(channels, 1, 4, 4)
        convolve = F.conv_transpose2d if self.up else F.conv2d
        return convolve(image, taps, stride=2, padding=self.padding, groups=channels)


class ResidualDown(nn.Conv2d):
    """3x3 convolution, then the binomial filter with stride 2, then the bias (the NCSN++ image branch)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=2)
        self.down = Binomial("down", padding=0)

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, out_channels, H/2, W/2)."""
        assert self.bias is not None
        return self.down(F.conv2d(input, self.weight, padding=2)) + self.bias[:, None, None]


def initialise(network: nn.Module, *, zero: tuple[str, ...]) -> None:
    """Sets Glorot-uniform weights and zero biases; layers whose name ends with one of `zero` get zero weights.

    The scheme of Ho et al. 2020 and Song et al. 2021: each residual branch adds 0 at first.
    """
    for name, layer in network.named_modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            if name.rpartition(".")[2].endswith(zero):
                nn.init.zeros_(layer.weight)
            else:
                nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
