"""Images from unit noise by any solver."""

from collections.abc import Callable
from typing import Any

import torch

from dmd.models.denoiser import start_scale
from dmd.models.student_calls import Calls
from dmd.sampling import schedulers
from dmd.sampling.noise import sampling_sigmas
from dmd.sampling.ode_solvers import SOLVERS, Denoise, OnStep
from dmd.sampling.stochastic_solvers import STOCHASTIC


class CountingDenoiser:
    """Wraps a denoiser: counts the calls, and casts the inputs to `dtype`."""

    def __init__(self, denoiser: Denoise, dtype: torch.dtype) -> None:
        self.denoiser = denoiser
        self.dtype = dtype
        self.num_calls = 0

    def __call__(
        self, image: torch.Tensor, sigma: torch.Tensor, label: torch.Tensor, **levels: torch.Tensor
    ) -> torch.Tensor:
        self.num_calls += 1
        further = {name: level.to(self.dtype) for name, level in levels.items()}
        return self.denoiser(image.to(self.dtype), sigma.to(self.dtype), label, **further).to(image.dtype)

    def __getattr__(self, name: str) -> Any:
        """Attributes of the denoiser: sigma_data, preconditioning."""
        return getattr(self.__dict__["denoiser"], name)


@torch.no_grad()
def solve(
    denoiser: Denoise,
    noise: torch.Tensor,
    label: torch.Tensor,
    solver: dict[str, Any],
    fresh: Callable[[int], torch.Tensor] | None = None,
    on_step: OnStep | None = None,
) -> tuple[torch.Tensor, int]:
    """Images from unit noise.

    Args:
        denoiser: (image, sigma, label) -> x0; its inputs have the dtype of `noise`.
        noise: unit variance, (B, C, H, W); it is scaled to the first sigma here.
        label: int64 (B,), or text states (B, L, E).
        solver: {"name": one of `SOLVERS`, "steps", "sigma_min", "sigma_max", "rho"}; the same with a name of
            `dmd.sampling.stochastic_solvers.STOCHASTIC` and that solver's keys; {"name": "student", "calls"}, see
            `dmd.models.student_calls.Calls`; or one of `dmd.sampling.schedulers.NAMES`.
        fresh: k -> the k-th further unit noise, from 0; for students and solvers that add noise between their calls.
        on_step: called with the float64 state after each step of one of `SOLVERS`.

    Returns:
        Images (B, C, H, W) in the dtype of `noise`, and the number of network calls made.

    Raises:
        ValueError: an unknown solver, or one that does not fit this denoiser.
    """
    if solver["name"] in schedulers.NAMES:
        return schedulers.draw(denoiser, noise, label, solver)  # type: ignore[arg-type]
    counting = CountingDenoiser(denoiser, noise.dtype)
    if solver["name"] == "student":
        calls = Calls.of(solver["calls"])
        if calls.num_fresh and fresh is None:
            raise ValueError(f"a student of {len(calls.sigmas)} calls needs fresh noise between them: give `fresh`")
        return calls.draw(counting, noise, label, fresh or _no_noise), counting.num_calls
    if solver["name"] not in (*SOLVERS, *STOCHASTIC):
        names = ["student", *SOLVERS, *STOCHASTIC, *schedulers.NAMES]
        raise ValueError(f"solver {solver['name']!r} is not one of {names}")
    grid = {key: solver[key] for key in ("sigma_min", "sigma_max", "rho")}
    sigmas = sampling_sigmas(solver["steps"], **grid)
    image = start_scale(denoiser, sigmas[0].item()) * noise.double()
    if solver["name"] in STOCHASTIC:
        image = STOCHASTIC[solver["name"]](counting, image, label, sigmas, fresh or _no_noise, solver)
    else:
        image = SOLVERS[solver["name"]](counting, image, label, sigmas, on_step)
    return image.to(noise.dtype), counting.num_calls


def _no_noise(number: int) -> torch.Tensor:
    raise AssertionError("these calls need no fresh noise")
