"""diffusers' SD3Transformer2DModel, the flow-matching transformer of Stable Diffusion 3, behind our interface."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.networks.recompute import Recomputing
from dmd.networks.unet2d_condition import check_shapes


class SD3(Recomputing, nn.Module):
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

    num_classes = 0

    def __init__(self, *, config: Mapping[str, Any]) -> None:
        super().__init__()
        torchvision_operators.ensure()
        from diffusers import SD3Transformer2DModel

        numbers = {key: value for key, value in config.items() if not key.startswith("_")}
        self.transformer: Any
        try:
            self.transformer = SD3Transformer2DModel(**numbers)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"network sd3: {error}") from error
        found = self.transformer.config
        self.resolution, self.channels = found["sample_size"], found["in_channels"]
        self._states, self._pooled = found["joint_attention_dim"], found["pooled_projection_dim"]
        self.text_width = max(self._states, self._pooled)
        if found["out_channels"] != self.channels:
            raise ValueError(f"network sd3: {found['out_channels']} output channels for {self.channels} of the image")

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass computes each block once more instead of keeping what is inside it."""
        return self.transformer.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        self.set_recomputing(self.transformer, value)

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,): 1000 t, label float (B, L + 1, E) -> noise - x0 (B, C, R, R).

        Raises:
            ValueError: image or label have another shape.
        """
        check_shapes(self, image, label)
        states, pooled = label[:, :-1, : self._states], label[:, -1, : self._pooled]
        return self.transformer(image, states, pooled, noise_condition.float()).sample
