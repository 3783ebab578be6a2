"""AdamW for one trained network with its learning rate: sums gradients over processes, clips them, and steps."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config.training import Optimiser as OptimiserSection
from dmd.train import sharding
from dmd.train.parallel import BatchSplit

BLOCK = 256  # values of an 8-bit moment that share a scale
SMALLEST = 4096  # smaller tensors have moments in float32
CODES = 256  # float32 entries of the code table of an 8-bit moment
STATE = {"step", "exp_avg", "exp_avg_sq"}  # of a parameter
NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.(step|exp_avg|exp_avg_sq)(?:\.(codes|scale))?")

DECAYS: dict[str, Callable[[float], float]] = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def learning_rate_factor(update: int, *, total: int, warmup: int, decay: str) -> float:
    """Factor on the learning rate of update 0 .. total-1: linear warm-up, then `decay` towards 0 at the end.

    Raises:
        ValueError: an unknown decay.
    """
    if decay not in DECAYS:
        raise ValueError(f"decay {decay!r} is not one of {list(DECAYS)}")
    if update < warmup:
        return (update + 1) / warmup
    return DECAYS[decay]((update - warmup) / max(total - warmup, 1))


class Optimiser:
    """AdamW of one network or its adapter, with its own learning rate and gradient clip.

    Kind "fused" is torch's, with float32 moments. Kind "8bit" is torchao's: 8-bit moments with a scale per block
    (Dettmers et al. 2021), except for tensors that are small or cannot be divided into whole blocks.

    Attributes:
        adamw: torch's or torchao's.
    """

    def __init__(self, network: nn.Module, config: OptimiserSection, split: BatchSplit) -> None:
        """network: module whose parameters are all trained, such as an adapter."""
        kind, learning_rate = config.kind, config.learning_rate
        parameters = list(network.parameters())
        self.adamw: Any
        if kind == "fused":
            self.adamw = torch.optim.AdamW(
                parameters, lr=learning_rate, fused=True, betas=config.betas, weight_decay=config.weight_decay
            )
        else:
            from torchao.optim import AdamW8bit

            self.adamw = AdamW8bit(
                parameters, lr=learning_rate, block_size=BLOCK, betas=config.betas, weight_decay=config.weight_decay
            )
        self._parameters, self._rate, self._clip, self._split = parameters, learning_rate, config.gradient_clip, split
        # compiled steps are faster on GPUs; on a CPU compilation would take minutes before the first step
        eager = kind == "8bit" and parameters[0].device.type == "cpu"
        self._kind = kind
        self._stance = "force_eager" if eager else None

    def update(self) -> Tensor:
        """One step on the gradient of the whole batch; then clears the gradient.

        Returns the L2 norm of the gradient before clipping, on the network's device: reading it would wait for the GPU.
        """
        self._split.add_up_gradients(self._parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        with torch.compiler.set_stance(self._stance) if self._stance else contextlib.nullcontext():
            self.adamw.step()
        self.adamw.zero_grad()
        return norm.full_tensor() if sharding.is_sharded(norm) else norm

    def scale_rate(self, factor: float) -> None:
        """Sets the learning rate to the configured one times `factor`."""
        for group in self.adamw.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._rate * factor)
            else:
                group["lr"] = self._rate * factor

    def forget_moments(self) -> None:
        """Clears the moments, for a phase whose gradients have another scale.

        Second moments of a regression phase are tiny: in a matching phase they would make the first steps several times
        too large (at most 1 / sqrt(1 - beta2) times, about 30) and undo the training.
        """
        self.adamw.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step of each parameter as `{number}.{name}`; of 8-bit moments their codes and scales."""
        return {key: sharding.gather(value) for key, value in self._state()}

    def _state(self) -> Iterator[tuple[str, Tensor]]:
        for number, parameter in enumerate(self._parameters):
            for name, value in self.adamw.state.get(parameter, {}).items():
                if hasattr(value, "codes"):
                    yield f"{number}.{name}.codes", value.codes
                    yield f"{number}.{name}.scale", value.scale
                else:
                    yield f"{number}.{name}", value

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Sets the state to what `tensors` returned.

        Raises:
            ValueError: names, shapes or dtypes of `tensors` do not fit this optimiser.
        """
        self.adamw.state.clear()
        for key, value in tensors.items():
            if not (match := NAME.fullmatch(key)) or int(match[1]) >= len(self._parameters):
                raise ValueError(f"{key} belongs to none of {len(self._parameters)} parameters")
            self._set(key, self._parameters[int(match[1])], match[2], match[3], value)
        complete = all(state.keys() == STATE for state in self.adamw.state.values())
        if not complete or {key for key, _ in self._state()} != tensors.keys():
            raise ValueError("moments or steps of some parameters are missing")

    def _set(self, key: str, parameter: Tensor, name: str, part: str | None, value: Tensor) -> None:
        state, step = self.adamw.state[parameter], torch.zeros(())
        if name == "step":
            sharding.check_like(key, value, step)
            state[name] = value.to(parameter.device) if self.adamw.defaults.get("fused") else value
        elif part and _is_8bit(parameter.numel(), self._kind):
            moment = getattr(state.setdefault(name, self._empty_moment(parameter, name)), part)
            sharding.check_like(key, value, moment)
            moment.copy_(value)
        elif not _is_8bit(parameter.numel(), self._kind):  # in the parameter's memory layout, as fused kernels require
            sharding.check_like(key, value, parameter)
            state[name] = torch.empty_like(parameter).copy_(sharding.shard_like(value, parameter))

    def _empty_moment(self, parameter: Tensor, name: str) -> Tensor:
        from torchao.optim.subclass_8bit import OptimState8bit

        signed = name == "exp_avg"  # exp_avg_sq is not negative
        return OptimState8bit.zeros(parameter.shape, signed, BLOCK, parameter.device, dtype=parameter.dtype)


def moment_bytes(parameters: Iterable[Tensor], kind: str) -> int:
    """Bytes of both moments of float32 `parameters`, for an optimiser of this kind."""
    sizes = [parameter.numel() for parameter in parameters]
    return sum(2 * (num + 4 * num // BLOCK + 4 * CODES) if _is_8bit(num, kind) else 8 * num for num in sizes)


def _is_8bit(num: int, kind: str) -> bool:
    """Whether a moment of `num` values is stored in 8 bits."""
    return kind == "8bit" and num >= SMALLEST and num % BLOCK == 0
