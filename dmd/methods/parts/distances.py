"""Distances between generated and reference images, for the losses of methods."""

import warnings
from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dmd import torchvision_operators

POOLS: dict[str, type[nn.Module]] = {"average": nn.AvgPool2d, "max": nn.MaxPool2d}
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


def l1_distance(image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Mean absolute error over all elements; ValueError if the shapes differ."""
    check_shapes(image, reference)
    return functional.l1_loss(image.float(), reference.float())


def pseudo_huber(image: torch.Tensor, target: torch.Tensor, c: float) -> torch.Tensor:
    """(|image - target|^2 + c^2)^1/2 - c of each image (B,), the norm over all its values; c = 0 is the norm."""
    if c == 0.0:  # the gradient of torch's norm is 0 at 0, that of the square root is not finite
        return torch.linalg.vector_norm((image - target).flatten(1), dim=1)
    square = (image - target).square().flatten(1).sum(1)
    return (square + c**2).sqrt() - c


class Chunked(nn.Module, ABC):
    """A distance, mean over the batch, that holds the features of only `chunk` images in memory at a time.

    The features of a whole batch would take more memory than the trained networks. So the forward pass already
    computes the gradient with respect to `image`, chunk by chunk.
    """

    @property
    @abstractmethod
    def chunk(self) -> int:
        """Number of images at a time."""

    @abstractmethod
    def total(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Sum of the distances of one chunk of images; all activations for its gradient are in memory."""

    def forward(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Scalar distance of images (B, C, H, W) in [-1, 1], or latents; ValueError if the shapes differ."""
        check_shapes(image, reference)
        values: list[torch.Tensor] = []
        gradients: list[torch.Tensor] = []
        for ours, theirs in zip(image.split(self.chunk), reference.split(self.chunk), strict=True):
            value, gradient = self._value_and_gradient(
                ours.detach(), theirs, wanted=torch.is_grad_enabled() and image.requires_grad
            )
            values.append(value)
            gradients += gradient
        distance = torch.stack(values).sum() / len(image)
        if gradients:  # adds 0, whose gradient is the one computed above
            distance = distance + ((image - image.detach()) * torch.cat(gradients)).sum() / len(image)
        return distance

    def _value_and_gradient(
        self, image: torch.Tensor, reference: torch.Tensor, *, wanted: bool
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """Sum of the distances of some images, and its gradient where it is wanted."""
        image = image.requires_grad_(wanted)
        with torch.set_grad_enabled(wanted):
            value = self.total(image, reference)
        return value.detach(), torch.autograd.grad(value, image) if wanted else ()


class Lpips(Chunked):
    """LPIPS on VGG16 features (Zhang et al. 2018), mean over the batch: network and heads of the lpips package.

    Images are resized (bilinear) to `size` first. Average pooling is what the code of the DMD papers uses,
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
            size: height and width of the network's input in pixels.

        Raises:
            ValueError: an unknown pooling, a size below 16, or weights of other networks.
        """
        super().__init__()
        if pooling not in POOLS:
            raise ValueError(f"pooling {pooling!r} is not one of {list(POOLS)}")
        if size < MINIMUM_SIZE:
            raise ValueError(f"size must be at least {MINIMUM_SIZE} pixels, got {size}")
        self._size, self._network = size, _empty_network()
        given = {**trunk, **heads}
        names = _weight_names(self._network)
        if missing := [name for name in names.values() if name not in given]:
            raise ValueError(f"LPIPS weights lack {missing[0]} and {len(missing) - 1} more")
        if other := [name for name in given if name not in names.values() and not name.startswith("classifier.")]:
            raise ValueError(f"LPIPS weights hold {other[0]:.100}, which VGG16 and its heads do not have")
        try:
            weights = {own: given[name].float() for own, name in names.items()}
            self._network.load_state_dict(weights, strict=False, assign=True)
        except RuntimeError as error:
            raise ValueError(f"LPIPS weights are of another network: {' '.join(str(error).split())}") from error
        for part in self._network.net.children():
            for name, layer in part.named_children():
                if isinstance(layer, nn.MaxPool2d):
                    setattr(part, name, POOLS[pooling](kernel_size=2, stride=2))

    @property
    def chunk(self) -> int:
        """Number of images at a time, a constant."""
        return CHUNK

    def total(self, image: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
        """Sum of the distances of images (B, 1 or 3, H, W) in [-1, 1]; all their features are in memory.

        The package's own sum needs 1.6 times the memory: it holds the features of all layers of both images at once.
        """
        ours, total = self._enlarged(image), image.new_zeros((), dtype=torch.float32)
        with torch.no_grad():
            theirs = self._enlarged(reference)
        for part, head in zip(self._network.net.children(), self._network.lins, strict=True):
            ours = part(ours)
            with torch.no_grad():
                theirs = part(theirs)
                unit = functional.normalize(theirs, dim=1, eps=1e-10)
            error = (functional.normalize(ours, dim=1, eps=1e-10) - unit).square()
            total = total + head(error).mean((2, 3)).sum()
        return total

    def _enlarged(self, image: torch.Tensor) -> torch.Tensor:
        image = image.float().expand(-1, 3, -1, -1) if image.shape[1] == 1 else image.float()
        image = functional.interpolate(image, size=(self._size, self._size), mode="bilinear", align_corners=False)
        scaled: torch.Tensor = self._network.scaling_layer(image)
        return scaled


def lpips_shapes() -> tuple[dict[str, torch.Size], dict[str, torch.Size]]:
    """Shapes of the weights that `Lpips` takes, by name: of VGG16, and of the heads."""
    network = _empty_network()
    state = network.state_dict()
    shapes = {name: state[own].shape for own, name in _weight_names(network).items()}
    trunk = {name: shape for name, shape in shapes.items() if name.startswith("features.")}
    return trunk, {name: shape for name, shape in shapes.items() if name not in trunk}


def _empty_network() -> Any:
    """The package's network on VGG16: frozen, in evaluation mode, on the meta device."""
    torchvision_operators.ensure()
    import lpips

    with torch.device("meta"), warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=UserWarning, module="torchvision")  # about a deprecated argument
        return lpips.LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).requires_grad_(False)


def _weight_names(network: Any) -> dict[str, str]:
    """Names of weights in the files by their names in the network: `net.slice3.10.bias` -> `features.10.bias`."""
    trunk = {f"net.{name}": f"features.{name.partition('.')[2]}" for name in network.net.state_dict()}
    return trunk | {name: name for name in (f"lin{group}.model.1.weight" for group in range(len(network.lins)))}
