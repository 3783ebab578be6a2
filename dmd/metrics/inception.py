"""The Inception V3 of 2015 that defines FID, as a feature network on tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmd import torchvision_operators
from dmd.metrics.features import FeatureNetwork, eight_bit, no_class
from dmd.metrics.resizing import bicubic

NAME = "inception"
CLEAN = "inception-clean"
SIDE = 299  # pixels: side of the network's input
LAYERS = (  # in order
    *("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3", "MaxPool_2"),
    *("Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"),
    *("Mixed_7a", "Mixed_7b", "Mixed_7c", "AvgPool"),
)
NUM_FEATURES = 2048
LEVELS = 256
# Of weights-inception-2015-12-05-6726825d.pth (torch-fidelity, release v0.2.0) and of
# pt_inception-2015-12-05-6726825d.pth (pytorch-fid, release fid_weights): the same bytes under two names.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = {  # feature network -> score -> its published name
    NAME: {"fd": "fid", "kid": "kid", "prdc": "prdc", "is": "inception-score"},
    CLEAN: {"fd": "clean-fid", "kid": "clean-kid"},
}


class Inception(FeatureNetwork):
    """2048 pooled activations of 8-bit images of 299 x 299 pixels.

    Images are resized by the first step of the network, as in TensorFlow 1 (`tf`: EDM's FID), or before it by Pillow's
    bicubic filter in floating point (`clean`: Parmar et al. 2022, FID of the clean-fid package).

    The network is torch-fidelity's with weights from a file: nothing is downloaded. The predicted class is -1, since
    the order of its 1008 outputs is not that of ImageNet's labels.
    """

    levels = LEVELS
    num_features = NUM_FEATURES

    def __init__(self, state: Mapping[str, Tensor], *, resize: str = "tf") -> None:
        """
        Args:
            state: the 566 tensors of the released file.
            resize: "tf" or "clean".

        Raises:
            ValueError: the tensors have other names or shapes, or `resize` is unknown.
        """
        super().__init__()
        if resize not in ("tf", "clean"):
            raise ValueError(f"features.resize {resize!r} is neither tf nor clean")
        self.name = NAME if resize == "tf" else CLEAN
        torchvision_operators.ensure()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        weights = io.BytesIO()  # a path would be unpickled without restrictions; None would download
        torch.save(dict(state), weights)
        weights.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3(
                NAME, [str(NUM_FEATURES)], feature_extractor_weights_path=weights
            )
        except RuntimeError as error:
            raise ValueError(f"these are not the weights of Inception V3: {' '.join(str(error).split())}") from error

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1 or 3, H, W) of 256 levels in [-1, 1]; grey images become three equal channels."""
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"inception takes images of 1 or 3 channels, not of shape {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError("images hold values that are not finite")
        pixels = eight_bit(image).expand(-1, 3, -1, -1)
        if self.name == NAME:
            (features,) = self.network(pixels)
            return features, no_class(image)
        hidden = (bicubic(pixels, size=SIDE).to(image.device) - 128) / 128
        for layer in LAYERS:
            hidden = getattr(self.network, layer)(hidden)
        return hidden.flatten(1), no_class(image)


def metric_name(score: str, features: Mapping[str, Any]) -> str:
    """The name of a score: a published one, such as `fid`, only if the weights are the released ones.

    Args:
        score: fd, kid, prdc, is, or another.
        features: {"name", "sha256"} of the feature network.

    Returns:
        fid, kid, prdc, inception-score, clean-fid or clean-kid for the released Inception weights, otherwise
        `{score}-{name}`.
    """
    own = f"{score}-{features['name']}"
    return PUBLISHED.get(features["name"], {}).get(score, own) if features["sha256"] == SHA256 else own
