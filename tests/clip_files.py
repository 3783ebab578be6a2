"""A tiny random CLIP in the files of transformers."""

import json
from pathlib import Path

import torch

from dmd import torchvision_operators
from tests.stable_diffusion_files import make_tokenizer

SIZE = 16  # pixels that its image tower sees


def make_clip(folder: Path, *, seed: int = 0) -> Path:
    """Writes CLIPModel, tokenizer and image processor; embeddings of images and captions vary. Returns the folder."""
    torchvision_operators.ensure()
    from transformers import CLIPConfig, CLIPModel

    make_tokenizer(folder)
    tokens = len(json.loads((folder / "vocab.json").read_text()))
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {**layers, "vocab_size": tokens, "bos_token_id": tokens - 2, "eos_token_id": tokens - 1}
    config = CLIPConfig(
        text_config=text, vision_config={**layers, "image_size": SIZE, "patch_size": 4}, projection_dim=24
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = CLIPModel(config).eval()
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn(parameter.shape)
    network.save_pretrained(folder, safe_serialization=True)
    processor = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}, "resample": 3}
    processor |= {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.25], "do_resize": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
