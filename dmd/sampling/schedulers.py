"""Solvers on the network's own prediction type and timesteps: diffusers' schedulers, and rectified flow.

With the same scheduler, noise and text they give the same latents as diffusers' pipeline.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

import torch

from dmd import torchvision_operators
from dmd.models.denoiser import Denoiser
from dmd.models.preconditioning import Flow

CLASSES: dict[str, tuple[str, dict[str, Any]]] = {  # name -> class of diffusers, its arguments
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
    """The scheduler of diffusers that `solver` names, with its timesteps set.

    Args:
        config: configuration of the scheduler in the network's folder; `clip_sample` is off unless it is set there.
        solver: `name` from `CLASSES`, `steps`, and `spacing` of the timesteps (leading, trailing, linspace; None or
            absent: that of `config`, else the scheduler's default).

    Raises:
        ValueError: no config, or steps or a spacing that the scheduler cannot take.
    """
    torchvision_operators.ensure()
    import diffusers

    if config is None:
        raise ValueError(f"solver {solver['name']!r} needs a teacher that comes with a scheduler: use heun or euler")
    name, arguments = CLASSES[solver["name"]]
    spacing = {"timestep_spacing": solver["spacing"]} if solver.get("spacing") else {}
    try:
        result = getattr(diffusers, name).from_config({"clip_sample": False, **config}, **arguments, **spacing)
        result.set_timesteps(solver["steps"])
    except (ValueError, IndexError, NotImplementedError) as error:
        raise ValueError(f"solver {solver['name']!r} with {solver['steps']} steps: {error}") from error
    return result


def first_timestep(config: Mapping[str, Any] | None, solver: Mapping[str, Any]) -> float:
    """The timestep of the first network call: 999 for the highest noise level, 981 for PNDM in 50 steps."""
    return 1000.0 if solver["name"] == FLOW else float(scheduler(config, solver).timesteps[0])


@torch.no_grad()
def draw(
    denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, solver: Mapping[str, Any]
) -> tuple[torch.Tensor, int]:
    """Images from unit noise by a scheduler, from the network's own predictions, guided if the denoiser is.

    Args:
        denoiser: its network has the prediction type of `denoiser.scheduler`; for rectified-flow it predicts the
            velocity image - noise, or noise - image with preconditioning flow.
        noise: unit variance, (B, C, H, W).
        label: int64 (B,), or text states (B, L, E).
        solver: see `scheduler`; or {"name": "rectified-flow", "steps"} (Liu et al. 2023, InstaFlow).

    Returns:
        Images in the dtype of `noise`, and the number of network calls made.

    Raises:
        ValueError: the denoiser has no network, or no scheduler though the solver needs one.
    """
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"solver {solver['name']!r} needs a denoiser with a network, not {type(denoiser).__name__}")
    if solver["name"] == FLOW:
        return _flow(denoiser, noise, label, solver["steps"]), solver["steps"]
    stepper = scheduler(denoiser.scheduler, solver)
    stepper.set_timesteps(solver["steps"], device=noise.device)
    # LCM draws noise in each step: a generator seeded from the sample's start noise makes it reproducible
    extra = {"generator": _generators(noise)} if solver["name"] == "lcm" else {}
    image = noise * stepper.init_noise_sigma
    for time in stepper.timesteps:
        out = denoiser.predict(stepper.scale_model_input(image, time), _times(time, noise), label)
        image = stepper.step(out, time, image, **extra).prev_sample
    return image.to(noise.dtype), len(stepper.timesteps)


def _flow(denoiser: Denoiser, noise: torch.Tensor, label: torch.Tensor, steps: int) -> torch.Tensor:
    """Euler steps along the straight line from noise at timestep 1000 to the image at timestep 0."""
    sign = -1.0 if isinstance(denoiser.preconditioning, Flow) else 1.0
    image = noise
    for step in range(steps):
        velocity = denoiser.predict(image, _times(1000.0 * (1 - step / steps), noise), label)
        image = image + sign / steps * velocity
    return image


def _times(time: torch.Tensor | float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((len(like),), float(time), device=like.device)


def _generators(noise: torch.Tensor) -> list[torch.Generator]:
    """A CPU generator per sample; its seed is a digest of the sample's noise."""
    digests = (hashlib.sha256(sample.float().cpu().numpy().tobytes()).digest() for sample in noise)
    return [torch.Generator().manual_seed(int.from_bytes(digest[:4])) for digest in digests]
