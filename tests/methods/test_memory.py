"""The memory plan against bytes that real passes keep alive."""

import gc
import logging

import pytest
import torch

from dmd.diffusion.compute import Compute, prepare
from dmd.diffusion.denoiser import Denoiser
from dmd.methods.counting import Peak, weight_bytes
from dmd.methods.memory import Activations, Line, activations, distill_parts, lpips_bytes
from dmd.methods.regression import l2_distance
from dmd.methods.share import BUCKET, Share
from dmd.networks import build
from dmd.networks.adapters import carried, with_network
from dmd.networks.lora import size
from dmd.stages import memory

UNET = {"kind": "ddpmpp", "resolution": 16, "channels": 3, "width": 32, "multipliers": [1, 2], "blocks": 2}
UNET |= {"attention": [8], "num_classes": 4}
MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 16, "layers": 2, "num_classes": 0}
NUM = 6
SHAPE = (3, 16, 16)


def denoiser(**compute) -> Denoiser:
    torch.manual_seed(0)
    return prepare(Denoiser(build(UNET), sigma_data=0.5).eval(), Compute(**compute))


def held(found: Denoiser) -> tuple[int, int]:
    """Bytes of a pass: alive after it, and at most until the end of a backward pass that adds to gradients."""
    given = torch.randn(NUM, *SHAPE), torch.ones(NUM), torch.zeros(NUM, dtype=torch.int64)
    found(*given).sum().backward()
    gc.collect()
    with Peak() as peak:
        output = found(*given)
        gc.collect()
        alive = peak.now
        output.square().mean().backward()
    return alive, peak.most


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_plan_of_a_pass_is_what_a_real_one_holds(dtype, checkpointing):
    found = denoiser(dtype=dtype, gradient_checkpointing=checkpointing)
    line = activations(found, SHAPE)
    line = line.checkpointed if checkpointing else line.kept
    alive, most = held(found)
    assert checkpointing or alive == pytest.approx(line.of(NUM), rel=0.1)
    assert 0.8 < most / line.of(NUM) < 1.1, (alive, most, line)


def test_what_saves_memory_saves_it():
    exact, half = (activations(denoiser(dtype=dtype), SHAPE) for dtype in ("float32", "bfloat16"))
    assert 0.45 < half.kept.each / exact.kept.each < 0.55
    assert exact.checkpointed.each < 0.4 * exact.kept.each and half.checkpointed.each < 0.5 * half.kept.each
    assert exact.working.each < 0.2 * exact.kept.each
    assert exact.kept.once == 0 < half.kept.once < weight_bytes(denoiser())


def test_counting_leaves_the_denoiser_as_it_was():
    found = denoiser(gradient_checkpointing=True).requires_grad_(False)
    activations(found, SHAPE)
    assert found.network.checkpointing and not any(parameter.requires_grad for parameter in found.parameters())
    assert all(parameter.grad is None for parameter in found.parameters())


def test_adapters_count_alone_and_their_network_once():
    whole = denoiser().requires_grad_(False)
    weights, adapter = weight_bytes(whole), {"rank": 4, "alpha": None, "targets": None}
    trained = 4 * size(whole.network, adapter).parameters
    views = carried(whole.network, adapter, ("generator", "fake"), seed=0)
    found = [weight_bytes(with_network(whole, view)) for view in views]
    assert found == [weights, trained, trained] and trained < weights


def test_plan_of_a_pass_with_an_adapter_is_what_a_real_one_holds():
    views = carried(denoiser().network, {"rank": 4, "alpha": None, "targets": None}, ("generator",), seed=0)
    found = with_network(denoiser(), views[1])
    line = activations(found, SHAPE).kept
    alive, most = held(found)
    assert alive == pytest.approx(line.of(NUM), rel=0.1) and 0.8 < most / line.of(NUM) < 1.1


def test_parts_with_moments_of_8_bits_or_shared_are_smaller(distill_numbers):
    found = Activations(kept=Line(10, 1), checkpointed=Line(2, 1), working=Line(1, 0))
    numbers, sizes = distill_numbers | {"regression_weight": 0.0}, {"teacher": 4096, "trained": 8192}
    numbers["optimiser"] = numbers["optimiser"] | {"kind": "8bit"}
    assert list(distill_parts(numbers, Share(), found=found, lpips=0, **sizes).values())[1] == 8320  # a byte and scales
    numbers |= {"compute": {"shard_parameters": True}}
    parts = list(distill_parts(numbers, Share(0, 2), found=found, lpips=0, **sizes).values())
    assert parts[:3] == [14336, 4160, 4096] and len(parts) == 4  # half of all; no exchange besides


def test_parts_of_a_distillation_add_up(distill_numbers):
    found = Activations(kept=Line(10, 1), checkpointed=Line(2, 1), working=Line(1, 0))
    numbers = distill_numbers | {"matching_batch_size": 30, "regression_batch_size": 24}

    def parts(share=Share(micro_batch_size=8), **changed) -> dict[str, int]:  # noqa: B008
        return distill_parts(numbers | changed, share, teacher=1000, trained=2000, found=found, lpips=5)

    assert list(parts().values()) == [7000, 8000, 2000, 89]
    assert list(parts(shared_noise=True).values()) == [7000, 8000, 4000, 162]
    assert list(parts(compute={"gradient_checkpointing": True}).values())[-1] == 25
    assert list(parts(Share()).values())[-1] == 331
    assert list(parts(Share(0, 4)).values())[-2:] == [4 * BUCKET, 89]
    assert list(parts(matching_batch_size=4).values())[-1] == 86  # regression of 8 images and LPIPS
    assert lpips_bytes(l2_distance, SHAPE, 4) == 0


def test_an_update_that_does_not_fit_says_what_helps_and_what_is_kept(tmp_path):
    for names, kept in (((), "no checkpoint was written yet"), (("00000003", "00000006"), "00000006.safetensors: ")):
        for name in names:
            (tmp_path / f"{name}.safetensors").touch()
        with (
            pytest.raises(ValueError, match=rf"update 7: Tried 2 GiB.; .*{kept}.*micro_batch_size"),
            memory.explained(7, tmp_path),
        ):
            raise torch.OutOfMemoryError("Tried 2 GiB.\nMore")


def test_a_plan_that_does_not_fit_is_refused_with_advice(caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    memory.refuse(3 * memory.GIB, 3 * memory.GIB, "take less")
    memory.refuse(4 * memory.GIB, memory.GIB, "take less", exact=False)
    assert "warning: perhaps 4 GiB more of GPU memory are needed, 1 GiB are free: take less" in caplog.text
    with pytest.raises(ValueError, match="at least 3 GiB more of GPU memory are needed, 2.5 GiB are free: take less"):
        memory.refuse(3 * memory.GIB, int(2.5 * memory.GIB), "take less")


@pytest.mark.parametrize(
    ("compute", "network", "exact"),
    [
        ({}, UNET, True),
        ({"gradient_checkpointing": True}, UNET, True),
        ({"compile": True}, UNET, False),
        ({"gradient_checkpointing": True}, MLP, False),  # stands for any network without our blocks
    ],
)
def test_only_a_plan_that_was_counted_exactly_refuses(monkeypatch, distill_numbers, compute, network, exact):
    given, announced = Denoiser(build(network), sigma_data=0.5).eval(), []
    monkeypatch.setattr(memory, "announce", lambda *plan, **how: announced.append(how["exact"]))
    shape = (network["channels"], network["resolution"], network["resolution"])
    memory.announce_distillation(distill_numbers | {"compute": compute}, Share(), (given, given), [l2_distance], shape)
    assert announced == [exact]
