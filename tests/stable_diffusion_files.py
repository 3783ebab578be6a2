"""A tiny random Stable Diffusion as a folder that stock diffusers opens, and a tiny autoencoder beside it."""

import json
from pathlib import Path
from typing import Any

import torch

from dmd import torchvision_operators

WIDTH, LENGTH = 32, 77  # of text states
WORDS = ("a", "photo", "of", "cat", "dog", "red", "house", "in", "the", "snow")  # one token each
START, END = "<|startoftext|>", "<|endoftext|>"
UNET = {"in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1}
UNET |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "norm_num_groups": 8}
UNET |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 4, "cross_attention_dim": WIDTH}
SCHEDULER = {"num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SCHEDULER |= {"steps_offset": 1, "skip_prk_steps": True, "set_alpha_to_one": False}  # as in Stable Diffusion 1.5


def make_stable_diffusion(
    folder: Path,
    *,
    seed: int = 0,
    prediction: str = "epsilon",
    zero_snr: bool = False,
    resolution: int = 16,
    scale: int = 4,
    **unet: Any,
) -> Path:
    """Writes the folder, with random weights; returns it.

    Args:
        prediction: what the network predicts, "epsilon" or "v_prediction".
        zero_snr: whether there is no signal at the last timestep.
        resolution: of the latent (4, resolution, resolution).
        scale: pixels of an image per side of a latent's, a power of 2.
        unet: further arguments of UNet2DConditionModel.
    """
    torchvision_operators.ensure()
    from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    depth = scale.bit_length()
    make_tokenizer(folder / "tokenizer")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = _shaken(UNet2DConditionModel(**{**UNET, "sample_size": resolution, **unet}))
        autoencoder = _shaken(
            AutoencoderKL(
                block_out_channels=(8,) * depth,
                down_block_types=("DownEncoderBlock2D",) * depth,
                up_block_types=("UpDecoderBlock2D",) * depth,
                latent_channels=4,
                norm_num_groups=4,
                sample_size=resolution * scale,
            )
        )
        text = _shaken(CLIPTextModel(_text_config()))
    kind = "DDIMScheduler" if zero_snr else "PNDMScheduler"
    known = SCHEDULER | ({"rescale_betas_zero_snr": True, "clip_sample": False} if zero_snr else {})
    known = {key: value for key, value in known.items() if not zero_snr or key != "skip_prk_steps"}
    pipeline = StableDiffusionPipeline(
        unet=network,
        vae=autoencoder,
        text_encoder=text,
        tokenizer=CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True),
        scheduler=(DDIMScheduler if zero_snr else PNDMScheduler)(**known, prediction_type=prediction),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder, safe_serialization=True)
    written = {"_class_name": kind, "_diffusers_version": "0.6.0", **known, "clip_sample": False}
    predicted = {} if prediction == "epsilon" else {"prediction_type": prediction}
    _write(folder / "scheduler" / "scheduler_config.json", written | {"trained_betas": None} | predicted)
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)  # the released folders have the older files only
    make_tokenizer(folder / "tokenizer")
    return folder


def make_tiny_autoencoder(folder: Path, *, seed: int = 0, scale: int = 4) -> Path:
    """Writes a random AutoencoderTiny of latents (4, R, R) and images (3, scale R, scale R); returns the folder."""
    torchvision_operators.ensure()
    from diffusers import AutoencoderTiny

    depth = scale.bit_length()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        channels = (8,) * depth
        blocks = {"num_encoder_blocks": (1,) * depth, "num_decoder_blocks": (1,) * depth}
        tiny = AutoencoderTiny(encoder_block_out_channels=channels, decoder_block_out_channels=channels, **blocks)
        tiny.save_pretrained(folder, safe_serialization=True)
    return folder


def make_tokenizer(folder: Path) -> Path:
    """Writes a CLIP tokenizer of single bytes and `WORDS`, in the files of the released folders."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END}
    numbers = {"model_max_length": LENGTH, "do_lower_case": True, "add_prefix_space": False, "errors": "replace"}
    _write(folder / "vocab.json", {name: index for index, name in enumerate(_vocabulary())})
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(_merges()) + "\n")
    _write(folder / "special_tokens_map.json", tokens)
    _write(folder / "tokenizer_config.json", {"tokenizer_class": "CLIPTokenizer", **tokens, **numbers})
    return folder


def _merges() -> list[str]:
    """Pairs that become one token, in order: each word from its left end on."""
    found: list[str] = []
    for word in WORDS:
        left = word[0]
        for index, letter in enumerate(word[1:], start=2):
            right = letter + ("</w>" if index == len(word) else "")
            found.append(f"{left} {right}")
            left += right
    return list(dict.fromkeys(found))


def _vocabulary() -> list[str]:
    """A printable character per byte, as GPT-2's tokenizer names them, inside and at the end of words, and merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [*map(chr, printable), *(chr(256 + index) for index in range(256 - len(printable)))]
    merged = [pair.replace(" ", "") for pair in _merges()]
    return list(dict.fromkeys([*letters, *(f"{letter}</w>" for letter in letters), *merged, START, END]))


def _text_config() -> Any:
    from transformers import CLIPTextConfig

    num = len(_vocabulary())
    return CLIPTextConfig(
        vocab_size=num,
        hidden_size=WIDTH,
        projection_dim=WIDTH,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=LENGTH,
        hidden_act="quick_gelu",
        bos_token_id=num - 2,
        eos_token_id=num - 1,
        pad_token_id=num - 1,
    )


def _shaken(module: torch.nn.Module) -> torch.nn.Module:
    """The module in eval mode, no weight of it zero."""
    for parameter in module.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape)
    return module.eval()


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False))
