"""diffusers' SD3Transformer2DModel, the transformer of Stable Diffusion 3 (flow matching), as a network here."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmd.models.networks.diffusers_network import DiffusersNetwork
from dmd.models.networks.shapes import check_image, check_states


class SD3(DiffusersNetwork):
    """A transformer over patches of latents, conditioned on text states and one pooled vector of the text.

    Its label is one tensor: the text states and, as last row, the pooled vector, padded with zeros to the larger of the
    two widths.

    Args:
        config: arguments of SD3Transformer2DModel; `dmd.models.outside_config` says which are refused.

    Attributes:
        channels, resolution: of its square images.
        text_width: E of labels (B, L + 1, E).
        num_classes: 0.

    Raises:
        ValueError: arguments that are refused or that SD3Transformer2DModel cannot use, or unequal numbers of channels.
    """

    kind, attribute = "sd3", "transformer"
    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.transformer = self.new("SD3Transformer2DModel", config)
        self.set_extent()
        full = self.transformer.config
        self._states, self._pooled = full["joint_attention_dim"], full["pooled_projection_dim"]
        self.text_width = max(self._states, self._pooled)

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,): 1000 t, label float (B, L + 1, E) -> noise - x0 (B, C, R, R).

        Raises:
            ValueError: image or label have another shape.
        """
        check_image(self, image)
        check_states(self, label)
        states, pooled = label[:, :-1, : self._states], label[:, -1, : self._pooled]
        return self.transformer(image, states, pooled, noise_condition.float()).sample
