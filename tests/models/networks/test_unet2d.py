"""diffusers' network behind our interface."""

import pytest
import torch

from dmd.models.networks import build

CONFIG = {"sample_size": 8, "block_out_channels": [16, 32], "layers_per_block": 1, "norm_num_groups": 8}
CONFIG |= {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}


def test_checkpointing_keeps_output_and_gradient():
    torch.manual_seed(0)
    network = build({"kind": "unet2d", "config": CONFIG})
    image, time, label = torch.randn(2, 3, 8, 8), torch.tensor([3.0, 900.5]), torch.full((2,), -1)
    found = []
    for checkpointing in (False, True):
        network.checkpointing = checkpointing
        assert network.checkpointing is checkpointing
        network.zero_grad()
        out = network.train()(image, time, label)
        out.square().mean().backward()
        found.append([out.detach(), *(parameter.grad.clone() for parameter in network.parameters())])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*found, strict=True))


def test_network_knows_its_shape_and_refuses_another():
    network = build({"kind": "unet2d", "config": CONFIG | {"num_class_embeds": 5, "_note": "ignored"}})
    assert (network.resolution, network.channels, network.num_classes) == (8, 3, 5)
    with pytest.raises(ValueError, match=r"image: shape \(1, 1, 8, 8\) is not \(B, 3, 8, 8\)"):
        network(torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    with pytest.raises(ValueError, match="network unet2d: unknown width; known are config"):
        build({"kind": "unet2d", "config": CONFIG, "width": 3})
