"""diffusers' SD3Transformer2DModel, the flow-matching transformer of Stable Diffusion 3, behind our interface."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from dmd.models.networks.shapes import check_image, check_states
from dmd.models.networks.wrapped import Wrapped


class SD3(Wrapped):
    """A transformer over patches of latents that sees text states and one pooled vector of the text.

    Its label is one tensor: text states, and the pooled vector as a last row; both filled with zeros up to the greater
    of their widths.

    Args:
        config: arguments of SD3Transformer2DModel; those that begin with an underscore are diffusers' own notes.

    Attributes:
        channels, resolution: of its square images.
        text_width: E of labels (B, L + 1, E).
        num_classes: 0.

    Raises:
        ValueError: arguments that SD3Transformer2DModel does not take or cannot use, or other output channels.
    """

    word, holds = "sd3", "transformer"
    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.transformer = self.made("SD3Transformer2DModel", config)
        self.set_extent()
        found = self.transformer.config
        self._states, self._pooled = found["joint_attention_dim"], found["pooled_projection_dim"]
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
