"""Adapters over one frozen network: it stays what it was, and each of them is its own, in every pass."""

import pytest
import torch

from dmd.models import adapters, lora
from dmd.models.networks import build

UNET = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1, 2], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3, "dropout": 0.5}
DIFFUSERS = {"block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
DIFFUSERS |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "attention_head_dim": 4}
DIFFUSERS |= {"up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "in_channels": 1, "out_channels": 1}
NETWORKS = [UNET, {"kind": "unet2d", "config": DIFFUSERS}]
TEXT = {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}
TEXT |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "attention_head_dim": 4}
TEXT |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "in_channels": 4, "cross_attention_dim": 12}
SD3 = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "caption_projection_dim": 8,
}
SD3 |= {"attention_head_dim": 4, "num_attention_heads": 2, "joint_attention_dim": 12, "pooled_projection_dim": 12}
SD3 |= {"pos_embed_max_size": 8}
NETWORKS += [{"kind": "unet2d-condition", "config": TEXT}, {"kind": "sd3", "config": SD3}]
NETWORKS += [{"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}]
ADAPTER = {"rank": 2, "alpha": 3.0, "targets": None}
NAMES = ("generator", "fake")
UNETS = pytest.mark.parametrize("architecture", NETWORKS[:4], ids=[each["kind"] for each in NETWORKS[:4]])


@pytest.fixture(params=NETWORKS, ids=[each["kind"] for each in NETWORKS])
def architecture(request):
    return request.param


def network(architecture: dict) -> torch.nn.Module:
    """Random weights everywhere, the layers that start at zero too."""
    made, random = build(architecture).eval(), torch.Generator().manual_seed(0)
    for parameter in made.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return made


def inputs(made: torch.nn.Module) -> tuple[torch.Tensor, ...]:
    image = torch.randn(2, made.channels, made.resolution, made.resolution)
    if hasattr(made, "text_width"):
        return image, torch.rand(2), torch.randn(2, 5, made.text_width)
    return image, torch.rand(2), torch.tensor([0, 1]) if made.num_classes else torch.full((2,), -1)


def shaken(part: adapters.Adapted, seed: int) -> adapters.Adapted:
    random = torch.Generator().manual_seed(seed)
    for parameter in part.parameters():
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=random)
    return part


def carried(architecture: dict, **changed) -> list[adapters.Adapted]:
    return adapters.add_adapters(network(architecture), ADAPTER | changed, NAMES, seed=0)


def test_new_adapters_are_the_network_bit_for_bit(architecture):
    made = network(architecture).requires_grad_(False)  # as files are loaded; gradients choose other kernels
    given = inputs(made)
    expected = made(*given)
    state = {name: value.clone() for name, value in made.state_dict().items()}
    parts = adapters.add_adapters(made, ADAPTER, NAMES, seed=0)
    assert all(torch.equal(part(*given), expected) for part in parts)
    found = lora.base_weights(made.state_dict())
    assert found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_layers_downwards_are_drawn_from_the_seed_alone(architecture):
    torch.rand(3)
    states = [carried(architecture)[1].state_dict(), carried(architecture)[1].state_dict()]
    other = adapters.add_adapters(network(architecture), ADAPTER, NAMES, seed=1)[1].state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert all(torch.equal(states[0][name], other[name]) == ("lora_B" in name) for name in other)


def test_merged_weights_compute_what_network_and_adapter_do(architecture):
    _, generator, fake = carried(architecture)
    for part in (shaken(generator, 1), shaken(fake, 2)):
        weights = {name.removeprefix("adapter."): value for name, value in part.state_dict().items()}
        plain = network(architecture)
        begun = {name: value.clone() for name, value in plain.state_dict().items()}
        plain.load_state_dict(lora.merge_adapter(begun, weights, scale=1.5))
        given = inputs(plain)
        expected = part(*given)
        # W x + B A x and (W + B A) x round differently in each layer, and otherwise on each kind of processor
        torch.testing.assert_close(plain(*given), expected, rtol=1e-4, atol=1e-5)
        plain.load_state_dict(begun)
        assert (plain(*given) - expected).abs().max() > 1e-3  # else nothing was added


def test_training_an_adapter_leaves_network_and_other_adapter_alone(architecture):
    teacher, generator, fake = carried(architecture)
    shaken(fake, 2)
    given = inputs(generator)
    before = [part(*given) for part in (teacher, generator, fake)]
    optimiser = torch.optim.AdamW(generator.parameters(), lr=0.1)
    for _ in range(2):  # the first step moves B alone
        generator(*given).square().sum().backward()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.equal(teacher(*given), before[0]) and torch.equal(fake(*given), before[2])
    assert not torch.equal(generator(*given), before[1])
    assert all(parameter.grad is None for part in (teacher, fake) for parameter in part.parameters())
    assert not any(parameter.requires_grad for parameter in teacher.frozen)


def gradients(parts: list[adapters.Adapted], given: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Of generator and fake, each with passes of the others between its forward and its backward pass."""
    teacher, generator, fake = parts
    for part in parts:
        part.zero_grad()
    generated = generator(*given)
    with torch.no_grad():
        teacher(*given), fake(*given)
    denoised = fake(*given)
    teacher(*given)
    denoised.square().sum().backward()
    generated.square().sum().backward()
    return [parameter.grad.clone() for part in (generator, fake) for parameter in part.parameters()]


@UNETS
def test_checkpointed_blocks_use_the_adapter_of_their_first_pass(architecture):
    parts = carried(architecture)
    shaken(parts[1], 1), shaken(parts[2], 2)
    given = inputs(parts[0].carrier)
    plain = gradients(parts, given)
    parts[0].carrier.checkpointing = True
    assert all(torch.equal(mine, expected) for mine, expected in zip(gradients(parts, given), plain, strict=True))
    assert sum(bool(expected.any()) for expected in plain) > 0.9 * len(plain)  # the last block of sd3 has an idle query
    parts[0].carrier.contexts = None  # without them the last adapter that was chosen would be recomputed
    try:
        wrong = gradients(parts, given)
    except RuntimeError:  # torch notices other tensors than those of the first pass
        return
    assert not all(torch.equal(mine, expected) for mine, expected in zip(wrong, plain, strict=True))


def test_an_adapter_is_as_large_as_foretold(architecture):
    _, generator, _ = carried(architecture, rank=3)
    with torch.device("meta"):
        size = lora.size(build(architecture), ADAPTER | {"rank": 3})
    assert sum(parameter.numel() for parameter in generator.parameters()) == size.parameters
    assert len(list(generator.parameters())) == 2 * size.layers > 0


def test_targets_are_last_parts_of_names():
    _, generator, _ = carried(UNET, targets=["qkv", "enc.4x4_conv"])
    layers = {name.rpartition(".lora_")[0] for name in generator.state_dict()}
    assert "adapter.enc.4x4_conv" in layers
    assert len(layers) > 2 and all(name.endswith((".qkv", ".4x4_conv")) for name in layers)


def test_a_target_that_is_no_layer_is_named():
    with pytest.raises(ValueError, match="no Linear or Conv2d is called 'to_q'; last parts are .*'qkv'"):
        carried(UNET, targets=["qkv", "to_q"])


def test_an_adapter_of_another_network_is_refused():
    _, generator, _ = carried(UNET)
    weights = {name.removeprefix("adapter."): value for name, value in generator.state_dict().items()}
    state = network(UNET).state_dict()
    with pytest.raises(ValueError, match="adapter of map_layer0: .* but the layer is missing"):
        lora.merge_adapter({name: value for name, value in state.items() if "map" not in name}, weights, scale=1.0)
    state["map_layer0.weight"] = state["map_layer0.weight"][:, 1:]
    with pytest.raises(ValueError, match=r"adapter of map_layer0: \(32, 2\) x \(2, 8\), but .* \(32, 7\)"):
        lora.merge_adapter(state, weights, scale=1.0)
