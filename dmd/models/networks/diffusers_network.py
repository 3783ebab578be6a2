"""The base class of networks that wrap one of diffusers' networks."""

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dmd import torchvision_operators
from dmd.models import outside_config
from dmd.models.networks.recompute import Recomputing


class _Reached(Exception):
    """Ends a pass of diffusers' network once its bottleneck is known."""


class DiffusersNetwork(Recomputing, nn.Module):
    """A network of this package whose passes are those of one of diffusers' networks.

    Attributes:
        kind: the network's name in artifacts, for messages.
        attribute: name of the attribute that holds diffusers' network; names of weights begin with it.
        channels, resolution: of its square images.
    """

    kind: str
    attribute: str
    channels: int
    resolution: int

    @property
    def inner(self) -> Any:
        """diffusers' network."""
        return getattr(self, self.attribute)

    @property
    def checkpointing(self) -> bool:
        """Whether the backward pass recomputes each block instead of saving its activations."""
        return self.inner.is_gradient_checkpointing

    @checkpointing.setter
    def checkpointing(self, value: bool) -> None:
        if value:
            self.inner.enable_gradient_checkpointing(self.recompute)
        else:
            self.inner.disable_gradient_checkpointing()

    def new(self, name: str, config: Mapping[str, Any], added: Mapping[str, Any] | None = None) -> Any:
        """A network of diffusers' class `name`.

        Args:
            config: its arguments, which may come from outside.
            added: further ones.

        Raises:
            ValueError: keys that `outside_config` refuses.
            Exception: values that the class cannot use.
        """
        torchvision_operators.ensure()
        import diffusers  # here, since it may take 20 s on a slow disk

        arguments = outside_config.arguments(f"network {self.kind}", config, name)
        return getattr(diffusers, name)(**{**arguments, **(added or {})})

    def set_extent(self, output_ratios: Sequence[int] = (1,)) -> None:
        """Sets channels and resolution; `output_ratios` are the allowed ratios of output to input channels.

        Raises:
            ValueError: images that are not square, or another number of output channels.
        """
        full = self.inner.config
        size = full["sample_size"]
        sides = {size} if isinstance(size, int) else set(size or ())
        if len(sides) != 1:
            raise ValueError(f"network {self.kind}: sample_size {size!r} is not the side of a square image")
        self.resolution, self.channels = sides.pop(), full["in_channels"]
        if full["out_channels"] not in [ratio * self.channels for ratio in output_ratios]:
            raise ValueError(
                f"network {self.kind}: {full['out_channels']} output channels for {self.channels} of the image"
            )

    @property
    def bottleneck_shape(self) -> tuple[int, int]:
        """Channels, and the side in pixels, of `bottleneck`; ValueError for a network without a middle block."""
        channels = self.inner.config.get("block_out_channels")
        if channels is None or getattr(self.inner, "mid_block", None) is None:
            raise ValueError(f"network {self.kind} has no bottleneck")
        return channels[-1], self.resolution // 2 ** (len(channels) - 1)

    def bottleneck(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """The output of the middle block (B, *bottleneck_shape, side), for the inputs of `forward`."""
        found: list[Tensor] = []

        def stop(module: nn.Module, inputs: Any, output: Tensor) -> None:
            found.append(output)
            raise _Reached

        hook = self.inner.mid_block.register_forward_hook(stop)
        try:
            self.forward(image, noise_condition, label)
        except _Reached:
            pass
        finally:
            hook.remove()
        return found[0]
