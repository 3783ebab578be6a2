"""Teacher training: it learns, and its average equals the closed form."""

import torch

from dmd.diffusion.denoiser import Denoiser, GaussianMixtureDenoiser
from dmd.methods.denoising import DenoiserTraining
from dmd.methods.schedule import update_generator
from dmd.networks import build

NUMBERS = {"updates": 300, "batch_size": 128, "learning_rate": 1e-2, "warmup": 10, "decay": "cosine"}
NUMBERS |= {"weight_decay": 0.0, "betas": [0.9, 0.99], "gradient_clip": 1.0, "ema_decay": 0.95}
NUMBERS |= {"sigma_log_mean": -0.5, "sigma_log_std": 1.0}
MODES = torch.tensor([[-1.0, 0.0], [1.0, 0.0]])


def trainer(**changed) -> DenoiserTraining:
    torch.manual_seed(0)
    network = build({"kind": "mlp", "channels": 2, "resolution": 1, "width": 32, "layers": 2, "num_classes": 0})
    return DenoiserTraining(Denoiser(network, sigma_data=0.75), NUMBERS | changed)


def update(found: DenoiserTraining, num: int) -> torch.Tensor:
    generator = update_generator("distill", 0, num)
    point = MODES[torch.randint(2, (128,), generator=generator)] + 0.3 * torch.randn(128, 2, generator=generator)
    return found.update(num, point[:, :, None, None], torch.full((128,), -1), generator)


def test_trained_denoiser_approaches_the_exact_one():
    found = trainer()
    exact = GaussianMixtureDenoiser(MODES[:, :, None, None], torch.tensor([0.3, 0.3]), torch.tensor([0.5, 0.5]))
    generator = torch.Generator().manual_seed(1)
    sigma = torch.full((500,), 0.6)
    clean = MODES[torch.randint(2, (500,), generator=generator)] + 0.3 * torch.randn(500, 2, generator=generator)
    image = (clean + 0.6 * torch.randn(500, 2, generator=generator))[:, :, None, None]
    label = torch.full((500,), -1)

    def error() -> float:
        with torch.no_grad():
            average = Denoiser(found.average.module, sigma_data=0.75)
            return float((average(image, sigma, label) - exact(image, sigma, label)).square().mean())

    before = error()
    for num in range(300):
        values = update(found, num)
        assert values.shape == (2,) and values.isfinite().all()
    assert error() < 0.2 * before


def test_teacher_average_equals_its_closed_form():
    found, seen = trainer(), []
    for num in range(4):
        update(found, num)
        seen.append(torch.cat([parameter.detach().flatten() for parameter in found.denoiser.parameters()]).clone())
    expected = 0.95**3 * seen[0] + sum(0.05 * 0.95 ** (3 - place) * seen[place] for place in range(1, 4))
    average = torch.cat([parameter.flatten() for parameter in found.average.module.parameters()])
    torch.testing.assert_close(average, expected)


def test_dropout_is_on_while_the_teacher_learns():
    assert trainer().denoiser.training
