"""A file of the layout of the released Inception weights, with random numbers in it."""

import io
from pathlib import Path

import torch
from torch import nn

from dmd import torchvision_operators


def write_inception(path: Path, *, seed: int = 0) -> Path:
    """Writes 566 tensors of the released names, shapes and types; features of images vary and are not negative."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(inception_state(seed), path)
    return path


def inception_state(seed: int = 0) -> dict[str, torch.Tensor]:
    """The tensors: random convolutions, and statistics near those of noise, so that no layer dies or overflows."""
    torchvision_operators.ensure()
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    class Unloaded(FeatureExtractorInceptionV3):
        def load_state_dict(self, state, strict=True, assign=False):
            """Keeps the layout, ignores the weights."""

    generator = torch.Generator().manual_seed(seed)
    nothing = io.BytesIO()
    torch.save({}, nothing)
    nothing.seek(0)
    network = Unloaded("layout", ["2048"], feature_extractor_weights_path=nothing)

    def drawn(tensor: torch.Tensor) -> torch.Tensor:
        return torch.randn(tensor.shape, generator=generator)

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.copy_(drawn(module.weight) * (2 / module.weight[0].numel()) ** 0.5)
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    image = torch.nn.functional.interpolate(torch.rand(4, 3, 9, 9, generator=generator) * 255, size=75, mode="bicubic")
    image = image.clamp(0, 255).to(torch.uint8)
    network.train()(image)  # the statistics become those of these images
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.copy_(1 + 0.1 * drawn(module.weight))
            module.bias.copy_(0.1 * drawn(module.bias))
            module.running_mean.add_(0.1 * module.running_var.sqrt() * drawn(module.running_mean))
            module.running_var.mul_((0.1 * drawn(module.running_var)).exp())
    common = network.eval()(image)[0].mean(0)  # what all images share should not decide the class
    weight = drawn(network.fc.weight) * 0.1
    network.fc.weight.copy_(weight - torch.outer(weight @ common, common) / common.square().sum())
    network.fc.bias.copy_(drawn(network.fc.bias) * 0.1)
    return dict(network.state_dict())
