"""diffusers' text-conditional networks behind our interface: the same function, checkpointing, refusals."""

import pytest
import torch

from dmd.models.autoencoder import Codec
from dmd.models.networks import build
from dmd.models.networks.published_architectures import SD15, SD15_AUTOENCODER, SD15_TEXT
from tests.stable_diffusion_files import UNET

SD3 = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "pos_embed_max_size": 8}
SD3 |= {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
CONFIGS = {
    "unet2d-condition": {**UNET, "sample_size": 8},
    "sd3": SD3 | {"joint_attention_dim": 24, "pooled_projection_dim": 10},
    "sd3-wide": SD3 | {"joint_attention_dim": 10, "pooled_projection_dim": 24},
}


def made(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    network = build({"kind": name.removesuffix("-wide"), "config": CONFIGS[name]})
    for parameter in network.parameters():  # some are zero at first
        parameter.data += 0.1 * torch.randn(parameter.shape)
    return network


def given(network: torch.nn.Module) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    states = torch.randn(2, 7, network.text_width, generator=generator)
    return torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([3.0, 900.5]), states


@torch.no_grad()
def test_network_is_that_of_diffusers():
    network = made("unet2d-condition").eval()
    image, time, states = given(network)
    assert torch.equal(network(image, time, states), network.unet(image, time, states).sample)
    for name in ("sd3", "sd3-wide"):
        network = made(name).eval()
        image, time, label = given(network)
        joint, pooled = CONFIGS[name]["joint_attention_dim"], CONFIGS[name]["pooled_projection_dim"]
        numbers = {"encoder_hidden_states": label[:, :6, :joint], "pooled_projections": label[:, 6, :pooled]}
        expected = network.transformer(hidden_states=image, timestep=time, **numbers).sample
        assert torch.equal(network(image, time, label), expected)
        label[:, 6, pooled:] = 99.0  # filling, which nothing sees
        assert torch.equal(network(image, time, label), expected)
        label[:, 6, 0] += 1.0
        assert not torch.allclose(network(image, time, label), expected, atol=1e-3)


def test_released_networks_have_their_known_numbers_of_weights():
    with torch.device("meta"):
        parts = [build(SD15), Codec(**SD15_AUTOENCODER)]
        from transformers import CLIPTextConfig, CLIPTextModel

        parts.append(CLIPTextModel(CLIPTextConfig(**SD15_TEXT)))
    assert [sum(weight.numel() for weight in part.parameters()) for part in parts] == [859520964, 83653863, 123060480]


@pytest.mark.parametrize("name", ["unet2d-condition", "sd3"])
def test_checkpointing_keeps_output_and_gradient(name):
    network, found = made(name), []
    image, time, states = given(network)
    for checkpointing in (False, True):
        network.checkpointing = checkpointing
        assert network.checkpointing is checkpointing
        network.zero_grad()
        out = network.train()(image, time, states)
        out.square().mean().backward()
        grads = [parameter.grad.clone() for parameter in network.parameters() if parameter.grad is not None]
        found.append([out.detach(), *grads])
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", CONFIGS)
def test_network_knows_its_shape_and_refuses_another(name):
    network = made(name)
    image, time, states = given(network)
    assert (network.resolution, network.channels, network.num_classes) == (8, 4, 0)
    with pytest.raises(ValueError, match=r"image: shape \(2, 4, 8, 4\) is not \(B, 4, 8, 8\)"):
        network(image[..., :4], time, states)
    for bad in (states[..., 1:], states[:, 0], torch.full((2,), -1)):
        with pytest.raises(ValueError, match=rf"is not text states \(B, L, {network.text_width}\)"):
            network(image, time, bad)


@pytest.mark.parametrize(
    ("kind", "changed", "message"),
    [
        ("unet2d-condition", {"in_channels": 9}, "4 output channels for 9 of the image"),
        ("unet2d-condition", {"sample_size": [8, 4]}, "is not the side of a square image"),
        ("unet2d-condition", {"addition_embed_type": "text_time"}, "addition_embed_type 'text_time' is not supported"),
        ("unet2d-condition", {"cross_attention_dim": [8, 16]}, "is no single width"),
        ("unet2d-condition", {"auto_map": "x.py"}, "network unet2d-condition: .*auto_map"),
        ("sd3", {"out_channels": 8}, "8 output channels for 4"),
        ("sd3", {"auto_map": "x.py"}, "network sd3: .*auto_map"),
    ],
)
def test_configuration_that_cannot_be_used_is_named(kind, changed, message):
    with pytest.raises(ValueError, match=message):
        build({"kind": kind, "config": CONFIGS[kind] | changed})
