"""How a student is sampled in one or a few network calls: its map, noise levels, and the step between calls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from dmd.models import sizes
from dmd.models.denoiser import per_sample, start_scale

Fresh = Callable[[int], Tensor]
MAPS, BETWEEN = ("denoiser", "consistency", "signal", "mean-flow"), ("noise", "ode", "ancestral")


@dataclass(frozen=True)
class Calls:
    """The network calls of a student.

    Attributes:
        sigmas: noise level of each call, descending; the first is that of the start noise.
        between: step to the next level. "noise": x0 plus fresh noise (Song et al. 2023, Algorithm 1); "ode": DDIM, x0
            plus the noise that the image contains according to x0, scaled to the next level; "ancestral": `ancestral`.
        map: "denoiser": D itself; "consistency": f(x; sigma), which is the identity at `sigma_min`; "signal": `signal`
            at `sigma_min`; "mean-flow": D of a network with a second time, that of the level which the step after the
            call leads to, along the ODE.
        sigma_min: where a consistency map ends; fresh noise has the variance sigma^2 - sigma_min^2. The level of a
            signal map.
        scheduler: the scheduler of diffusers that makes these calls, if they were read from one: its `class`, `config`
            and `timesteps`.
    """

    sigmas: tuple[float, ...]
    between: Literal["noise", "ode", "ancestral"] = "noise"
    map: Literal["denoiser", "consistency", "signal", "mean-flow"] = "denoiser"
    sigma_min: float = 0.0
    scheduler: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        descending = all(later < sigma for sigma, later in zip(self.sigmas, self.sigmas[1:], strict=False))
        if not self.sigmas or not descending or self.sigmas[-1] <= self.sigma_min:
            raise ValueError(
                f"calls: noise levels {list(self.sigmas)} do not descend, or the last is not above {self.sigma_min}"
            )
        if self.between not in BETWEEN or self.map not in MAPS:
            raise ValueError(f"calls: between {self.between!r} is none of {BETWEEN} or map {self.map!r} of {MAPS}")
        if self.map == "mean-flow" and self.between != "ode":
            raise ValueError(f"calls: between {self.between}, but the steps of a mean-flow map are those of the ODE")

    @property
    def num_fresh(self) -> int:
        """Number of noise samples per image besides the start noise."""
        return 0 if self.between == "ode" else len(self.sigmas) - 1

    def facts(self) -> dict[str, Any]:
        """The fields as JSON values, for a student's file."""
        facts = {**asdict(self), "sigmas": list(self.sigmas)}
        return facts if self.scheduler else {key: value for key, value in facts.items() if key != "scheduler"}

    def first(self, num: int) -> Calls:
        """The first `num` calls, which no scheduler may make."""
        return self if num == len(self.sigmas) else replace(self, sigmas=self.sigmas[:num], scheduler=None)

    @classmethod
    def of(cls, facts: Mapping[str, Any]) -> Calls:
        """The calls that a value of `facts` describes; ValueError for any other value."""
        if odd := sorted(facts.keys() - cls.__dataclass_fields__.keys()):
            raise ValueError(f"calls: unknown {odd[0]}")
        scheduler = facts.get("scheduler")
        sizes.check("calls", {key: value for key, value in facts.items() if key != "scheduler"})
        if scheduler is not None:
            known = isinstance(scheduler, dict) and isinstance(scheduler.get("class"), str)
            if not known or not isinstance(scheduler.get("config"), dict):
                raise ValueError(f"calls: scheduler {scheduler!r:.80} has no class or no config")
            sizes.check("calls: scheduler", scheduler["config"])
        levels = facts.get("sigmas")
        if not isinstance(levels, list) or not all(isinstance(sigma, float | int) and sigma > 0 for sigma in levels):
            raise ValueError(f"calls: sigmas {levels!r:.80} are no noise levels")
        return cls(**{**facts, "sigmas": tuple(float(sigma) for sigma in levels)})

    def draw(self, denoiser: Any, noise: Tensor, label: Tensor, fresh: Fresh | None = None) -> Tensor:
        """Images from unit noise (B, C, H, W).

        Args:
            denoiser: the student.
            fresh: k -> the unit noise after call k, from 0, shaped like `noise`; may be None if `num_fresh` is 0.
        """
        last = len(self.sigmas) - 1
        image = self.before(last, denoiser, noise, label, fresh)
        return self.x0(denoiser, image, noise.new_full(noise.shape[:1], self.sigmas[last]), label)

    def before(self, number: int, denoiser: Any, noise: Tensor, label: Tensor, fresh: Fresh | None = None) -> Tensor:
        """The images that call `number`, from 0, gets: those of `draw` after the calls before it."""
        image = start_scale(denoiser, self.sigmas[0]) * noise
        for done, (sigma, after) in enumerate(zip(self.sigmas[:number], self.sigmas[1:], strict=False)):
            x0 = self.x0(denoiser, image, noise.new_full(noise.shape[:1], sigma), label, end=after)
            image = self.step(image, x0, sigma, after, fresh, done)
        return image

    @property
    def stops_early(self) -> bool:
        """Whether the first calls alone draw an image, too."""
        return self.between == "noise" or self.map == "mean-flow"

    def x0(self, denoiser: Any, image: Tensor, sigma: Tensor, label: Tensor, *, end: float = 0.0) -> Tensor:
        """The map's x0 of images at levels sigma (B,), from which a step leads to the level `end`."""
        if self.map == "mean-flow" and end:
            mean: Tensor = denoiser(image, sigma, label, end=torch.full_like(sigma, end))
            return mean
        if self.map == "signal":
            return signal(denoiser, image, sigma, label, torch.full_like(sigma, self.sigma_min))
        x0: Tensor = denoiser(image, sigma, label)
        if self.map != "consistency":
            return x0
        return consistency(denoiser, image, x0, sigma, self.sigma_min)

    def step(
        self, image: Tensor, x0: Tensor, sigma: float, next_sigma: float, fresh: Fresh | None, number: int
    ) -> Tensor:
        """Takes images from level sigma to the next one, after call `number`."""
        if self.between == "ode":
            return x0 + next_sigma / sigma * (image - x0)
        assert fresh is not None
        if self.between == "ancestral":
            return ancestral(image, x0, sigma, next_sigma, fresh(number))
        return x0 + (next_sigma**2 - self.sigma_min**2) ** 0.5 * fresh(number)


def ancestral(image: Tensor, x0: Tensor, sigma: float | Tensor, next_sigma: float | Tensor, noise: Tensor) -> Tensor:
    """A sample at a lower level s, given x0 and the image at level t: the posterior of Gaussian noise (Ho et al. 2020).

    Its mean is x0 + (s/t)^2 (image - x0), its variance s^2 (1 - s^2 / t^2). If x0 is the image without noise, the
    sample is x0 with noise of level s.

    Args:
        sigma, next_sigma: t and s, of all images or (B,).
        noise: unit noise, shaped like the image.
    """
    t, s = (each if isinstance(each, float) else per_sample(each, image) for each in (sigma, next_sigma))
    ratio = s / t
    return x0 + ratio**2 * (image - x0) + s * (1 - ratio**2) ** 0.5 * noise


def signal(denoiser: Any, image: Tensor, sigma: Tensor, label: Tensor, level: Tensor) -> Tensor:
    """y(level) = x_level - level n of the path from noise n, by a student of BOOT (Gu et al. 2023, arXiv 2306.05544).

    Args:
        image: the start image of the noise at levels sigma (B,).
        level: (B,), the condition of the network.
    """
    found: Tensor = denoiser(image, sigma, label, level=level)
    return found


def consistency(denoiser: Any, image: Tensor, x0: Tensor, sigma: Tensor, sigma_min: float) -> Tensor:
    """f(x; sigma) = c_skip x + c_out F with f(x; sigma_min) = x (Song et al. 2023, Appendix C), from D's output x0.

    c_skip = sd^2 / ((sigma - sigma_min)^2 + sd^2), c_out = sd (sigma - sigma_min) / sqrt(sigma^2 + sd^2), with F from
    EDM's preconditioning: D = sd^2 / (sigma^2 + sd^2) x + sigma sd / sqrt(sigma^2 + sd^2) F.
    """
    variance = denoiser.sigma_data**2
    skip = variance / ((sigma - sigma_min).square() + variance)
    own = variance / (sigma.square() + variance)
    ratio = per_sample((sigma - sigma_min) / sigma, image)
    return per_sample(skip, image) * image + ratio * (x0 - per_sample(own, image) * image)
