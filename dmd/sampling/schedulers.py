"""Solvers that call the network as it was trained, at integer times: diffusers' schedulers, and rectified flow.

Latents are those of the stock pipeline of diffusers with the same scheduler, noise and text.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from dmd import torchvision_operators
from dmd.models.denoiser import Denoiser
from dmd.models.preconditioning import Flow

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of diffusers, what it is asked for
    "pndm": ("PNDMScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++"}),
    "unipc": ("UniPCMultistepScheduler", {}),
    "heun-discrete": ("HeunDiscreteScheduler", {}),
    "euler-discrete": ("EulerDiscreteScheduler", {}),
    "lcm": ("LCMScheduler", {}),
}
FLOW = "rectified-flow"
NAMES = (*CLASSES, FLOW)


def scheduler(config: Mapping[str, Any] | None, solver: Mapping[str, Any]) -> Any:
    """The scheduler of diffusers that `solver` names, with its times set.

    Args:
        config: of the scheduler that the network was trained with, as its folder has it. Where it says nothing of
            `clip_sample`, nothing is clipped.
        solver: `name` of `CLASSES`, `steps`, and `spacing` of the times (leading, trailing, linspace; None or absent:
            that of `config`, else the scheduler's own).

    Raises:
        ValueError: no config, or steps or a spacing that the scheduler cannot take.
    """
    torchvision_operators.ensure()
    import diffusers

    if config is None:
        raise ValueError(f"solver {solver['name']!r} needs a teacher that came with a scheduler: take heun or euler")
    name, numbers = CLASSES[solver["name"]]
    spacing = {"timestep_spacing": solver["spacing"]} if solver.get("spacing") else {}
    try:
        found = getattr(diffusers, name).from_config({"clip_sample": False, **config}, **numbers, **spacing)
        found.set_timesteps(solver["steps"])
    except (ValueError, IndexError, NotImplementedError) as error:
        raise ValueError(f"solver {solver['name']!r} with {solver['steps']} steps: {error}") from error
    return found


def first_timestep(config: Mapping[str, Any] | None, solver: Mapping[str, Any]) -> float:
    """The time of the first network call: 999 where a solver begins at the last level, 981 for PNDM in 50 steps."""
    return 1000.0 if solver["name"] == FLOW else float(scheduler(config, solver).timesteps[0])


@torch.no_grad()
def draw(
    denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, solver: Mapping[str, Any]
) -> tuple[torch.Tensor, int]:
    """Images from unit noise, by predictions of the network itself (guided, where the denoiser is).

    Args:
        denoiser: its network predicts what `denoiser.scheduler` says; for rectified-flow the velocity, image - noise,
            or under preconditioning flow noise - image.
        noise: unit variance, (B, C, H, W).
        label: int64 (B,), or text states (B, L, E).
        solver: see `scheduler`; or {"name": "rectified-flow", "steps"} (Liu et al. 2023, InstaFlow).

    Returns:
        Images in the dtype of `noise`, and the number of network calls made.

    Raises:
        ValueError: a denoiser without what the solver needs.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"solver {solver['name']!r} needs a denoiser with a network, not {type(denoiser).__name__}")
    if solver["name"] == FLOW:
        return _flow(denoiser, noise, label, solver["steps"]), solver["steps"]
    found = scheduler(denoiser.scheduler, solver)
    found.set_timesteps(solver["steps"], device=noise.device)
    # a scheduler that draws noise in each step gets it from the noise of each sample alone
    extra = {"generator": _generators(noise)} if solver["name"] == "lcm" else {}
    image = noise * found.init_noise_sigma
    for time in found.timesteps:
        out = denoiser.predict(found.scale_model_input(image, time), _times(time, noise), label)
        image = found.step(out, time, image, **extra).prev_sample
    return image.to(noise.dtype), len(found.timesteps)


def _flow(denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler along the straight line from noise at time 1000 to the image at 0."""
    sign = -1.0 if isinstance(denoiser.preconditioning, Flow) else 1.0
    image = noise
    for step in range(steps):
        velocity = denoiser.predict(image, _times(1000.0 * (1 - step / steps), noise), label)
        image = image + sign / steps * velocity
    return image


def _times(time: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((len(like),), float(time), device=like.device)


def _generators(noise: torch.Tensor) -> list[torch.Generator]:
    """One for each sample, on the CPU, its seed a digest of the sample's noise."""
    digests = (hashlib.sha256(one.float().cpu().numpy().tobytes()).digest() for one in noise)
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4])) for digest in digests]
