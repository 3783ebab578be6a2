"""Released networks: EDM (Karras et al. 2022) and Stable Diffusion 1.5 for `build`; its autoencoder, text encoder."""

from typing import Any

IMAGENET64: dict[str, Any] = {  # ADM, 295,899,267 parameters
    "kind": "adm",
    "resolution": 64,
    "channels": 3,
    "width": 192,
    "multipliers": [1, 2, 3, 4],
    "blocks": 3,
    "attention": [32, 16, 8],
    "num_classes": 1000,
}
CIFAR10: dict[
    str, Any
] = {  # DDPM++, class-conditional; without the `augment: 9` of the released file, which has no effect here
    "kind": "ddpmpp",
    "resolution": 32,
    "channels": 3,
    "width": 128,
    "multipliers": [2, 2, 2],
    "blocks": 4,
    "attention": [16],
    "num_classes": 10,
}
SD15: dict[str, Any] = {  # Stable Diffusion 1.5, 859,520,964 parameters
    "kind": "unet2d-condition",
    "config": {
        "sample_size": 64,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": [320, 640, 1280, 1280],
        "layers_per_block": 2,
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
        "attention_head_dim": 8,
        "cross_attention_dim": 768,
    },
}
SD15_AUTOENCODER: dict[str, Any] = {  # 83,653,863 parameters
    "kind": "full",
    "config": {
        "block_out_channels": [128, 256, 512, 512],
        "down_block_types": ["DownEncoderBlock2D"] * 4,
        "up_block_types": ["UpDecoderBlock2D"] * 4,
        "layers_per_block": 2,
        "latent_channels": 4,
        "sample_size": 512,
        "scaling_factor": 0.18215,
    },
}
SD15_TEXT: dict[str, Any] = {  # the text encoder of CLIP ViT-L/14, 123,060,480 parameters; arguments of CLIPTextConfig
    "vocab_size": 49408,
    "hidden_size": 768,
    "projection_dim": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "hidden_act": "quick_gelu",
}
