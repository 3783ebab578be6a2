"""Networks for text-to-image measurements, with random weights: those of Stable Diffusion 1.5, or tiny versions."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from dmd.models.autoencoder import Codec
from dmd.models.compute import Compute, prepare
from dmd.models.denoiser import Denoiser
from dmd.models.networks import build
from dmd.models.networks.published_architectures import SD15, SD15_AUTOENCODER, SD15_TEXT
from dmd.models.text_encoder import Text

BETAS = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER = {**BETAS, "steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False, "clip_sample": False}
START, END = "<|startoftext|>", "<|endoftext|>"  # tokens
GUIDANCE = 3.0  # for PNDM and for the real score
TINY_NETWORK: dict[str, Any] = {
    "kind": "unet2d-condition",
    "config": {
        "sample_size": 8,
        "block_out_channels": [16, 32],
        "layers_per_block": 1,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "norm_num_groups": 8,
        "attention_head_dim": 4,
        "cross_attention_dim": 32,
    },
}
TINY_AUTOENCODER: dict[str, Any] = {
    "kind": "full",
    "config": {
        "block_out_channels": [8, 8],
        "down_block_types": ["DownEncoderBlock2D"] * 2,
        "up_block_types": ["UpDecoderBlock2D"] * 2,
        "latent_channels": 4,
        "norm_num_groups": 4,
    },
}
TINY_TEXT: dict[str, Any] = {**SD15_TEXT, "vocab_size": 64, "hidden_size": 32, "projection_dim": 32}
TINY_TEXT |= {"intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@dataclass(frozen=True)
class TextSize:
    """The networks and sizes of the text-to-image measurements.

    Attributes:
        network: architecture for `dmd.models.networks.build`.
        autoencoder, small_autoencoder: arguments of `Codec`; the small one decodes latents for LPIPS.
        text: arguments of CLIPTextConfig.
        micro_batch_size: latents in a training pass.
        rank: rank of the adapters, which are on all layers.
        drawn: latents that PNDM draws at once.
        steps: steps of PNDM.
        batch_sizes: batch sizes of one-step images.
        lpips: input size of LPIPS in pixels.
        backend: backend of torch.compile; "eager" tests the code without compiling.
    """

    network: dict[str, Any]
    autoencoder: dict[str, Any]
    small_autoencoder: dict[str, Any]
    text: dict[str, Any]
    device: torch.device
    micro_batch_size: int = 16
    rank: int = 64
    drawn: int = 16
    steps: int = 50
    batch_sizes: tuple[int, ...] = (8, 1)
    lpips: int = 224
    repetitions: int = 3
    backend: str | Callable[..., Any] = "inductor"

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of a latent."""
        side = self.network["config"]["sample_size"]
        return 4, side, side

    def noise(self, num: int) -> torch.Tensor:
        """(num, C, H, W) on the device."""
        return torch.randn(num, *self.shape, device=self.device)

    def states(self, *num: int) -> torch.Tensor:
        """Random text states (*num, L, E) on the device."""
        extent = self.text["max_position_embeddings"], self.text["hidden_size"]
        return torch.randn(*num, *extent, device=self.device)


def size(device: torch.device, *, tiny: bool) -> TextSize:
    """Stable Diffusion 1.5 with TAESD, or networks of a few thousand weights."""
    if not tiny:
        return TextSize(SD15, SD15_AUTOENCODER, {"kind": "tiny", "config": {}}, SD15_TEXT, device)
    blocks = {f"{part}_block_out_channels": [8, 8] for part in ("encoder", "decoder")}
    small = {"kind": "tiny", "config": {**blocks, "num_encoder_blocks": [1, 1], "num_decoder_blocks": [1, 1]}}
    less: dict[str, Any] = {
        "micro_batch_size": 1,
        "rank": 2,
        "drawn": 1,
        "steps": 4,
        "batch_sizes": (2, 1),
        "lpips": 16,
    }
    return TextSize(TINY_NETWORK, TINY_AUTOENCODER, small, TINY_TEXT, device, repetitions=1, backend="eager", **less)


def denoiser(size: TextSize, compute: Compute) -> Denoiser:
    """A frozen denoiser with random weights, made on the device."""
    torch.manual_seed(0)
    with size.device:
        network = build(size.network)
    levels = {"kind": "discrete", "prediction": "epsilon", "alphas_cumprod": _alphas()}
    result = Denoiser(network, sigma_data=1.0, preconditioning=levels).to(size.device)
    result.scheduler = SCHEDULER
    prepare(result.requires_grad_(False).eval(), compute)
    return result


def last_sigma(denoiser: Denoiser) -> float:
    """The noise level that one-step students start from."""
    assert denoiser.table is not None  # kind discrete
    return float(denoiser.table[1][-1])


def codec(size: TextSize, autoencoder: dict[str, Any]) -> Codec:
    """A frozen codec with random weights, made on the device."""
    torch.manual_seed(0)
    with size.device:
        result = Codec(**autoencoder)
    return result.to(size.device).requires_grad_(False).eval()


def text(size: TextSize) -> Text:
    """A frozen text encoder with random weights, made on the device; its tokens are letters."""
    letters = string.ascii_lowercase
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), START, END]
    start, end = tokens.index(START), tokens.index(END)
    files = {"vocab.json": json.dumps({token: number for number, token in enumerate(tokens)}), "merges.txt": ""}
    ids = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    torch.manual_seed(0)
    with size.device:
        result = Text(config={**size.text, **ids}, tokenizer=files)
    return result.to(size.device).requires_grad_(False).eval()


def _alphas() -> list[float]:
    ends = (BETAS["beta_start"] ** 0.5, BETAS["beta_end"] ** 0.5)  # type: ignore[operator]
    betas = torch.linspace(*ends, BETAS["num_train_timesteps"], dtype=torch.float64).square()  # type: ignore[call-overload]
    return (1 - betas).cumprod(0).tolist()
