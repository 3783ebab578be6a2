"""How a denoiser computes: same function, gradients and names, in less memory or other precision."""

import copy

import pytest
import torch

from dmd.models.compute import Compute, compile_network, prepare, slow_dtype
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build

UNET = {"kind": "ddpmpp", "resolution": 8, "channels": 1, "width": 8, "multipliers": [1, 2], "blocks": 1}
UNET |= {"attention": [4], "num_classes": 3}
ADM = UNET | {"kind": "adm", "width": 64, "multipliers": [1]} | {"attention": [8]}
MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 8, "layers": 2, "num_classes": 0}


def denoiser(architecture: dict = UNET, **compute) -> Denoiser:
    torch.manual_seed(0)  # frequencies of NCSN++
    found = Denoiser(build(architecture), sigma_data=0.5)
    random = torch.Generator().manual_seed(0)
    for parameter in found.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=random)
    return prepare(found.eval(), Compute(**compute))


def passed(found: Denoiser, channels: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    """x0 of three noised images, and the gradient of all weights."""
    noise = torch.randn(3, channels, 8, 8, generator=torch.Generator().manual_seed(1))
    output = found(noise, torch.tensor([0.1, 1.0, 20.0]), torch.tensor([0, 2, -1]))
    output.square().sum().backward()
    return output.detach(), torch.cat([weight.grad.flatten() for weight in found.parameters()])


@pytest.mark.parametrize("architecture", [UNET, ADM, UNET | {"kind": "ncsnpp"}])
@pytest.mark.parametrize("compute", [{"gradient_checkpointing": True}, {"channels_last": True}])
def test_checkpointing_and_layout_change_neither_output_nor_gradient(architecture, compute):
    output, gradient = passed(denoiser(architecture))
    found = denoiser(architecture, **compute)
    mine, slope = passed(found)
    torch.testing.assert_close(mine, output, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(slope, gradient, rtol=1e-3, atol=1e-4 * float(gradient.abs().max()))
    assert found.network.checkpointing == ("gradient_checkpointing" in compute)
    if "channels_last" in compute:
        kernels = [
            weight for weight in found.parameters() if weight.ndim == 4 and weight.shape[1] > 1 < weight.shape[2]
        ]
        assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)


@pytest.mark.parametrize("architecture", [UNET, ADM])
def test_bfloat16_keeps_parameters_gradients_and_images_in_float32(architecture):
    found, seen = denoiser(architecture, dtype="bfloat16"), set()
    for name, layer in found.network.named_modules():
        if name.rpartition(".")[2] in ("conv0", "conv1", "norm0", "norm1", "map_layer0"):
            layer.register_forward_hook(lambda module, given, out, name=name: seen.add((name[-5:], out.dtype)))
    output, gradient = passed(denoiser(architecture))
    mine, slope = passed(found)
    assert mine.dtype == torch.float32 and {weight.grad.dtype for weight in found.parameters()} == {torch.float32}
    half = {(name, torch.bfloat16) for name in ("conv0", "conv1", "norm0", "norm1")}
    assert seen == half | {("ayer0", torch.float32)}  # map_layer0: the embedding stays exact
    assert 0 < (mine - output).norm() / output.norm() < 0.03
    assert torch.cosine_similarity(slope, gradient, dim=0) > 0.99


def test_a_network_to_be_compiled_keeps_its_names_and_copies_are_not():
    found = denoiser()
    names, copied = list(found.state_dict()), compile_network(found, Compute(compile=True))
    assert copied is found and list(found.state_dict()) == names
    assert found.network._compiled_call_impl is not None
    assert copy.deepcopy(found.network)._compiled_call_impl is None
    assert compile_network(denoiser(), Compute()).network._compiled_call_impl is None


def test_what_cannot_be_is_refused_and_an_exact_denoiser_stays():
    with pytest.raises(ValueError, match="'float16' is not one of"):
        denoiser(dtype="float16")
    with pytest.raises(ValueError, match="MLP has no blocks"):
        denoiser(MLP, gradient_checkpointing=True)
    exact = GaussianMixtureDenoiser(torch.zeros(1, 2, 1, 1), torch.ones(1), torch.ones(1))
    assert prepare(exact, Compute(dtype="bfloat16", compile=True)) is compile_network(exact, Compute(compile=True))


def test_a_cpu_without_instructions_for_bfloat16_is_told():
    lacks = torch.backends.cpu.get_cpu_capability() in ("DEFAULT", "AVX2")
    cpu = torch.device("cpu")
    assert slow_dtype(Compute(), cpu) is None and slow_dtype(Compute(dtype="bfloat16"), torch.device("cuda")) is None
    assert (slow_dtype(Compute(dtype="bfloat16"), cpu) is not None) == lacks
