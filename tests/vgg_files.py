"""A file of the layout of torchvision's vgg16-397923af.pth, with random numbers in it."""

from pathlib import Path

import torch

CHANNELS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
LAYERS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
CLASSIFIER = {"0": (4096, 25088), "3": (4096, 4096), "6": (1000, 4096)}  # of the released file; LPIPS has no use for it


def write_vgg(path: Path, *, seed: int = 0) -> Path:
    """Writes the 26 tensors below `features` in the released shapes, without the classifier (495 MB)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(vgg_state(seed), path)
    return path


def vgg_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """Random convolutions that keep activations alive through all layers."""
    generator = torch.Generator().manual_seed(seed)
    state, channels = {}, 3
    for layer, width in zip(LAYERS, CHANNELS, strict=True):
        weight = torch.randn(width, channels, 3, 3, generator=generator) * (2 / (9 * channels)) ** 0.5
        state[f"features.{layer}.weight"] = weight
        state[f"features.{layer}.bias"] = 0.1 * torch.randn(width, generator=generator)
        channels = width
    return state
