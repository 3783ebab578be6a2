"""U-Nets of the EDM teachers (Karras et al. 2022): ADM, DDPM++ and NCSN++ as three settings of one network."""

from dataclasses import dataclass
from functools import partial
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmd.models.networks.block import Block, Family
from dmd.models.networks.layers import (
    AddedInput,
    NoiseFeatures,
    ResidualDown,
    check_flag,
    check_integer,
    geometric,
    group_norm,
    initialise,
    one_hot,
    split_condition,
)
from dmd.models.networks.recompute import Recomputing
from dmd.models.networks.shapes import check_image
from dmd.models.networks.state_convolution import StateConvolution, check_num_states


@dataclass(frozen=True)
class Shape:
    """Sizes of a U-Net.

    Attributes:
        resolution: height and width of the image.
        channels: of the image.
        width: channels at multiplier 1; the embedding has four times as many.
        multipliers: channels of each level over width; each level halves the resolution.
        blocks: encoder blocks per level; the decoder has one more.
        attention: resolutions of the levels with self-attention.
        num_classes: 0 for an unconditional network, which ignores labels.
        dropout: probability while training.
        augment: number of inputs of the augmentation layer in released files; its weights are loaded, but not used.
        patch: side of the squares of pixels that the network takes as channels of one pixel: its first level has
            1 / patch of the resolution (pixel shuffle, Shi et al. 2016); 1: the pixels themselves.
        second_time, guidance_input: whether noise_condition has a further column with a second time, and after it one
            with the guidance.
        states: M: each M rows of a batch are the states of one path, and convolutions along them follow the blocks.

    Raises:
        ValueError: a size is out of range or does not fit the others.
    """

    resolution: int
    channels: int
    width: int
    multipliers: list[int]
    blocks: int
    attention: list[int]
    num_classes: int
    dropout: float = 0.0
    augment: int = 0
    patch: int = 1
    second_time: bool = False
    guidance_input: bool = False
    states: int = 1

    def __post_init__(self) -> None:
        for name in ("resolution", "channels", "width", "blocks", "patch"):
            check_integer(name, getattr(self, name), least=1)
        for name in ("num_classes", "augment"):
            check_integer(name, getattr(self, name), least=0)
        for name in ("multipliers", "attention"):
            if not isinstance(getattr(self, name), list | tuple):
                raise ValueError(f"{name}: {getattr(self, name)!r} is no list")
        check_flag("second_time", self.second_time)
        check_flag("guidance_input", self.guidance_input)
        check_num_states(self.states, second_time=self.second_time)
        if not self.multipliers:
            raise ValueError("multipliers: at least one level is needed")
        for multiplier in self.multipliers:
            check_integer("multipliers", multiplier, least=1)
        if self.width < 4 or self.width % 4:
            raise ValueError(f"width: {self.width} is no multiple of 4")
        halvings = 2 ** (len(self.multipliers) - 1)
        if self.resolution % self.patch:
            raise ValueError(f"resolution: {self.resolution} is not divisible by patch {self.patch}")
        if self.resolution // self.patch % halvings:
            patches = f" / patch {self.patch}" if self.patch > 1 else ""
            raise ValueError(
                f"resolution: {self.resolution}{patches} is not divisible by {halvings} = 2 ** (levels - 1)"
            )
        if unknown := sorted(set(self.attention) - set(self.levels)):
            raise ValueError(f"attention: {unknown} are no levels; the levels are {self.levels}")
        if not isinstance(self.dropout, int | float) or not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout: {self.dropout!r} is not in [0, 1)")

    @property
    def levels(self) -> list[int]:
        """Resolution of each level, finest first."""
        return [self.resolution // self.patch >> level for level in range(len(self.multipliers))]

    @property
    def patch_channels(self) -> int:
        """Channels at the first level's input and output."""
        return self.channels * self.patch**2


class UNet(Recomputing, nn.Module):
    """F_theta with the parameter names of the released EDM files.

    Args:
        family: ADM, DDPMPP or NCSNPP of dmd.models.networks.block.
        shape: its sizes.

    Attributes:
        checkpointing: save only the inputs of blocks; the backward pass recomputes each block.
        num_states: M of `shape`.

    Raises:
        ValueError: channels that cannot be normalised in groups or split into attention heads.
    """

    def __init__(self, family: Family, shape: Shape) -> None:
        super().__init__()
        self.family, self.checkpointing = family, False
        self.channels, self.resolution, self.num_classes = shape.channels, shape.resolution, shape.num_classes
        self.patch = shape.patch
        embedding = 4 * shape.width
        features = shape.width * (2 if family.fourier else 1)
        self.map_noise = _noise_features(family, shape.width)
        self.map_augment: nn.Linear | None = None
        if shape.augment:
            self.map_augment = nn.Linear(shape.augment, features, bias=False)
        self.map_layer0 = nn.Linear(features, embedding)
        self.map_layer1 = nn.Linear(embedding, embedding)
        self.map_label: nn.Linear | None = None
        if shape.num_classes:
            self.map_label = nn.Linear(
                shape.num_classes, embedding if family.late_label else features, bias=not family.late_label
            )
        self.enc, skips = _encoder(family, shape)
        self._bottleneck = skips[-1], shape.levels[-1]
        self.dec, channels = _decoder(family, shape, skips)
        norm, conv = group_norm(channels, family.eps), nn.Conv2d(channels, shape.patch_channels, 3, padding=1)
        if family.late_label:
            self.out_norm, self.out_conv = norm, conv
        else:
            name = f"{shape.levels[0]}x{shape.levels[0]}_aux"
            self.dec[f"{name}_norm"], self.dec[f"{name}_conv"] = norm, conv
        initialise(self, zero=("conv1", "proj", "out_conv", "aux_conv"))
        self.second_time = AddedInput(embedding) if shape.second_time else None
        self.guidance_input = AddedInput(embedding) if shape.guidance_input else None
        self.num_states = shape.states
        self.state_convolutions = nn.ModuleDict()
        for part, layers in (("enc", self.enc), ("dec", self.dec)) if shape.states > 1 else ():
            for name, layer in layers.items():
                if isinstance(layer, Block):
                    channels = layer.conv1.out_channels
                    self.state_convolutions[f"{part}_{name}"] = StateConvolution(channels, shape.states)
        if self.map_augment is not None:
            self.map_augment.requires_grad_(False)

    def forward(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """image (B, C, R, R), noise_condition (B,), label (B,) int64, -1 = none -> (B, C, R, R).

        With further inputs noise_condition is as `split_condition` takes it.

        Raises:
            ValueError: the image has another shape, or a label is not one of the classes.
        """
        check_image(self, image)
        embedding = self._embedding(image, noise_condition, label)
        hidden, skips = self._encode(image, embedding)
        for name, layer in self.dec.items():
            if isinstance(layer, Block):
                if "_block" in name:
                    hidden = torch.cat([hidden, skips.pop()], dim=1)
                hidden = self._block(f"dec_{name}", layer, hidden, embedding)
            else:
                hidden = layer(F.silu(hidden) if name.endswith("conv") else hidden)
        hidden = self.out_conv(F.silu(self.out_norm(hidden))) if self.family.late_label else hidden
        return hidden if self.patch == 1 else F.pixel_shuffle(hidden, self.patch)

    @property
    def bottleneck_shape(self) -> tuple[int, int]:
        """Channels, and the side in pixels, of `bottleneck`."""
        return self._bottleneck

    def bottleneck(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        """The output of the encoder (B, *bottleneck_shape, side), for the inputs of `forward`."""
        check_image(self, image)
        return self._encode(image, self._embedding(image, noise_condition, label))[0]

    def _embedding(self, image: Tensor, noise_condition: Tensor, label: Tensor) -> Tensor:
        with torch.autocast(image.device.type, enabled=False):
            return self._embed(noise_condition, label)

    def _embed(self, noise_condition: Tensor, label: Tensor) -> Tensor:
        """Noise and label embedding (B, 4 * width), in the precision of the weights even under autocast."""
        dtype = self.map_layer0.weight.dtype
        classes = one_hot(label, self.num_classes).to(dtype) if self.num_classes else None
        condition, added = split_condition(noise_condition, self.second_time, self.guidance_input)
        embedding = self.map_noise(condition).to(dtype)
        if self.map_label is not None and classes is not None and not self.family.late_label:
            embedding = embedding + self.map_label(classes * sqrt(self.num_classes))
        embedding = self.map_layer1(F.silu(self.map_layer0(embedding)))
        if self.map_label is not None and classes is not None and self.family.late_label:
            embedding = embedding + self.map_label(classes)
        if added is not None:
            embedding = embedding + added
        return F.silu(embedding)

    def _block(self, name: str, block: Block, hidden: Tensor, embedding: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            hidden = self.recompute(block, hidden, embedding, random=self.training)  # dropout
        else:
            hidden = block(hidden, embedding)
        return self.state_convolutions[name](hidden) if name in self.state_convolutions else hidden

    def _encode(self, image: Tensor, embedding: Tensor) -> tuple[Tensor, list[Tensor]]:
        hidden = branch = image if self.patch == 1 else F.pixel_unshuffle(image, self.patch)
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if isinstance(layer, ResidualDown):
                hidden = branch = skips[-1] = (hidden + layer(branch)) * self.family.gain
            else:
                if isinstance(layer, Block):
                    hidden = self._block(f"enc_{name}", layer, hidden, embedding)
                else:
                    hidden = layer(hidden)
                skips.append(hidden)
        return hidden, skips


def _noise_features(family: Family, width: int) -> NoiseFeatures:
    if family.fourier:
        return NoiseFeatures(torch.randn(width) * 16, sine_first=True, saved=True)  # scale: Song et al. 2021
    freqs = geometric(width // 2, last=1e-4, endpoint=not family.late_label)
    return NoiseFeatures(freqs, sine_first=not family.late_label)


def _encoder(family: Family, shape: Shape) -> tuple[nn.ModuleDict, list[int]]:
    """Encoder, and the channels of each skip connection to the decoder."""
    stem = shape.width * (shape.multipliers[0] if family.wide_stem else 1)
    block = partial(Block, embedding=4 * shape.width, family=family, dropout=shape.dropout)
    layers = nn.ModuleDict()
    skips = [stem]
    branch = shape.patch_channels
    for level, multiplier in zip(shape.levels, shape.multipliers, strict=True):
        name = f"{level}x{level}"
        if level == shape.levels[0]:
            layers[f"{name}_conv"] = nn.Conv2d(shape.patch_channels, stem, 3, padding=1)
        else:
            layers[f"{name}_down"] = block(skips[-1], skips[-1], resample="down")
            if family.binomial:
                layers[f"{name}_aux_residual"] = ResidualDown(branch, skips[-1])
                branch = skips[-1]
            skips.append(skips[-1])
        for index in range(shape.blocks):
            layers[f"{name}_block{index}"] = block(
                skips[-1],
                shape.width * multiplier,
                attention=level in shape.attention,
            )
            skips.append(shape.width * multiplier)
    return layers, skips


def _decoder(family: Family, shape: Shape, skips: list[int]) -> tuple[nn.ModuleDict, int]:
    """Decoder without its output layers, and the channels that it ends with."""
    block = partial(Block, embedding=4 * shape.width, family=family, dropout=shape.dropout)
    layers = nn.ModuleDict()
    channels, skips = skips[-1], list(skips)
    for level, multiplier in reversed(list(zip(shape.levels, shape.multipliers, strict=True))):
        name = f"{level}x{level}"
        if level == shape.levels[-1]:
            layers[f"{name}_in0"] = block(channels, channels, attention=True)
            layers[f"{name}_in1"] = block(channels, channels)
        else:
            layers[f"{name}_up"] = block(channels, channels, resample="up")
        for index in range(shape.blocks + 1):
            attends = level in shape.attention and (family.decoder_attention or index == shape.blocks)
            layers[f"{name}_block{index}"] = block(channels + skips.pop(), shape.width * multiplier, attention=attends)
            channels = shape.width * multiplier
    return layers, channels
