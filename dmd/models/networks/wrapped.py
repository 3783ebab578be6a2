"""What the wrappers of diffusers' networks share."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dmd import torchvision_operators
from dmd.models.networks.recompute import Recomputing


class Wrapped(Recomputing, nn.Module):
    """One of diffusers' networks.

    Attributes:
        word: the network's name in artifacts, for messages.
        holds: the attribute of a subclass that is diffusers' network; names of weights begin with it.
        channels, resolution: of its square images.
    """

    word: str
    holds: str
    channels: int
    resolution: int

    @property
    def inside(self) -> Any:
        """diffusers' network."""
        return getattr(self, self.holds)

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass computes each block once more instead of keeping what is inside it."""
        return self.inside.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        if value:
            self.inside.enable_gradient_checkpointing(self.recomputed)
        else:
            self.inside.disable_gradient_checkpointing()

    def made(self, name: str, config: Mapping[str, Any], absent: Sequence[str] = ()) -> Any:
        """diffusers' class `name` of the arguments in `config`; those that begin with an underscore are its own notes.

        Raises:
            ValueError: arguments that the class does not take or cannot use, or one of the `absent`.
        """
        torchvision_operators.ensure()
        import diffusers  # 20 s on a slow disk: only those who need it pay

        numbers = {key: value for key, value in config.items() if not key.startswith("_")}
        if other := [key for key in absent if numbers.get(key) is not None]:
            raise ValueError(f"network {self.word}: {other[0]} {numbers[other[0]]!r} is not known here")
        try:
            return getattr(diffusers, name)(**numbers)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise ValueError(f"network {self.word}: {error}") from error

    def set_extent(self, variances: Sequence[int] = (1,)) -> None:
        """Sets channels and resolution; `variances` are the known ratios of output to input channels.

        Raises:
            ValueError: images that are not square, or another number of output channels.
        """
        found = self.inside.config
        size = found["sample_size"]
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise ValueError(f"network {self.word}: sample_size {size!r} is no side of a square image")
        self.resolution, self.channels = sides.pop(), found["in_channels"]
        if found["out_channels"] not in [ratio * self.channels for ratio in variances]:
            raise ValueError(
                f"network {self.word}: {found['out_channels']} output channels for {self.channels} of the image"
            )
