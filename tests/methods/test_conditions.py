"""DMD does not care what network, condition and time its denoisers have: latents, text, guidance, flow matching."""

import copy
from typing import Any

import pytest
import torch

from dmd.methods.base import Facts, Rows
from dmd.methods.parts.distances import l2_distance
from dmd.methods.parts.matching import matching_gradient
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.networks import build
from dmd.train.randomness import update_generator
from tests.stable_diffusion_files import UNET
from tests.trainings import FixedRows, Updates, changed

TRANSFORMER = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
TRANSFORMER |= {"attention_head_dim": 8, "num_attention_heads": 2, "caption_projection_dim": 16}
TRANSFORMER |= {"joint_attention_dim": 32, "pooled_projection_dim": 10, "pos_embed_max_size": 8}
CLASSES = {"sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (16, 32), "layers_per_block": 1}
CLASSES |= {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
CLASSES |= {"norm_num_groups": 8, "num_class_embeds": 3}
NETWORKS = {"sd3": TRANSFORMER, "unet2d-condition": UNET | {"sample_size": 8}, "unet2d": CLASSES}
TABLE = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000).double().square(), 0).tolist()
DISCRETE = {"kind": "discrete", "alphas_cumprod": TABLE}
CASES: dict[str, tuple[str, dict[str, Any], float]] = {
    "flow transformer of text": ("sd3", {"kind": "flow"}, 1.0),
    "epsilon of text": ("unet2d-condition", {**DISCRETE, "prediction": "epsilon"}, 1.0),
    "guided epsilon of text": ("unet2d-condition", {**DISCRETE, "prediction": "epsilon"}, 3.0),
    "guided v of text": ("unet2d-condition", {**DISCRETE, "prediction": "v"}, 8.0),
    "v of classes": ("unet2d", {**DISCRETE, "prediction": "v"}, 1.0),
}
NUM = 3


def made(case: str, seed: int) -> Denoiser:
    """A random denoiser; none of its weights is zero."""
    kind, preconditioning, _ = CASES[case]
    torch.manual_seed(seed)
    denoiser = Denoiser(
        build({"kind": kind, "config": NETWORKS[kind]}), sigma_data=1.0, preconditioning=preconditioning
    )
    for parameter in denoiser.parameters():
        parameter.data += 0.02 * torch.randn(parameter.shape)
    return denoiser.eval()


def labels(case: str, num: int, generator: torch.Generator) -> torch.Tensor:
    if CASES[case][0] == "unet2d":
        return torch.randint(3, (num,), generator=generator)
    return torch.randn(num, 5, 32, generator=generator)


@pytest.fixture(params=CASES)
def given(request, distill_section) -> tuple[str, Updates, dict[str, Rows]]:
    """A distillation from the teacher's own weights, and its rows: a step of the student, one of the fake denoiser."""
    case, generator = request.param, torch.Generator().manual_seed(5)
    base = made(case, 0)
    teacher = with_guidance(base, torch.randn(5, 32, generator=generator), CASES[case][2])
    modules = {"teacher": teacher, "student": copy.deepcopy(base), "fake": made(case, 1)}
    keys = {"levels": {"kind": "teacher", "min_index": 20, "max_index": 980}, "sigma": None, "weighting": "eq8"}
    keys |= {"matching_batch_size": NUM, "regression_batch_size": NUM, "schedule": {"warmup": 0, "decay": "constant"}}
    section = changed(distill_section, **keys, phases=[{"updates": 1}, {"updates": 1, "train": "fake"}])
    noise, other, image = torch.randn(3, NUM, 4, 8, 8, generator=generator).unbind()
    rows = {"noise": {"noise": noise, "label": labels(case, NUM, generator)}}
    rows["pairs"] = {"noise": other, "label": labels(case, NUM, generator), "image": image}
    facts = Facts((4, 8, 8), 3 if CASES[case][0] == "unet2d" else 0, 1.0, sigma_max=float(base.table[1][-1]))
    return case, Updates(section, modules, facts, {name: FixedRows(each) for name, each in rows.items()}), rows


def test_student_starts_from_unit_noise_at_the_last_time_of_its_network(given):
    _, found, rows = given
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    found["student"].network.register_forward_pre_hook(lambda module, passed: seen.append(passed[:2]))
    image = found.trainer.method.generate(rows["noise"])
    (network_image, time) = seen[0]
    torch.testing.assert_close(network_image, rows["noise"]["noise"], rtol=1e-6, atol=0)
    torch.testing.assert_close(time, torch.full((NUM,), 999.0), rtol=1e-6, atol=0)
    assert image.shape == rows["noise"]["noise"].shape and bool(image.isfinite().all())


def test_student_gradient_is_that_of_the_closed_form(given):
    case, found, rows = given
    label, generate = rows["noise"]["label"], found.trainer.method.generate
    parameters = list(found["student"].parameters())
    image = generate(rows["noise"])
    random = update_generator("distill", 0, 0)
    index = torch.randint(20, 981, (NUM,), generator=random)
    alpha, sigma = (part.float()[index] for part in found["student"].table)
    noised = image.detach() + sigma[:, None, None, None] * torch.randn(image.shape, generator=random)
    with torch.no_grad():
        estimates = found["teacher"](noised, sigma, label), found["fake"](noised, sigma, label)
    gradient, _ = matching_gradient(image.detach(), *estimates, alpha=alpha, sigma=alpha * sigma)
    matching = torch.autograd.grad(image, parameters, gradient / image.numel(), allow_unused=True)
    loss = 0.25 * l2_distance(generate(rows["pairs"]), rows["pairs"]["image"])
    regression = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = sum((a + b).square().sum() for a, b in zip(matching, regression, strict=True) if a is not None).sqrt()
    before = [parameter.detach().clone() for parameter in parameters]
    row = found.update(0, slice(0, 1))
    assert row["gradient_norm/student"] == pytest.approx(float(norm), rel=2e-3) and float(norm) > 0
    moved = [not torch.equal(old, new) for old, new in zip(before, parameters, strict=True)]
    assert sum(moved) > 0.9 * len(moved), case


def test_fake_loss_is_the_plain_error_of_what_the_network_predicts(given):
    case, found, rows = given
    kind, label = CASES[case][1], rows["noise"]["label"]
    random = update_generator("distill", 0, 1)
    with torch.no_grad():
        image = found.trainer.method.generate(rows["noise"])
    index = torch.randint(0, 1000, (NUM,), generator=random)
    noise = torch.randn(image.shape, generator=random)
    alpha, sigma = (part.float()[index][:, None, None, None] for part in found["fake"].table)
    time = 1000 * alpha * sigma if kind["kind"] == "flow" else index.float()[:, None, None, None]
    predicted = found["fake"].network(alpha * (image + sigma * noise), time.flatten(), label)
    target = {"flow": noise - image, "epsilon": noise, "v": alpha * noise - alpha * sigma * image}
    expected = (predicted - target[kind.get("prediction", "flow")]).square().mean()
    before = [parameter.detach().clone() for parameter in found["fake"].parameters()]
    row = found.update(1)
    assert row["loss/fake"] == pytest.approx(expected.item(), rel=1e-3)
    moved = [not torch.equal(old, new) for old, new in zip(before, found["fake"].parameters(), strict=True)]
    assert sum(moved) > 0.9 * len(moved), case
