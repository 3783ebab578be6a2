"""The residual block that the three U-Net families share."""

from dataclasses import dataclass, replace
from math import sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dmd.models.networks.layers import Binomial, Box, group_norm


@dataclass(frozen=True)
class Family:
    """The differences between ADM, DDPM++ and NCSN++.

    Attributes:
        eps: of every GroupNorm.
        gain: factor on each residual sum.
        scale_shift: the embedding scales and shifts after norm1, instead of shifting before it.
        resampling_skip: blocks that resample have a 1x1 skip convolution even at equal channel counts.
        head_channels: channels per attention head; 0 means one head.
        wide_stem: the stem has width * multipliers[0] channels, instead of width.
        late_label: the label joins after the embedding MLP, without bias, instead of before it.
        decoder_attention: every decoder block of an attention level has self-attention, instead of only the last.
        fourier: random Fourier noise features (their frequencies are saved), instead of fixed ones.
        binomial: 1, 3, 3, 1 resampling filter and a residual image branch, instead of 2x2 means.
    """

    eps: float
    gain: float
    scale_shift: bool
    resampling_skip: bool
    head_channels: int
    wide_stem: bool
    late_label: bool
    decoder_attention: bool
    fourier: bool
    binomial: bool


ADM = Family(
    eps=1e-5,
    gain=1.0,
    scale_shift=True,
    resampling_skip=False,
    head_channels=64,
    wide_stem=True,
    late_label=True,
    decoder_attention=True,
    fourier=False,
    binomial=False,
)
DDPMPP = Family(
    eps=1e-6,
    gain=sqrt(0.5),
    scale_shift=False,
    resampling_skip=True,
    head_channels=0,
    wide_stem=False,
    late_label=False,
    decoder_attention=False,
    fourier=False,
    binomial=False,
)
NCSNPP = replace(DDPMPP, fourier=True, binomial=True)


def num_heads(channels: int, head_channels: int) -> int:
    """Attention heads of a block.

    Raises:
        ValueError: too few channels for one head, or the heads do not divide them.
    """
    heads = channels // head_channels if head_channels else 1
    if heads < 1 or channels % heads:
        raise ValueError(f"attention: {channels} channels make no whole heads of {head_channels} channels or more")
    return heads


class Block(nn.Module):
    """Residual block: norm, SiLU, resample, convolve; condition; convolve; add; then self-attention.

    Args:
        in_channels, out_channels: of the image.
        embedding: width of the noise and label embedding.
        family: ADM, DDPMPP or NCSNPP.
        resample: "up", "down" or None.
        attention: whether self-attention follows.
        dropout: probability, before the second convolution, while training.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        family: Family,
        resample: str | None = None,
        attention: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.family, self.dropout = family, dropout
        self.norm0 = group_norm(in_channels, family.eps)
        self.conv0 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.affine = nn.Linear(embedding, out_channels * (2 if family.scale_shift else 1))
        self.norm1 = group_norm(out_channels, family.eps)
        self.conv1 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.skip: nn.Module | None = None
        if in_channels != out_channels or (resample and family.resampling_skip):
            self.skip = nn.Conv2d(in_channels, out_channels, 1)
        self.resample: nn.Module | None = None
        if resample:
            self.resample = Binomial(resample) if family.binomial else Box(resample)
        self.skip_first = resample == "up" and not family.binomial  # same result: a 1x1 filter on fewer pixels
        self.heads = num_heads(out_channels, family.head_channels) if attention else 0
        if attention:
            self.norm2 = group_norm(out_channels, family.eps)
            self.qkv = nn.Conv2d(out_channels, 3 * out_channels, 1)
            self.proj = nn.Conv2d(out_channels, out_channels, 1)

    def forward(self, image: Tensor, embedding: Tensor) -> Tensor:
        """image (B, C, H, W), embedding (B, E) -> (B, out_channels, H', W')."""
        hidden = F.silu(self.norm0(image))
        if self.resample is not None:
            hidden = self.resample(hidden)
        hidden = self.conv0(hidden)
        condition = self.affine(embedding)[:, :, None, None]
        if self.family.scale_shift:
            scale, shift = condition.chunk(2, dim=1)
            hidden = torch.addcmul(shift, self.norm1(hidden), scale + 1)
        else:
            hidden = self.norm1(hidden.add_(condition))
        hidden = F.silu(hidden)
        if self.dropout and self.training:
            hidden = F.dropout(hidden, self.dropout)
        hidden = self._sum(self.conv1(hidden), self._shortcut(image))
        return self._sum(self._attend(hidden), hidden) if self.heads else hidden

    def _sum(self, branch: Tensor, trunk: Tensor) -> Tensor:
        """(branch + trunk) * gain, written into `branch`, a convolution's output, which no backward pass needs."""
        branch = branch.add_(trunk)
        return branch if self.family.gain == 1.0 else branch.mul_(self.family.gain)

    def _shortcut(self, image: Tensor) -> Tensor:
        first, second = (self.skip, self.resample) if self.skip_first else (self.resample, self.skip)
        image = image if first is None else first(image)
        return image if second is None else second(image)

    def _attend(self, image: Tensor) -> Tensor:
        """Self-attention over pixels; channels of qkv are ordered (head, channel in head, q | k | v).

        The fused kernels need contiguous rows; they compute the softmax in float32 for inputs of any dtype.
        """
        batch, channels, height, width = image.shape
        qkv = self.qkv(self.norm2(image)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
        query, key, value = qkv.permute(3, 0, 1, 4, 2).contiguous().unbind(0)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.proj(mixed.transpose(2, 3).reshape(image.shape))
