"""Teacher training: it learns, its average equals the closed form, and labels are left out as often as asked."""

import pytest
import torch

from dmd.methods.base import Facts, Part, Rows
from dmd.models.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.models.networks import build
from tests.trainings import FixedRows, Updates, changed, weights

SECTION = {
    "method": {"name": "denoising", "batch_size": 128, "sigma_log_mean": -0.5, "sigma_log_std": 1.0},
    "optimisers": {"student": {"learning_rate": 1e-2, "weight_decay": 0.0, "betas": [0.9, 0.99], "gradient_clip": 1.0}},
    "schedule": {"warmup": 10, "decay": "cosine"},
    "ema_decay": 0.95,
}
MLP = {"kind": "mlp", "channels": 2, "resolution": 1, "width": 32, "layers": 2, "num_classes": 0}
CLASSES = {"kind": "ddpmpp", "channels": 1, "resolution": 4, "width": 8, "multipliers": [1], "blocks": 1}
CLASSES |= {"attention": [], "num_classes": 3, "dropout": 0.5}
MODES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


class Points:
    """A stream of two Gaussian modes."""

    def rows(self, part: Part, position: int, mine: slice, random: torch.Generator) -> Rows:
        point = MODES[torch.randint(2, (128,), generator=random)] + 0.3 * torch.randn(128, 2, generator=random)
        return {"image": point[:, :, None, None][mine], "label": torch.full((128,), -1)[mine]}


def training() -> Updates:
    torch.manual_seed(0)
    modules = {"student": Denoiser(build(MLP), sigma_data=0.75)}
    section = changed(SECTION, phases=[{"updates": 300}])
    return Updates(section, modules, Facts((2, 1, 1), 0, 0.75), {"images": Points()})


def test_trained_denoiser_approaches_the_exact_one():
    found = training()
    exact = GaussianMixtureDenoiser(MODES[:, :, None, None], torch.tensor([0.3, 0.3]), torch.tensor([0.5, 0.5]))
    generator = torch.Generator().manual_seed(1)
    sigma = torch.full((500,), 0.6)
    clean = MODES[torch.randint(2, (500,), generator=generator)] + 0.3 * torch.randn(500, 2, generator=generator)
    image = (clean + 0.6 * torch.randn(500, 2, generator=generator))[:, :, None, None]
    label = torch.full((500,), -1)

    def error() -> float:
        with torch.no_grad():
            average = Denoiser(found.trainer.networks.average.module, sigma_data=0.75)
            return float((average(image, sigma, label) - exact(image, sigma, label)).square().mean())

    before = error()
    for num in range(300):
        row = found.update(num)
        assert row.keys() == {"loss/denoising", "gradient_norm/student"}
        assert torch.tensor(list(row.values())).isfinite().all()
    assert error() < 0.2 * before


def test_teacher_average_equals_its_closed_form():
    found, seen = training(), []
    for num in range(4):
        found.update(num)
        seen.append(weights(found["student"]))
    expected = 0.95**3 * seen[0] + sum(0.05 * 0.95 ** (3 - place) * seen[place] for place in range(1, 4))
    torch.testing.assert_close(weights(found.trainer.networks.average.module), expected)


def labelled(**keys) -> Updates:
    torch.manual_seed(0)
    given = FixedRows({"image": torch.randn(128, 1, 4, 4), "label": torch.arange(128) % 3})
    modules = {"student": Denoiser(build(CLASSES), sigma_data=0.75)}
    section = changed(SECTION, phases=[{"updates": 40}], **keys)
    return Updates(section, modules, Facts((1, 4, 4), 3, 0.75), {"images": given})


def test_dropout_is_on_while_the_teacher_learns():
    found, seen = labelled(), []
    found["student"].register_forward_pre_hook(lambda module, given: seen.append(module.training))
    found.update(0)
    assert seen == [True] and all(module.training for module in found["student"].modules())


def test_dropout_of_a_pass_is_a_function_of_its_place_in_the_update():
    """Whatever was drawn before, and however many updates went before in this process."""
    one, other = labelled(), labelled()
    torch.manual_seed(77)
    rows = [one.update(0), one.update(1)]
    torch.rand(5)
    assert [other.update(0), other.update(1)] == rows
    dry = labelled(seed=1)
    assert dry.update(0) != rows[0]


@pytest.mark.parametrize("part", [0.25, 0.1])
def test_labels_are_left_out_of_about_the_wanted_part_and_nothing_else_changes(part):
    """The draws before the choice are the same: images, noise levels and noise."""
    seen: dict[float, list[tuple[torch.Tensor, ...]]] = {}
    for label_dropout in (0.0, part):
        found = labelled(label_dropout=label_dropout, sigma_log_std=0.9)
        passes = seen.setdefault(label_dropout, [])
        found["student"].register_forward_pre_hook(lambda module, given, passes=passes: passes.append(given))
        for update in range(40):
            found.update(update)
    label = torch.arange(128) % 3
    for (image, sigma, whole), (same_image, same_sigma, left) in zip(seen[0.0], seen[part], strict=True):
        assert torch.equal(image, same_image) and torch.equal(sigma, same_sigma) and torch.equal(whole, label)
        assert torch.equal(torch.where(left == -1, label, left), label)
    share = torch.cat([left for _, _, left in seen[part]]).eq(-1).float().mean()
    spread = (part * (1 - part) / (40 * 128)) ** 0.5
    assert abs(float(share) - part) < 4 * spread


def test_label_dropout_of_nothing_is_the_training_without_the_key():
    one, other = labelled(), labelled(label_dropout=0.0)
    for update in range(3):
        assert one.update(update) == other.update(update)
    assert torch.equal(weights(one["student"]), weights(other["student"]))
    assert "use_label" not in one.steps(3)[0].rows["images"]
