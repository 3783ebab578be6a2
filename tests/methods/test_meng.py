"""Meng et al.: the guided target, levels, and the two stages with guidance as an input, from file to file."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import dmd
from dmd.config.methods.meng import Meng as Section
from dmd.config.methods.progressive import Progressive as ProgressiveSection
from dmd.methods.meng import Meng
from dmd.methods.parts.denoising_loss import denoising_loss, x0_weight
from dmd.methods.parts.drawn_guidance import guided_x0
from dmd.methods.progressive import Progressive, two_steps
from dmd.models.denoiser import Denoiser
from dmd.models.guidance import with_guidance
from dmd.models.loading import extended
from dmd.models.networks import build
from dmd.provenance import tensor_files
from dmd.stages import export_onnx, teacher
from dmd.train.log_columns import UpdateLog
from dmd.train.trainer import plan
from tests.image_shards import image_shards
from tests.methods.test_every_method import FACTS, METHODS, NETWORK, denoiser, random_guidance
from tests.methods.test_lcm import rows
from tests.trainings import NAMES, WHOLE, distil

KEYS: dict[str, Any] = {"name": "meng", "batch_size": 6, "phases": [{"updates": 2}]}
ROUNDS = {"name": "progressive", "batch_size": 4, "phases": [{"updates": 2, "steps": 2}, {"updates": 2, "steps": 1}]}


def first_loss(method: Meng | Progressive, **given: Any) -> float:
    """Of the rows of the first update, some of them given, on six images."""
    clock = plan(method.config)[0].clock(0)
    (step,) = type(method).steps(method.config, clock)  # type: ignore[arg-type]
    method.configure(clock.phase)
    drawn = method.draw(step, clock, torch.Generator().manual_seed(0))["images"]
    image, label, _ = rows(6)
    values = {**drawn, "image": image, "label": label, **given}
    with torch.no_grad():
        return float(method.loss(step, step.parts[0], values, clock, UpdateLog(WHOLE)))


def knowing(start: Denoiser) -> Denoiser:
    return extended(start, NETWORK, guidance=True)


def method_of(guidance: dict[str, float], teacher: Denoiser, student: Denoiser) -> Meng:
    networks: Any = {"teacher": with_guidance(teacher, torch.tensor(-1), 3.0), "student": student}
    return Meng(Section.model_validate({**KEYS, "guidance": guidance}), networks, FACTS, torch.device("cpu"))


def test_student_that_starts_as_the_teacher_has_no_loss_without_guidance():
    start = denoiser(0)
    method = method_of({"lowest": 1.0, "highest": 5.0}, start, knowing(start))
    assert first_loss(method, guidance=torch.ones(6)) == pytest.approx(0, abs=1e-10)
    assert first_loss(method, guidance=torch.full((6,), 1.5)) > 1e-6
    one, two = (first_loss(method, guidance=torch.full((6,), w)) for w in (1.5, 2.0))
    assert two == pytest.approx(4 * one, rel=1e-3)  # the error is (w - 1) (T_c - T_u)


def test_student_is_told_the_guidance_of_its_row():
    teacher, student = denoiser(0), knowing(denoiser(1))
    random_guidance(student)
    method = method_of({"lowest": 1.0, "highest": 5.0}, teacher, student)
    image, label, guidance = rows(6)
    noise, sigma = torch.zeros_like(image), torch.linspace(0.3, 3, 6)
    found = first_loss(method, guidance=guidance, noise=noise, sigma=sigma)
    with torch.no_grad():
        target = guided_x0(method.denoiser("teacher"), image, sigma, label, guidance)
        x0 = student(image, sigma, label, guidance=guidance)
        expected = denoising_loss(x0, target, weight=x0_weight(method.config.weighting, sigma, student))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_levels_are_those_of_the_cosine_schedule():
    method = method_of({"lowest": 2.0, "highest": 2.0}, denoiser(0), knowing(denoiser(0)))
    object.__setattr__(method.config, "batch_size", 20000)
    clock = plan(method.config)[0].clock(0)
    drawn = method.draw(method.steps(method.config, clock)[0], clock, torch.Generator().manual_seed(0))["images"]
    sigma = drawn["sigma"]
    assert float(sigma.min()) >= 0.002 and float(sigma.max()) <= 80.0 and set(drawn["guidance"].tolist()) == {2.0}
    middle = float(sigma.median())  # t = .4966: halfway between those of .002 and 80
    assert middle == pytest.approx(torch.tensor(0.7812).tan().item(), rel=0.03)


def test_second_stage_without_guidance_is_progressive_distillation():
    networks = {"teacher": denoiser(0), "student": denoiser(1)}
    config = ProgressiveSection.model_validate({**ROUNDS, "batch_size": 6})
    losses = []
    for guidances in (None, (1.0, 1.0)):
        facts = FACTS.__class__(**{**FACTS.__dict__, "guidance_range": guidances})
        given: Any = {name: knowing(each) if guidances else each for name, each in networks.items()}
        losses.append(first_loss(Progressive(config, given, facts, torch.device("cpu"))))
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_second_stage_tells_teacher_and_student_the_guidance_of_their_row():
    networks = {"teacher": knowing(denoiser(0)), "student": knowing(denoiser(1))}
    for each in networks.values():
        random_guidance(each)
    facts = FACTS.__class__(**{**FACTS.__dict__, "guidance_range": (1.0, 7.0)})
    given: Any = networks
    method = Progressive(
        ProgressiveSection.model_validate({**ROUNDS, "batch_size": 6}), given, facts, torch.device("cpu")
    )
    image, label, guidance = rows(6)
    index = torch.tensor([0, 1] * 3)
    found = first_loss(method, step=index, noise=torch.zeros_like(image), guidance=guidance)
    levels = method.sigmas[2 * index], method.sigmas[2 * index + 1], method.sigmas[2 * index + 2]
    with torch.no_grad():
        target = two_steps(partial(networks["teacher"], guidance=guidance), image, levels, label)
        x0 = networks["student"](image, levels[0], label, guidance=guidance)
        expected = denoising_loss(x0, target, weight=method.weight(levels[0]))
    assert found == pytest.approx(float(expected), rel=1e-5)


def test_both_stages_from_file_to_file(tmp_path: Path):
    torch.manual_seed(0)
    network, sizes = {**NETWORK, "channels": 1, "resolution": 8, "num_classes": 10}, {"shape": [1, 8, 8]}
    made = Denoiser(build(network), sigma_data=0.75)
    made.network.last.weight.data.normal_(std=0.2)
    weights = {f"ema.{name}": value for name, value in made.network.state_dict().items()}
    facts = {"kind": "train", "network": network, "sigma_data": 0.75, "num_classes": 10, "label_dropout": 0.1, **sizes}
    tensor_files.save(tmp_path / "first.safetensors", weights, facts)
    images = image_shards(tmp_path, {"kind": "digits", "split_seed": 0, "num_training": 16})
    keys: dict[str, Any] = {"optimisers": {"student": {"learning_rate": 0.02}}, "monitor": {"num_images": 8}}
    one = {"method": {**KEYS, "calls": 4, "guidance": {"lowest": 2.0, "highest": 4.0}}, **keys}
    folder = distil(tmp_path / "one", one, teacher=tmp_path / "first.safetensors", images=images)
    student = folder / NAMES[0]
    found = tensor_files.load_metadata(student)
    assert found["guidance_range"] == [2.0, 4.0] and found["denoises"] and found["network"]["guidance_input"]
    check_guidance(student)
    output = tmp_path / "two" / "denoiser.safetensors"
    output.parent.mkdir()
    teacher.run(output=output, table=output.with_name("log.parquet"), kind="experiment", student=student)
    assert dmd.load(output, device="cpu", guidance=2.5)(1).shape == (1, 1, 8, 8)
    last = distil(tmp_path / "three", {"method": ROUNDS, **keys}, teacher=output, images=images) / NAMES[0]
    assert tensor_files.load_metadata(last)["guidance_range"] == [2.0, 4.0]
    check_guidance(last)
    export_onnx.run(generator=last, output=tmp_path / "student.onnx", guidance=2.5)
    with pytest.raises(ValueError, match="guidance 1: .* takes 2 to 4 as an input, and no other"):
        export_onnx.run(generator=last, output=tmp_path / "other.onnx")
    with pytest.raises(ValueError, match="takes the guidance as an input, which a student of method sid would lose"):
        distil(tmp_path / "four", {"method": {**METHODS["sid"]}, **keys}, teacher=output)


def check_guidance(student: Path) -> None:
    """The default is the middle of the range; other values give other images; those outside are refused."""
    low, middle, high, default = (
        dmd.load(student, device="cpu", guidance=w)(2, label=3) for w in (2.0, 3.0, 4.0, None)
    )
    assert torch.equal(middle, default) and not torch.allclose(low, high)
    with pytest.raises(ValueError, match="guidance 5: .* takes 2 to 4 as an input, and no other"):
        dmd.load(student, device="cpu", guidance=5.0)
