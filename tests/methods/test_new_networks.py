"""Methods that train an autoencoder and a CLIP, and denoising with text states: laws of their losses."""

import math

import pytest
import torch

from dmd.config.methods.autoencoding import Autoencoding as AutoencodingSection
from dmd.config.methods.denoising import Denoising as Section
from dmd.config.pipeline_sections import AutoencoderTraining, TextTraining
from dmd.methods.autoencoding import Autoencoding
from dmd.methods.base import Clock, Facts, Part, Step
from dmd.methods.contrastive import contrastive_loss
from dmd.methods.denoising import Denoising
from dmd.models.autoencoder import Codec
from dmd.models.compute import prepare
from dmd.models.loading import new_denoiser

LEVELS = {"kind": "discrete", "prediction": "epsilon", "alphas_cumprod": [0.99, 0.5, 0.1]}


def unit(values: torch.Tensor) -> torch.Tensor:
    return values / values.norm(dim=1, keepdim=True)


def test_contrastive_loss_of_equal_embeddings_is_the_log_of_the_batch():
    same = unit(torch.ones(6, 4))
    loss, _ = contrastive_loss(same, same, torch.tensor(7.0), torch.arange(6))
    assert math.isclose(float(loss), math.log(6), rel_tol=1e-6)


def test_contrastive_loss_counts_rows_of_one_image_as_positives_alike():
    """Two rows of one image and one of another, each at its own axis: the best loss is the entropy of the target."""
    row, axes = torch.tensor([3, 3, 5]), torch.eye(2)[[0, 0, 1]]
    loss, right = contrastive_loss(axes, axes, torch.tensor(50.0), row)
    assert math.isclose(float(loss), 2 / 3 * math.log(2), abs_tol=1e-6) and float(right) == 1
    worse, _ = contrastive_loss(axes, axes, torch.tensor(50.0), torch.arange(3))  # now they are different images
    assert float(worse) == pytest.approx(float(loss)) and float(worse) > 0
    swapped, right = contrastive_loss(axes, axes[[2, 1, 0]], torch.tensor(50.0), row)
    assert float(swapped) > 10 and float(right) == pytest.approx(2 / 3)


def test_contrastive_loss_is_symmetric_and_does_not_depend_on_the_order():
    torch.manual_seed(0)
    images, texts, scale = unit(torch.randn(5, 3)), unit(torch.randn(5, 3)), torch.tensor(3.0)
    row, order = torch.tensor([0, 1, 1, 2, 3]), torch.tensor([4, 2, 0, 1, 3])
    loss = contrastive_loss(images, texts, scale, row)[0]
    assert torch.isclose(loss, contrastive_loss(texts, images, scale, row)[0])
    assert torch.isclose(loss, contrastive_loss(images[order], texts[order], scale, row[order])[0])


@pytest.mark.parametrize(
    ("training", "name", "changed", "message"),
    [
        (TextTraining, "contrastive", {"compute": {"micro_batch_size": 4}}, "compute.micro_batch_size: method contra"),
        (TextTraining, "contrastive", {"processes": 2}, "processes: 2, but method contrastive cannot split a batch"),
        (TextTraining, "contrastive", {"compute": {"dtype": "bfloat16"}}, "compute.dtype: method contrastive"),
        (AutoencoderTraining, "autoencoding", {"compute": {"compile": True}}, "compute.compile: method autoencoding"),
    ],
)
def test_switches_that_a_method_does_not_support_are_refused(training, name, changed, message):
    section = {"method": {"name": name, "batch_size": 8, "phases": [{"updates": 1}]}}
    training.model_validate(section)
    with pytest.raises(ValueError, match=message):
        training.model_validate({**section, **changed})


def test_autoencoder_trains_with_passes_in_bfloat16():
    """Loss and gradients are those of float32 up to the rounding of bfloat16, and differ from them."""
    torch.manual_seed(0)
    levels = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    codec = Codec(kind="full", config={**levels, "block_out_channels": [8, 8], "norm_num_groups": 4})
    rows = {"image": torch.rand(3, 3, 8, 8) * 2 - 1, "noise": torch.randn(3, codec.channels, 4, 4)}
    section = {"name": "autoencoding", "batch_size": 3, "phases": [{"updates": 1}]}
    method = Autoencoding(
        AutoencodingSection.model_validate(section),
        OneNetwork(student=codec),
        Facts((3, 8, 8), 0, 1.0),
        torch.device("cpu"),
    )
    found = {}
    for dtype in ("float32", "bfloat16"):
        prepare(codec, {"dtype": dtype})
        codec.zero_grad()
        loss = method.loss(STEP, STEP.parts[0], rows, None, NoLog())
        loss.backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in codec.parameters()])
        assert loss.dtype == gradient.dtype == torch.float32
        found[dtype] = loss.detach(), gradient
    (loss, gradient), (rounded, other) = found.values()
    assert loss != rounded and torch.isclose(loss, rounded, rtol=0.02)
    assert torch.nn.functional.cosine_similarity(gradient, other, dim=0) > 0.99


class OneNetwork(dict):
    """Networks with the student alone."""


def text_denoising(**changed: object) -> Denoising:
    """The method on a tiny text-conditional network with three noise levels."""
    config = Section.model_validate(
        {"name": "denoising", "batch_size": 3000, "levels": "table", "phases": [{"updates": 1}], **changed}
    )
    torch.manual_seed(0)
    unet = {"sample_size": 4, "in_channels": 1, "out_channels": 1, "block_out_channels": [8], "norm_num_groups": 4}
    unet |= {"down_block_types": ["CrossAttnDownBlock2D"], "up_block_types": ["CrossAttnUpBlock2D"]}
    unet |= {"layers_per_block": 1, "cross_attention_dim": 6, "attention_head_dim": 2}
    network = {"kind": "unet2d-condition", "config": unet}
    student = new_denoiser(network, sigma_data=1.0, preconditioning=LEVELS)
    for parameter in student.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    facts = Facts((1, 4, 4), 0, 1.0, text=True, empty=torch.full((5, 6), 0.5))
    return Denoising(config, OneNetwork(student=student), facts, torch.device("cpu"))


STEP = Step("student", ("student",), (Part("images", 3000, "images"),))


class NoLog:
    """A log that keeps nothing."""

    def scalar(self, name: str, value: torch.Tensor, rows: int) -> None:
        """Keeps nothing."""

    def spread(self, name: str, value: torch.Tensor) -> None:
        """Keeps nothing."""


def test_levels_of_a_table_are_drawn_equally_often():
    method = text_denoising()
    drawn = method.draw(STEP, None, torch.Generator().manual_seed(0))["images"]["sigma"]
    values, counts = drawn.unique(return_counts=True)
    assert torch.allclose(values.double(), method.networks["student"].table[1], rtol=1e-6)
    assert counts.min() > 900 and "use_label" not in method.draw(STEP, None, torch.Generator())["images"]


def test_dropped_prompt_counts_as_the_empty_one():
    method, states = text_denoising(label_dropout=0.5), torch.randn(4, 5, 6)
    rows = {"image": torch.randn(4, 1, 4, 4), "sigma": torch.full((4,), 1.0), "noise": torch.randn(4, 1, 4, 4)}
    empty = method.facts.empty.expand(4, 5, 6)
    used = torch.tensor([True, False, True, False])
    clock: Clock = None  # type: ignore[assignment]

    def loss(label: torch.Tensor, use: torch.Tensor) -> torch.Tensor:
        return method.loss(STEP, STEP.parts[0], {**rows, "label": label, "use_label": use}, clock, NoLog())

    mixed = torch.where(used[:, None, None], states, empty)
    assert torch.equal(loss(states, used), loss(mixed, torch.ones(4, dtype=torch.bool)))
    assert not torch.isclose(loss(states, used), loss(states, torch.ones(4, dtype=torch.bool)), rtol=1e-6)


def test_target_of_an_epsilon_network_is_weighted_as_its_own_error():
    """With one level, the loss of the x0 estimate is the mean squared error of the predicted noise."""
    method = text_denoising()
    student, sigma = method.networks["student"], torch.full((2,), float(method.networks["student"].table[1][1]))
    image, noise, label = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4), torch.randn(2, 5, 6)
    rows = {"image": image, "sigma": sigma, "noise": noise, "label": label}
    loss = method.loss(STEP, STEP.parts[0], rows, None, NoLog())
    alpha = (1 + sigma.square()).rsqrt()[:, None, None, None]
    predicted = student.network(alpha * (image + sigma[:, None, None, None] * noise), torch.full((2,), 1.0), label)
    assert torch.isclose(loss, (predicted - noise).square().mean(), rtol=1e-4)
