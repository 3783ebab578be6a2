"""Distances of the regression loss between generated and reference images."""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import nn
from torch.nn import functional

# Layers of VGG16's `features`: convolutions up to relu1_2, 2_2, 3_3, 4_3 and 5_3, a pooling layer between groups.
GROUPS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
POOLS: dict[str, Callable[..., torch.Tensor]] = {"average": functional.avg_pool2d, "max": functional.max_pool2d}
MINIMUM_SIZE = 16  # pixels: four poolings
CHUNK = 16  # images whose features are in memory at once: 1.7 GB at 224 pixels


def check_shapes(image: torch.Tensor, reference: torch.Tensor) -> None:
    """ValueError if the shapes differ: broadcasting would average over the wrong axes."""
    if image.shape != reference.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}, reference {tuple(reference.shape)}")


def l2_distance(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean squared error over all elements (Yin et al. 2023, appendix I); ValueError if the shapes differ."""
    check_shapes(image, reference)
    return functional.mse_loss(image.float(), reference.float())


class Chunked(nn.Module, ABC):
    """A distance, mean over the batch, that has the features of `chunk` images in memory at once.

    Features of a whole batch would fill more memory than the networks that are trained: the gradient by `image` is
    taken in the forward pass, chunk by chunk.
    """

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Images at once."""

    @abstractmethod
    def total(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Sum of the distances of some images, with all that is kept for its gradient in memory."""

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Scalar distance of images (B, C, H, W) in [-1, 1], or latents; ValueError if the shapes differ."""
        check_shapes(image, reference)
        values: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for ours, theirs in zip(image.split(self.chunk), reference.split(self.chunk), strict=True):
            value, gradient = self._slope(ours.detach(), theirs, wanted=torch.is_grad_enabled() and image.requires_grad)
            values.append(value)
            gradients += gradient
        distance = torch.stack(values).sum() / len(image)
        if gradients:  # the same value, and a graph that knows the gradient
            distance = distance + ((image - image.detach()) * torch.cat(gradients)).sum() / len(image)
        return distance

    def _slope(
        self, image: torch.Tensor, reference: torch.Tensor, *, wanted: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Sum of the distances of some images, and its gradient where it is wanted."""
        image = image.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            value = self.total(image, reference)
        return value.detach(), torch.autograd.grad(value, image) if wanted else ()


class Lpips(Chunked):
    """LPIPS on VGG16 features (Zhang et al. 2018), mean over the batch.

    Images are upsampled (bilinear) to `size` first. Average pooling is what the code of the DMD papers uses,
    max pooling is the published metric.
    """

    def __init__(
        self, trunk: dict[str, torch.Tensor], heads: dict[str, torch.Tensor], *, pooling: str, size: int
    ) -> None:
        """
        Args:
            trunk: torchvision's VGG16 state, keys `features.{layer}.weight|bias`.
            heads: the lpips package's state, keys `lin{group}.model.1.weight`.
            pooling: "average" or "max".
            size: height and width the network sees, pixels.

        Raises:
            ValueError: an unknown pooling, a size below 16, or weights that are not these networks'.
        """
        super().__init__()
        if pooling not in POOLS:
            raise ValueError(f"pooling {pooling!r} is not one of {list(POOLS)}")
        if size < MINIMUM_SIZE:
            raise ValueError(f"size must be at least {MINIMUM_SIZE} pixels, got {size}")
        self._pooling, self._size = pooling, size
        names = [f"features.{layer}.{kind}" for group in GROUPS for layer in group for kind in ("weight", "bias")]
        head_names = [f"lin{number}.model.1.weight" for number in range(len(GROUPS))]
        if missing := [name for name in names if name not in trunk] + [
            name for name in head_names if name not in heads
        ]:
            raise ValueError(f"LPIPS weights lack {missing[0]} and {len(missing) - 1} more")
        for name in names:
            self.register_buffer(name.replace(".", "_"), trunk[name].float())
        for number, name in enumerate(head_names):
            self.register_buffer(f"head{number}", heads[name].float())
        # ImageNet's mean and standard deviation, for images in [-1, 1]
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188])[:, None, None])
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450])[:, None, None])

    @property
    def chunk(self) -> int:
        """CHUNK."""
        return CHUNK

    def total(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Sum of the distances of images (B, 1 or 3, H, W) in [-1, 1], with all its features in memory."""
        ours, total = self._enlarged(image), image.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            theirs = self._enlarged(reference)
        for number in range(len(GROUPS)):
            ours = self._features(number, ours)
            with torch.no_grad():
                theirs = self._features(number, theirs)
                unit = functional.normalize(theirs, dim=1, eps=1e-10)
            # a square root by hand would have no slope at 0
            error = (functional.normalize(ours, dim=1, eps=1e-10) - unit).square()
            total = total + functional.conv2d(error, self.get_buffer(f"head{number}")).mean((2, 3)).sum()
        return total

    def _enlarged(self, image: torch.Tensor) -> torch.Tensor:
        image = image.float().expand(-1, 3, -1, -1) if image.shape[1] == 1 else image.float()
        image = functional.interpolate(image, size=(self._size, self._size), mode="bilinear", align_corners=False)
        return (image - self.get_buffer("shift")) / self.get_buffer("scale")

    def _features(self, number: int, features: torch.Tensor) -> torch.Tensor:
        """Output of a group of layers from that of the group before it."""
        features = POOLS[self._pooling](features, 2) if number else features
        for layer in GROUPS[number]:
            weight, bias = (self.get_buffer(f"features_{layer}_{kind}") for kind in ("weight", "bias"))
            features = functional.conv2d(features, weight, bias, padding=1).relu()
        return features
