"""Section `pipeline`: a Stable Diffusion that is trained here, on the images and captions of the dataset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field, model_validator

from dmd.config.methods.autoencoding import Autoencoding
from dmd.config.methods.contrastive import Contrastive
from dmd.config.section_base import Decay, Integer, Many, Section, Seed, ShardSize, refuse
from dmd.config.training import TeacherTraining, Training

Width = Annotated[Integer, Field(ge=1, le=8192)]
Layers = Annotated[Integer, Field(ge=1, le=100)]
Share = Annotated[float, Field(ge=0, le=1)]


class Augmentation(Section):
    """Random changes of images in training; pixels beyond the border repeat it."""

    share: Share = Field(1.0, description="fraction of the images that are changed")
    shift: Annotated[float, Field(ge=0, le=0.5)] = Field(0.0, description="largest shift, relative to the side")
    scale: Decay = Field(0.0, description="largest relative change of size")
    rotation: Annotated[float, Field(ge=0, le=180)] = Field(0.0, description="largest angle, in degrees")
    flip: bool = Field(False, description="mirror half of them")
    colour: Decay = Field(0.0, description="largest relative change of each channel, from black")


class Transformer(Section):
    """One of the two networks of CLIP."""

    width: Width = Field(description="of states; a multiple of heads")
    layers: Layers = Field(description="blocks")
    heads: Layers = Field(description="of attention")

    @model_validator(mode="after")
    def _fits(self) -> Transformer:
        if self.width % self.heads:
            raise ValueError(f"width: {self.width} is not divisible by heads {self.heads}")
        return self


class ImageTransformer(Transformer):
    """CLIP's network of images."""

    patch_size: Annotated[Integer, Field(ge=1, le=512)] = Field(8, description="side of a patch, in pixels")


class TextTraining(Training):
    """The training of a CLIP."""

    method: Contrastive = Field(description="contrast of images and captions")


class AutoencoderTraining(Training):
    """The training of an autoencoder."""

    method: Autoencoding = Field(description="reconstruction")


class ImageText(Section):
    """A CLIP (Radford et al. 2021) with a vocabulary of its own; its network of texts encodes the prompts."""

    vocabulary: Annotated[Integer, Field(ge=0, le=10**6)] = Field(
        1000, description="merges of byte pairs, besides single bytes; fewer if the captions have not as many"
    )
    length: Annotated[Integer, Field(ge=4, le=4096)] = Field(77, description="tokens of a text, with start and end")
    text: Transformer = Field(description="network of texts")
    image: ImageTransformer = Field(description="network of images")
    embedding: Width = Field(description="width of the space in which images and texts are compared")
    captions: Literal["training", "all"] = Field(
        "training", description="all: also held-out captions, for a network that only scores"
    )
    augmentation: Augmentation = Augmentation()
    training: TextTraining


class TrainedAutoencoder(Section):
    """An AutoencoderKL of diffusers; each width after the first halves the resolution."""

    widths: Annotated[Many[Width], Field(min_length=1, max_length=8)] = Field(description="channels of each level")
    layers: Layers = Field(1, description="residual blocks of a level")
    groups: Layers = Field(32, description="of group normalisation; divides all widths")
    latent_channels: Annotated[Integer, Field(ge=1, le=256)] = Field(4, description="of latents")
    attention: bool = Field(True, description="in the middle")
    augmentation: Augmentation = Augmentation()
    training: AutoencoderTraining

    @property
    def scale(self) -> int:
        """Pixels of an image per pixel of a latent, along each side."""
        return 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _fits(self) -> TrainedAutoencoder:
        refuse(_odd_widths(self.widths, self.groups))
        return self


class Latents(Section):
    """Latents of the training images, each encoded as it is and then changed in other ways."""

    views: Annotated[Integer, Field(ge=1, le=10**4)] = Field(
        1, description="latents of an image; the first is unchanged"
    )
    augmentation: Augmentation = Augmentation()
    shard_size: ShardSize = Field(10000, description="latents in one tar")
    seed: Seed = Field(0, description="of the changes")


class LatentDenoiser(Section):
    """A UNet2DConditionModel of diffusers; each width after the first halves the resolution."""

    widths: Annotated[Many[Width], Field(min_length=1, max_length=8)] = Field(description="channels of each level")
    attention: Annotated[Many[bool], Field(min_length=1)] = Field(
        description="of each level: whether it reads the text"
    )
    layers: Layers = Field(1, description="residual blocks of a level")
    groups: Layers = Field(32, description="of group normalisation; divides all widths")
    head_width: Width = Field(32, description="of each head of attention; divides all widths")
    prediction: Literal["epsilon", "v"] = Field(
        "epsilon",
        description="what the network predicts; the loss of v weights high noise levels, which decide shapes, more",
    )
    training: TeacherTraining

    @model_validator(mode="after")
    def _fits(self) -> LatentDenoiser:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        yield from _odd_widths(self.widths, self.groups)
        if len(self.attention) != len(self.widths):
            yield f"attention: {len(self.attention)} values for {len(self.widths)} widths"
        if odd := [width for width in self.widths if width % self.head_width]:
            yield f"head_width: {self.head_width} does not divide widths {odd[0]}"
        if self.training.method.levels != "table":
            yield "training.method.levels: log-normal, but the network has a table of noise levels: write table"


class Pipeline(Section):
    """The parts of a Stable Diffusion; with `text` alone only the CLIP is trained, which may score images."""

    text: ImageText
    autoencoder: TrainedAutoencoder | None = None
    latents: Latents | None = None
    denoiser: LatentDenoiser | None = None

    @model_validator(mode="after")
    def _fits(self) -> Pipeline:
        refuse(self._contradictions())
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.latents is not None and self.autoencoder is None:
            yield "latents: it needs autoencoder"
        if self.denoiser is not None and self.latents is None:
            yield "denoiser: it needs latents, which may be {}"


def _odd_widths(widths: tuple[int, ...], groups: int) -> Iterator[str]:
    if odd := [width for width in widths if width % groups]:
        yield f"groups: {groups} does not divide widths {odd[0]}"
