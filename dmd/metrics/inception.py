"""Inception V3 as converted in 2015, in whose features FID is defined; driven on tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dmd import torchvision_operators
from dmd.metrics.features import FeatureNetwork, no_class

NAME = "inception"
NUM_FEATURES = 2048
NUM_LOGITS = 1008
LEVELS = 256
# Of weights-inception-2015-12-05-6726825d.pth (torch-fidelity, release v0.2.0) and of
# pt_inception-2015-12-05-6726825d.pth (pytorch-fid, release fid_weights): the same bytes under two names.
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = {"fd": "fid", "kid": "kid", "prdc": "prdc", "is": "inception-score"}


class Inception(FeatureNetwork):
    """2048 pooled activations of 8-bit images, resized inside the network as TensorFlow 1 did.

    The network is torch-fidelity's, the weights are those given: nothing is downloaded. It names no class of ours
    (its 1008 outputs are of another order than ImageNet's labels), so the predicted class is -1.
    """

    name = NAME
    levels = LEVELS
    num_features = NUM_FEATURES

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        """
        Args:
            state: the 566 tensors of the released file.

        Raises:
            ValueError: other names or shapes.
        """
        super().__init__()
        torchvision_operators.ensure()
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        weights = io.BytesIO()  # given a path, the class would unpickle it without restraint; given none, download
        torch.save(dict(state), weights)
        weights.seek(0)
        try:
            self.network = FeatureExtractorInceptionV3(
                NAME, [str(NUM_FEATURES)], feature_extractor_weights_path=weights
            )
        except RuntimeError as error:
            raise ValueError(f"these are not the weights of Inception V3: {' '.join(str(error).split())}") from error

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1 or 3, H, W) of 256 levels in [-1, 1]; grey ones count as three equal channels."""
        if image.ndim != 4 or image.shape[1] not in (1, 3):
            raise ValueError(f"inception takes images of 1 or 3 channels, not of shape {tuple(image.shape)}")
        if not torch.isfinite(image).all():
            raise ValueError("images hold values that are not finite")
        (features,) = self.network(eight_bit(image).expand(-1, 3, -1, -1))
        return features, no_class(image)


def eight_bit(image: Tensor) -> Tensor:
    """Images of 256 levels in [-1, 1], as `quantise` leaves them, as uint8 0 .. 255."""
    return ((image + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def metric_name(score: str, features: Mapping[str, Any]) -> str:
    """What a score in these features may be called: `fid` only where the published network saw the images.

    Args:
        score: fd, kid, prdc, is, or another.
        features: {"name", "sha256"} of the feature network.

    Returns:
        fid, kid, prdc or inception-score for the released Inception weights, `{score}-{name}` for all else.
    """
    released = features["name"] == NAME and features["sha256"] == SHA256
    return PUBLISHED[score] if released and score in PUBLISHED else f"{score}-{features['name']}"
