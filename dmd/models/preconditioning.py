"""Preconditioning of a denoiser D(x; sigma) = c_skip x + c_out F(c_in x; condition), by kind of network F.

All denoisers use variance-exploding coordinates, x = x0 + sigma * noise. A variance-preserving network, trained on
alpha x0 + sigma_t * noise with alpha^2 + sigma_t^2 = 1, is such a denoiser with sigma = sigma_t / alpha and
c_in = alpha = 1 / sqrt(1 + sigma^2).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn

from dmd.models import sizes

NO_SIGNAL = 1e8  # noise level in place of infinity, where alpha is 0: in float32 the image is the noise alone


class Coefficients(NamedTuple):
    """c_skip, c_out, c_in and the network's noise condition, each (B,); the condition in the dtype of sigma."""

    c_skip: torch.Tensor
    c_out: torch.Tensor
    c_in: torch.Tensor
    condition: torch.Tensor


class Preconditioning(nn.Module, ABC):
    """Coefficients as functions of the noise level, and the weight of the denoising loss.

    Attributes:
        table: (alpha, sigma) of each of the network's noise levels, sigma ascending, float64; None if it has no table.
    """

    table: tuple[torch.Tensor, torch.Tensor] | None = None

    @abstractmethod
    def forward(self, sigma: torch.Tensor) -> Coefficients:
        """The coefficients at noise levels sigma (B,) > 0."""

    @abstractmethod
    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """Weight (B,) of the squared x0 error that turns it into the error of the network's prediction."""

    def start_scale(self, sigma: float) -> float:
        """Factor on unit noise that gives the start image at level sigma: sigma, as the data are negligible there."""
        return sigma


class Edm(Preconditioning):
    """Karras et al. 2022, Table 1, column "Ours": input and target of F have unit variance.

    Args:
        sigma_data: standard deviation of the data.
        condition_scale: factor on ln(sigma) / 4; 1000 in the networks of consistency models.
    """

    def __init__(self, sigma_data: float, *, condition_scale: float = 1.0) -> None:
        super().__init__()
        self.sigma_data, self.condition_scale = sigma_data, condition_scale

    def forward(self, sigma: torch.Tensor) -> Coefficients:
        variance = sigma.square() + self.sigma_data**2
        c_in = variance.rsqrt()
        condition = sigma.log() / 4
        if self.condition_scale != 1.0:
            condition = condition * self.condition_scale
        return Coefficients(self.sigma_data**2 / variance, sigma * self.sigma_data * c_in, c_in, condition)

    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """1/sigma^2 + 1/sigma_data^2."""
        return sigma.square().reciprocal() + 1 / self.sigma_data**2


class VarianceExploding(Preconditioning):
    """Karras et al. 2022, Table 1, column "VE": F predicts minus the noise, from ln(sigma / 2)."""

    def forward(self, sigma: torch.Tensor) -> Coefficients:
        one = torch.ones_like(sigma)
        return Coefficients(one, sigma, one, (sigma / 2).log())

    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """1/sigma^2."""
        return sigma.square().reciprocal()


class Discrete(Preconditioning):
    """A variance-preserving network with integer time t = 0 .. T-1 (Ho et al. 2020).

    The condition is t as a real number, linear in ln(sigma) between the levels of the table; below the first level it
    is 0, above the last T-1. Coefficients are float64, since sigma^2 spans eight decades and x0 is a small difference
    of large terms at high levels.

    Args:
        alphas_cumprod: alpha^2 of each level, descending, each in (0, 1).
        prediction: output of the network: "epsilon", "v" (alpha noise - sigma_t x0) or "sample" (x0).

    Raises:
        ValueError: another prediction, or a table that does not descend within (0, 1).
    """

    log_sigmas: torch.Tensor

    def __init__(self, alphas_cumprod: list[float], *, prediction: str) -> None:
        super().__init__()
        if prediction not in WEIGHTS:
            raise ValueError(f"prediction {prediction!r} is none of {', '.join(WEIGHTS)}")
        numbers = isinstance(alphas_cumprod, list) and all(type(value) in (int, float) for value in alphas_cumprod)
        squares = torch.tensor(alphas_cumprod if numbers else [], dtype=torch.float64, device="cpu")
        inside = len(squares) > 1 and bool(((squares > 0) & (squares < 1)).all())
        if not inside or not bool((squares.diff() < 0).all()):
            raise ValueError("alphas_cumprod: it needs at least two levels, descending, each above 0 and below 1")
        self.prediction = prediction
        sigmas = ((1 - squares) / squares).sqrt()
        self.table = squares.sqrt(), sigmas
        self.register_buffer("log_sigmas", sigmas.log(), persistent=False)

    def forward(self, sigma: torch.Tensor) -> Coefficients:
        sigma_ve, table = sigma.double(), self.log_sigmas
        upper = torch.searchsorted(table, sigma_ve.log()).clamp(1, len(table) - 1)
        low, high = table[upper - 1], table[upper]
        time = upper - 1 + ((sigma_ve.log() - low) / (high - low)).clamp(0, 1)
        alpha = (1 + sigma_ve.square()).rsqrt()
        if self.prediction == "epsilon":  # x0 = x - sigma eps
            c_skip, c_out = torch.ones_like(alpha), -sigma_ve
        elif self.prediction == "v":  # x0 = alpha (alpha x) - sigma_t v
            c_skip, c_out = alpha.square(), -sigma_ve * alpha
        else:
            c_skip, c_out = torch.zeros_like(alpha), torch.ones_like(alpha)
        return Coefficients(c_skip, c_out, alpha, time.to(sigma.dtype))

    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """1/sigma^2 for epsilon, 1/sigma^2 + 1 for v, 1 for sample: each is 1 / c_out^2."""
        return WEIGHTS[self.prediction](sigma)

    def start_scale(self, sigma: float) -> float:
        """1 / alpha, so that the network's input is unit noise."""
        return math.sqrt(1 + sigma**2)


class Flow(Preconditioning):
    """A network of rectified flow (Liu et al. 2022; Esser et al. 2024): F predicts a velocity at (1 - t) x0 + t noise.

    sigma = t / (1 - t), alpha = 1 - t; the condition is 1000 t. Coefficients are computed in float64, as in `Discrete`.

    Args:
        num_levels: of the table, t = i / (num_levels + 1) for i = 1 .. num_levels, without the ends 0 and 1.
        prediction: output of the network: "noise - x0" (Stable Diffusion 3) or "x0 - noise" (InstaFlow).

    Attributes:
        sign: factor on the output that gives noise - x0.

    Raises:
        ValueError: fewer than two levels, or another prediction.
    """

    def __init__(self, *, num_levels: int = 1000, prediction: str = "noise - x0") -> None:
        super().__init__()
        if num_levels < 2:
            raise ValueError(f"num_levels {num_levels}: at least two are needed")
        if prediction not in VELOCITIES:
            raise ValueError(f"prediction {prediction!r} is none of {', '.join(VELOCITIES)}")
        self.sign = VELOCITIES[prediction]
        times = torch.arange(1, num_levels + 1, dtype=torch.float64, device="cpu") / (num_levels + 1)
        self.table = 1 - times, times / (1 - times)

    def forward(self, sigma: torch.Tensor) -> Coefficients:
        sigma_ve = sigma.double()
        alpha = 1 / (1 + sigma_ve)
        time = sigma_ve * alpha
        return Coefficients(alpha, -self.sign * time, alpha, (1000 * time).to(sigma.dtype))

    def loss_weight(self, sigma: torch.Tensor) -> torch.Tensor:
        """1/t^2, which gives the unweighted squared error of F."""
        return ((1 + sigma) / sigma).square()

    def start_scale(self, sigma: float) -> float:
        """1 / alpha, so that the network's input is unit noise."""
        return 1 + sigma


VELOCITIES = {"noise - x0": 1.0, "x0 - noise": -1.0}
WEIGHTS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "epsilon": lambda sigma: sigma.square().reciprocal(),
    "v": lambda sigma: sigma.square().reciprocal() + 1,
    "sample": torch.ones_like,
}


def preconditioning(section: Mapping[str, Any] | None, *, sigma_data: float) -> Preconditioning:
    """The preconditioning from the metadata of a denoiser's file.

    Args:
        section: `kind` "edm" (with `condition_scale`, default 1), "ve", "discrete" (with `alphas_cumprod` and
            `prediction`) or "flow" (`num_levels`, default 1000; `prediction`, default "noise - x0"); None is edm.
        sigma_data: standard deviation of the data; only edm uses it.

    Raises:
        ValueError: unknown kind, or values out of range.
    """
    arguments = dict(section or {"kind": "edm"})
    kind = arguments.pop("kind", None)
    with sizes.making("preconditioning", arguments):
        if kind == "edm":
            return Edm(sigma_data, **arguments)
        if kind == "ve":
            return VarianceExploding(**arguments)
        if kind == "discrete":
            return Discrete(arguments["alphas_cumprod"], prediction=arguments["prediction"])
        if kind == "flow":
            return Flow(**arguments)
    raise ValueError(f"preconditioning kind {kind!r:.100} is none of edm, ve, discrete, flow")
