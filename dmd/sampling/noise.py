"""Noise levels, and noise of which each item depends on its own seed only."""

from collections.abc import Iterable

import torch


def karras_curve(position: torch.Tensor, *, first: float, last: float, rho: float) -> torch.Tensor:
    """Noise levels between `first` and `last`, evenly spaced in sigma^(1/rho) (Karras et al. 2022, Eq. 5).

    Args:
        position: (B,), 0 is `first`, 1 is `last`.

    Returns:
        float64 (B,).
    """
    begin, end = first ** (1 / rho), last ** (1 / rho)
    return (begin + position.double() * (end - begin)) ** rho


def karras_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Descending noise levels, denser at low noise (Karras et al. 2022, Eq. 5).

    Returns:
        float64 (num,), first sigma_max, last sigma_min. The final 0 of a sampling grid is not included.

    Raises:
        ValueError: fewer than one level, or not 0 < sigma_min <= sigma_max.
    """
    if num < 1 or not 0 < sigma_min <= sigma_max:
        raise ValueError(f"need num >= 1 and 0 < sigma_min <= sigma_max, got {num}, {sigma_min}, {sigma_max}")
    return karras_curve(torch.linspace(0, 1, num, dtype=torch.float64), first=sigma_max, last=sigma_min, rho=rho)


def sampling_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """`karras_sigmas` and the final 0: float64 (num + 1,), descending."""
    sigmas = karras_sigmas(num, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    return torch.cat([sigmas, sigmas.new_zeros(1)])


def training_sigmas(num: int, *, sigma_min: float, sigma_max: float, rho: float) -> torch.Tensor:
    """Noise levels of DMD with EDM teachers (Yin et al. 2023, appendix B): float32 (num,), ascending."""
    return karras_sigmas(num, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).flip(0).float()


def log_normal_sigmas(num: int, *, mean: float, std: float, generator: torch.Generator) -> torch.Tensor:
    """Noise levels for training a denoiser: ln sigma ~ N(mean, std^2) (Karras et al. 2022, Table 1). float32 (num,)."""
    return (torch.randn(num, generator=generator) * std + mean).exp()


def seeded_noise(
    seeds: Iterable[int], shape: tuple[int, ...], *, num_classes: int, labels: str = "random"
) -> tuple[torch.Tensor, torch.Tensor]:
    """The first noise and the label of `seeded_draws`."""
    return seeded_draws(seeds, shape, num_classes=num_classes, labels=labels)[:2]


def seeded_draws(
    seeds: Iterable[int], shape: tuple[int, ...], *, num_classes: int, labels: str = "random", num_fresh: int = 0
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """For each seed unit noise, a label, and further unit noise, drawn in this order from that seed only.

    Args:
        seeds: one per item.
        shape: (C, H, W) of one item.
        num_classes: 0 gives label -1.
        labels: "random" draws uniformly; "balanced" takes seed modulo num_classes.
        num_fresh: number of further noise tensors.

    Returns:
        noise float32 (B, C, H, W), label int64 (B,), and `num_fresh` further tensors of noise (B, C, H, W).
    """
    if labels not in ("random", "balanced"):
        raise ValueError(f"labels must be 'random' or 'balanced', got {labels!r}")
    noise, label = [], []
    fresh: list[list[torch.Tensor]] = [[] for _ in range(num_fresh)]
    generator = torch.Generator()
    for seed in seeds:
        generator.manual_seed(seed)
        noise.append(torch.randn(shape, generator=generator))
        if num_classes == 0:
            label.append(-1)
        elif labels == "balanced":
            label.append(seed % num_classes)
        else:
            label.append(int(torch.randint(num_classes, (), generator=generator)))
        for draws in fresh:
            draws.append(torch.randn(shape, generator=generator))
    return torch.stack(noise), torch.tensor(label), [torch.stack(draws) for draws in fresh]
