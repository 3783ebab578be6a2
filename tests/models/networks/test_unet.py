"""U-Nets against the released layout.

tests/edm_vectors holds tiny teachers with random weights in released files, and what the reference computes from them.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from dmd.importers import edm
from dmd.models.networks import build
from dmd.models.networks.block import ADM, Block
from dmd.models.networks.published_architectures import CIFAR10, IMAGENET64

VECTORS = Path(__file__).parents[2] / "edm_vectors"
NAMES = ["adm-cond", "ddpmpp-cond", "ddpmpp-uncond", "ncsnpp-uncond"]
SMALL: dict[str, Any] = {
    "kind": "ddpmpp",
    "resolution": 8,
    "channels": 1,
    "width": 32,
    "multipliers": [1, 2],
    "blocks": 1,
    "attention": [4],
    "num_classes": 10,
}


def load(name: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A tiny teacher in evaluation mode, and its inputs and expected outputs."""
    weights, architecture = stored(name)
    network = build(architecture)
    network.load_state_dict(weights)
    expected = load_file(VECTORS / f"{name}.expected.safetensors")
    unlabelled = torch.full((len(expected["x"]),), -1)
    return network.eval(), expected | {"label": expected["label"].argmax(1) if "label" in expected else unlabelled}


def stored(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights and architecture of a tiny teacher."""
    weights, facts = edm.load(VECTORS / f"{name}.pkl")
    return {key.removeprefix("ema."): value for key, value in weights.items()}, facts["network"]


def randomised(architecture: dict[str, Any]) -> nn.Module:
    """A network without zero layers, which would hide most of it."""
    torch.manual_seed(0)
    network = build(architecture)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network.eval()


def batch(num: int, network: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    extents = (num, network.channels, network.resolution, network.resolution)
    image = torch.randn(extents, generator=generator)
    return image, torch.randn(num, generator=generator) * 0.5, torch.arange(num) % max(network.num_classes, 1)


@pytest.mark.parametrize(
    ("architecture", "count"),
    [
        (IMAGENET64, 295_899_267),
        (CIFAR10 | {"augment": 9}, 55_735_299),
        (CIFAR10 | {"augment": 9, "kind": "ncsnpp"}, 56_400_643),
    ],
)
def test_released_size_has_the_released_number_of_parameters(architecture: dict[str, Any], count: int) -> None:
    with torch.device("meta"):
        network = build(architecture)
    assert sum(parameter.numel() for parameter in network.parameters()) == count


@pytest.mark.parametrize("name", NAMES)
def test_network_built_on_meta_works_once_weights_are_assigned(name: str) -> None:
    weights, architecture = stored(name)
    with torch.device("meta"):
        network = build(architecture)
    network.load_state_dict(weights, assign=True)
    reference, expected = load(name)
    inputs = expected["x"], expected["sigma"].log() / 4, expected["label"]
    with torch.no_grad():
        assert torch.equal(network.eval()(*inputs), reference(*inputs))


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_new_network_returns_zeros_and_has_a_gradient(kind: str) -> None:
    torch.manual_seed(0)
    network = build(SMALL | {"kind": kind})
    image = network(*batch(2, network))
    assert image.shape == (2, 1, 8, 8)
    assert torch.equal(image, torch.zeros_like(image))
    (image - 1).square().mean().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in network.parameters())


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_every_parameter_gets_a_gradient(kind: str) -> None:
    network = randomised(SMALL | {"kind": kind})
    network(*batch(2, network)).square().mean().backward()
    assert [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_row_does_not_depend_on_the_other_rows(kind: str) -> None:
    network = randomised(SMALL | {"kind": kind})
    image, noise_condition, label = batch(4, network)
    with torch.no_grad():
        together = network(image, noise_condition, label)
        alone = network(image[2:3], noise_condition[2:3], label[2:3])
        image[:2], noise_condition[:2], label[:2] = 3.0, -1.0, 7
        disturbed = network(image, noise_condition, label)
    assert torch.equal(together[2:], disturbed[2:])
    assert not torch.allclose(together[:2], disturbed[:2])
    torch.testing.assert_close(alone, together[2:3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_label_matters_only_to_a_conditional_network(kind: str) -> None:
    for num_classes, matters in ((10, True), (0, False)):
        network = randomised(SMALL | {"kind": kind, "num_classes": num_classes})
        image, noise_condition, _ = batch(2, network)
        with torch.no_grad():
            outputs = [network(image, noise_condition, torch.full((2,), label)) for label in (-1, 0, 1)]
        assert torch.equal(outputs[0], outputs[1]) is not matters
        assert torch.equal(outputs[1], outputs[2]) is not matters


@pytest.mark.parametrize("kind", ["adm", "ddpmpp"])
def test_label_minus_one_adds_no_class(kind: str) -> None:
    network = randomised(SMALL | {"kind": kind})
    image, noise_condition, label = batch(3, network)
    with torch.no_grad():
        unlabelled = network(image, noise_condition, torch.full_like(label, -1))
        network.map_label.weight.zero_()
        assert torch.equal(unlabelled, network(image, noise_condition, label))


@pytest.mark.parametrize("label", [-2, 10])
def test_label_outside_the_classes_is_an_error(label: int) -> None:
    network = build(SMALL)
    image, noise_condition, _ = batch(2, network)
    with pytest.raises(ValueError, match=rf"label: .*{label}.* is outside -1 \.\. 9"):
        network(image, noise_condition, torch.tensor([0, label]))


def test_augment_layer_holds_weights_and_computes_nothing() -> None:
    plain, augmented = randomised(SMALL), randomised(SMALL | {"augment": 9})
    names = set(augmented.state_dict()) - set(plain.state_dict())
    assert names == {"map_augment.weight"}
    augmented.load_state_dict(plain.state_dict() | {"map_augment.weight": torch.ones(32, 9)})
    with torch.no_grad():
        assert torch.equal(plain(*batch(2, plain)), augmented(*batch(2, plain)))
    assert [n for n, p in augmented.named_parameters() if not p.requires_grad] == ["map_augment.weight"]


def test_attention_orders_channels_by_head_then_channel_then_query_key_value() -> None:
    torch.manual_seed(0)
    block = Block(128, 128, 8, family=ADM, attention=True).eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.1)
    inputs: dict[str, Tensor] = {}
    block.qkv.register_forward_hook(lambda layer, given, made: inputs.update(qkv=made, trunk=given[0]))
    block.proj.register_forward_hook(lambda layer, given, made: inputs.update(mixed=given[0]))
    with torch.no_grad():
        block(torch.randn(2, 128, 4, 4), torch.randn(2, 8))
    assert block.heads == 2
    for head in range(2):
        first = head * 64 * 3
        query, key, value = (inputs["qkv"][:, first + part : first + 192 : 3].flatten(2) for part in range(3))
        weight = (torch.einsum("bcq,bck->bqk", query, key) / 8.0).softmax(-1)
        mixed = torch.einsum("bqk,bck->bcq", weight, value).view(2, 64, 4, 4)
        torch.testing.assert_close(inputs["mixed"][:, head * 64 : head * 64 + 64], mixed)


def test_embedding_stays_float32_while_the_body_runs_in_half_precision() -> None:
    network = randomised(SMALL)
    seen: dict[str, torch.dtype] = {}
    network.map_layer1.register_forward_hook(lambda layer, given, made: seen.update(embedding=made.dtype))
    conv = network.enc["8x8_block0"].conv0
    conv.register_forward_hook(lambda layer, given, made: seen.update(body=made.dtype))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        network(*batch(2, network))
    assert seen == {"embedding": torch.float32, "body": torch.bfloat16}


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_network_cast_to_half_precision_computes_in_it(kind: str) -> None:
    network = randomised(SMALL | {"kind": kind})
    image, noise_condition, label = batch(3, network)
    with torch.no_grad():
        expected = network(image, noise_condition, label)
        found = network.to(torch.bfloat16)(image.bfloat16(), noise_condition, label)
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).norm() < 0.1 * expected.norm()


def test_dropout_acts_only_while_training() -> None:
    network = randomised(SMALL | {"dropout": 0.5})
    inputs = batch(2, network)
    with torch.no_grad():
        assert torch.equal(network(*inputs), network(*inputs))
        network.train()
        assert not torch.equal(network(*inputs), network(*inputs))


def test_state_holds_no_constants() -> None:
    for name in NAMES:
        network, _ = load(name)
        saved = {key for key in network.state_dict() if key not in dict(network.named_parameters())}
        assert saved == ({"map_noise.freqs"} if name.startswith("ncsnpp") else set())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "transformer"}, "'transformer' is none of adm, ddpmpp, ncsnpp, mlp"),
        ({"kind": None}, "None is none of"),
        ({"depth": 3}, "network ddpmpp: unknown depth; known are resolution, channels"),
        ({"kind": "adm", "width": 16, "attention": [8]}, "attention: 16 channels make no whole heads of 64"),
        ({"kind": "adm", "width": 112, "multipliers": [2, 2]}, "attention: 224 channels make no whole heads"),
        ({"resolution": 9}, "resolution: 9 is not divisible by 2"),
        ({"attention": [16]}, r"attention: \[16\] are no levels; the levels are \[8, 4\]"),
        ({"width": 30}, "width: 30 is no multiple of 4"),
        ({"width": 132}, "width: 132 channels cannot be normalised in 32 groups"),
        ({"width": 32.0}, "width: 32.0 is no integer from 1 up"),
        ({"multipliers": 2}, "multipliers: 2 is no list"),
        ({"multipliers": []}, "multipliers: at least one level"),
        ({"multipliers": [1, 0]}, "multipliers: 0 is no integer"),
        ({"blocks": 0}, "blocks: 0 is no integer"),
        ({"num_classes": -1}, "num_classes: -1 is no integer from 0 up"),
        ({"dropout": "0.1"}, "dropout: '0.1' is not in"),
        ({"dropout": 1.0}, r"dropout: 1.0 is not in \[0, 1\)"),
    ],
)
def test_bad_architecture_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SMALL | change)


def test_missing_number_is_named() -> None:
    with pytest.raises(ValueError, match="network ddpmpp: missing width"):
        build({key: value for key, value in SMALL.items() if key != "width"})


def test_image_of_another_shape_is_an_error() -> None:
    network = build(SMALL)
    with pytest.raises(ValueError, match=r"\(2, 1, 16, 16\) is not \(B, 1, 8, 8\)"):
        network(torch.zeros(2, 1, 16, 16), torch.zeros(2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("kind", ["adm", "ddpmpp", "ncsnpp"])
def test_patch_network_is_the_plain_one_on_unshuffled_pixels(kind: str) -> None:
    patched = randomised(SMALL | {"kind": kind, "resolution": 16, "channels": 2, "patch": 2})
    plain = build(SMALL | {"kind": kind, "channels": 8}).eval()
    plain.load_state_dict(patched.state_dict())
    image, condition, label = batch(3, patched)
    unshuffled = functional.pixel_unshuffle(image, 2)
    with torch.no_grad():
        expected = functional.pixel_shuffle(plain(unshuffled, condition, label), 2)
        assert torch.equal(patched(image, condition, label), expected)
        features = patched.bottleneck(image, condition, label)
        assert torch.equal(features, plain.bottleneck(unshuffled, condition, label))
    assert features.shape[1:] == (patched.bottleneck_shape[0], *[patched.bottleneck_shape[1]] * 2) == (64, 4, 4)


def test_patch_of_one_pixel_changes_nothing() -> None:
    plain, patched = randomised(SMALL), randomised(SMALL | {"patch": 1})
    with torch.no_grad():
        assert torch.equal(plain(*batch(2, plain)), patched(*batch(2, patched)))


@pytest.mark.parametrize(
    ("sizes", "message"),
    [({"patch": 3}, "8 is not divisible by patch 3"), ({"patch": 8}, "8 / patch 8 is not divisible by 2")],
)
def test_patches_that_do_not_fit_are_refused(sizes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(SMALL | {"attention": []} | sizes)
