"""Feature networks, in whose features scores compare samples with real images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from dmd.metrics import resizing


class FeatureNetwork(nn.Module):
    """image float32 (B, C, H, W) in [-1, 1] -> features float32 (B, size), predicted class int64 (B,).

    Attributes:
        name: distances in these features are named after it, `fd-{name}`.
        num_classes: number of predicted classes; 0 = no prediction (-1).
        levels: required grey levels of images; None = any images.
        num_features: None if it depends on the images.
    """

    name: str
    num_classes: int = 0
    levels: int | None = None
    num_features: int | None = None


class Classifier(FeatureNetwork):
    """A small classifier of grey images in ten classes; its features are the activations before the logits.

    Attributes:
        side: of the images, in pixels.
    """

    num_classes = 10
    side: int

    def __init__(self, trunk: nn.Sequential) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = nn.Linear(self.num_features or 0, self.num_classes)

    def logits(self, image: Tensor) -> Tensor:
        """Class logits (B, 10)."""
        return self.head(self.trunk(image))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if image.shape[1:] != (1, self.side, self.side):
            expected = (1, self.side, self.side)
            raise ValueError(f"{self.name} takes images of shape {expected}, not {tuple(image.shape[1:])}")
        features = self.trunk(image)
        return features, self.head(features).argmax(dim=1)


class Digits32(Classifier):
    """Of scikit-learn's digits, 8x8."""

    name, side, num_features = "digits32", 8, 32

    def __init__(self) -> None:
        layers = [*_convolution(1, 32), *_convolution(32, 32), *_convolution(32, 48, stride=2), *_convolution(48, 48)]
        super().__init__(nn.Sequential(*layers, nn.Flatten(), nn.Linear(48 * 4 * 4, 32), nn.SiLU()))


class Fashion64(Classifier):
    """Of Fashion-MNIST, 28x28."""

    name, side, num_features = "fashion64", 28, 64

    def __init__(self) -> None:
        sizes = ((1, 32, 1), (32, 48, 2), (48, 48, 1), (48, 64, 2), (64, 64, 1))
        layers = [layer for given, made, stride in sizes for layer in _convolution(given, made, stride, groups=8)]
        super().__init__(nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(64 * 3 * 3, 64), nn.SiLU()))


def _convolution(given: int, made: int, stride: int = 1, *, groups: int = 0) -> list[nn.Module]:
    """A 3x3 convolution, a normalisation in groups unless there are none, and SiLU."""
    norm = [nn.GroupNorm(groups, made)] if groups else []
    return [nn.Conv2d(given, made, 3, stride=stride, padding=1), *norm, nn.SiLU()]


class Coordinates(FeatureNetwork):
    """The values of an image, flattened; the predicted class is the nearest of the modes (K, size), if any."""

    name = "coordinates"

    def __init__(self, modes: Sequence[Sequence[float]] | None) -> None:
        super().__init__()
        self.modes: Tensor | None
        self.register_buffer("modes", None if modes is None else torch.tensor(modes, dtype=torch.float32))
        self.num_classes = 0 if modes is None else len(modes)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = image.flatten(1)
        if self.modes is None:
            return features, no_class(image)
        if features.shape[1] != self.modes.shape[1]:
            sizes = f"{features.shape[1]} and {self.modes.shape[1]}"
            raise ValueError(f"points and modes have different numbers of coordinates: {sizes}")
        return features, (features[:, None] - self.modes).square().sum(2).argmin(dim=1)


class Pixels(FeatureNetwork):
    """Pixels averaged down to at most size x size, flattened."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size
        self.name = f"pixels{size}"

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        if max(image.shape[2:]) > self.size:
            image = functional.adaptive_avg_pool2d(image, self.size)
        return image.flatten(1), no_class(image)


CLASSIFIERS: dict[str, type[Digits32] | type[Fashion64]] = {"digits32": Digits32, "fashion64": Fashion64}
WEIGHTED = (*CLASSIFIERS, "inception")  # kinds whose weights come from a file


def build(
    features: Mapping[str, Any],
    *,
    state: Mapping[str, Tensor] | None,
    modes: Sequence[Sequence[float]] | None,
) -> FeatureNetwork:
    """The feature network of a config section, without gradients and in evaluation mode.

    Args:
        features: {"kind": one of `WEIGHTED`, "coordinates" or "pixels", and for pixels "size", for inception
            "resize": "tf" | "clean"}.
        state: weights of a kind in `WEIGHTED`, otherwise None.
        modes: centres (K, size) of a Gaussian mixture; used by coordinates only.

    Raises:
        ValueError: unknown kind, missing weights, or those of another network.
    """
    kind = features.get("kind")
    network: FeatureNetwork
    if kind in WEIGHTED and state is None:
        raise ValueError(f"features.kind {kind} needs the file of its weights (--network)")
    if kind in CLASSIFIERS:
        network = CLASSIFIERS[kind]()
        try:
            network.load_state_dict(dict(state or {}))
        except RuntimeError as error:
            raise ValueError(f"these are not the weights of {kind}: {error}") from error
    elif kind == "coordinates":
        network = Coordinates(modes)
    elif kind == "pixels":
        network = Pixels(features["size"])
    elif kind == "inception":
        from dmd.metrics.inception import Inception

        network = Inception(state or {}, resize=features.get("resize", "tf"))
    else:
        raise ValueError(f"features.kind {kind!r} is none of {', '.join(WEIGHTED)}, coordinates, pixels")
    return network.eval().requires_grad_(False)


def quantise(image: Tensor, levels: int | None) -> Tensor:
    """Rounds images to `levels` equally spaced values in [-1, 1], halves up; None does not change them.

    With 256 levels it is EDM's clip(127.5 x + 128, 0, 255) to uint8.
    """
    if levels is None:
        return image
    half = (levels - 1) / 2
    return (image * half + levels / 2).floor().clamp(0, levels - 1) / half - 1


def eight_bit(image: Tensor) -> Tensor:
    """Images of 256 levels in [-1, 1], from `quantise`, as uint8 0 .. 255."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_levels(network: FeatureNetwork, levels: int | None) -> None:
    """ValueError unless the network accepts images of `levels` grey levels."""
    if network.levels not in (None, levels):
        raise ValueError(f"{network.name} needs {network.levels} grey levels, but protocol.quantise is {levels}")


def extract(
    network: FeatureNetwork, image: Tensor, levels: int | None, resize: Mapping[str, Any] | None = None
) -> tuple[Tensor, Tensor]:
    """Features float32 and predicted classes of images quantised to `levels`, both on the CPU.

    Real images and samples both go through this function. It computes on the device of the network's weights; GPUs
    compute in full float32.

    Args:
        resize: {"size": of both sides, "filter"} for 8-bit images before the network; None does not resize.

    Raises:
        ValueError: the network refuses `levels` or the images.
    """
    check_levels(network, levels)
    device = next((tensor.device for tensor in network.state_dict().values()), image.device)
    image = quantise(image, levels)
    if resize is not None:
        resizing.check(resize, levels)
        image = resizing.resize(eight_bit(image), **resize).to(torch.float32) / 127.5 - 1
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        features, predicted = network(image.to(device))
    return features.float().cpu(), predicted.cpu()


def no_class(image: Tensor) -> Tensor:
    """Predicted classes -1, int64 (B,), of a network that predicts none."""
    return torch.full((len(image),), -1, dtype=torch.int64, device=image.device)
