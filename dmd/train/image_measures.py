"""What is measured of images during a training: features, statistics, and how well they fit their prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from dmd.metrics.features import FeatureNetwork, extract
from dmd.metrics.teacher_comparison import NUM_STATISTICS, ImageSet, statistics
from dmd.models.autoencoder import Codec
from dmd.train.grids import decode_small

Scorer = Callable[[Tensor, Tensor], Tensor]  # images in [-1, 1] and rows of prompts -> cosines


@dataclass
class ImageMeasures:
    """Measures images on a device; between measurements its networks are on the CPU, where they take no GPU memory.

    Attributes:
        features: the feature network; it gets images of as many grey levels as it requires, not those of
            `reference.protocol`.
        codec: decodes latents one by one; None: the images are measured as they are.
        scorer: compares decoded images with prompts, by `clip_network`; None: it is not measured.
    """

    device: torch.device
    features: FeatureNetwork
    codec: Codec | None = None
    scorer: Scorer | None = None
    clip_network: nn.Module | None = None

    @torch.no_grad()
    def __call__(self, image: Tensor, prompt: Tensor) -> Tensor:
        """Numbers of each image (B, C, H, W): float64 (B, 4 + 1 + d) on the CPU.

        They are its statistics, its CLIP cosine (0 without a scorer), its features.

        Args:
            prompt: row of the prompt of each image, int64 (B,).
        """
        if self.codec is not None:
            with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
                image = torch.cat([self.codec.decode(latent) for latent in image.split(1)])
        image = image.float()
        values, _ = extract(self.features, image, self.features.levels)
        clip = image.new_zeros(len(image)) if self.scorer is None else self.scorer(image, prompt)
        return torch.cat([statistics(image).cpu(), clip.double().cpu()[:, None], values.double()], 1)

    def image_set(self, rows: Tensor, *, num_conditions: int) -> ImageSet:
        """The set of images that gave these rows."""
        statistics, clip, features = rows.split([NUM_STATISTICS, 1, rows.shape[1] - NUM_STATISTICS - 1], 1)
        return ImageSet(features, statistics, num_conditions, None if self.scorer is None else clip[:, 0])

    def use(self, device: torch.device) -> None:
        """Moves the networks to a device."""
        for network in (self.features, self.codec, self.clip_network):
            if network is not None:
                network.to(device)

    def small(self, image: Tensor) -> Tensor:
        """Images (B, 3, h, w) of latents (B, C, H, W), small enough for a grid; without a codec the same."""
        if self.codec is None:
            return image
        self.codec.to(self.device)
        decoded = decode_small(image.to(self.device), self.codec)
        self.codec.to("cpu")
        return decoded

    def operations(self, shape: tuple[int, ...]) -> int:
        """Floating-point operations of one image (C, H, W)."""
        self.use(self.device)
        number = operations(lambda: self(torch.zeros(1, *shape, device=self.device), torch.zeros(1, dtype=torch.int64)))
        self.use(torch.device("cpu"))
        return number


def operations(work: Callable[[], Any]) -> int:
    """Floating-point operations of matrix products, convolutions and attention in `work`."""
    with _Operations() as counter:
        work()
    return counter.total


class _Operations(TorchDispatchMode):
    """Counts with torch's formulas; its FlopCounterMode would import torch's compiler, which takes a second."""

    total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: nothing in here is compiled."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=result)
        return result
