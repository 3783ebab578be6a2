"""AdamW of one trained network: gradients of all processes, clipped, one step of the whole network."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dmd.config.training import Optimiser as OptimiserSection
from dmd.train import sharding
from dmd.train.parallel import BatchSplit

BLOCK = 256  # values of a moment that have one scale, where they have 8 bits
SMALLEST = 4096  # values from which on they have
CODES = 256  # that a table of each moment gives values for, float32
STATE = {"step", "exp_avg", "exp_avg_sq"}  # of a parameter
NAME = re.compile(r"(0|[1-9][0-9]{0,8})\.(step|exp_avg|exp_avg_sq)(?:\.(codes|scale))?")


class Optimiser:
    """AdamW of what is trained of one network, with its own configured learning rate and gradient clip.

    Kind "fused" is torch's, with moments in float32. Kind "8bit" is torchao's: moments of 8 bits in blocks that have a
    scale each (Dettmers et al. 2021), those of small or odd tensors in float32.

    Attributes:
        adamw: torch's or torchao's.
    """

    def __init__(self, network: nn.Module, config: OptimiserSection, split: BatchSplit) -> None:
        """network: what is trained, all of whose parameters change."""
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
        # generated code pays on GPUs; on a CPU it would take minutes before the first step
        eager = kind == "8bit" and parameters[0].device.type == "cpu"
        self._kind = kind
        self._stance = "force_eager" if eager else None

    def update(self) -> Tensor:
        """One step on the gradient of the whole batch, which is then forgotten.

        Returns its L2 norm before the clip, on the device of the network: to look at it would wait for a GPU.
        """
        self._split.add_up_gradients(self._parameters)
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self._clip)
        with torch.compiler.set_stance(self._stance) if self._stance else contextlib.nullcontext():
            self.adamw.step()
        self.adamw.zero_grad()
        return norm.full_tensor() if sharding.is_spread(norm) else norm

    def scale_rate(self, factor: float) -> None:
        """Sets the learning rate to the configured one times `factor`."""
        for group in self.adamw.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(self._rate * factor)
            else:
                group["lr"] = self._rate * factor

    def forget_moments(self) -> None:
        """Clears the moments, for a phase whose gradient has another scale.

        Second moments of a regression phase are tiny: carried into a matching phase they would multiply its first
        steps by up to 1 / sqrt(1 - beta2), about 30, and undo what was learnt.
        """
        self.adamw.state.clear()

    def tensors(self) -> dict[str, Tensor]:
        """Moments and step of each parameter, `{number}.{name}`; of those of 8 bits codes and scales."""
        return {key: sharding.gathered(value) for key, value in self._kept()}

    def _kept(self) -> Iterator[tuple[str, Tensor]]:
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
            ValueError: no update of this network leaves tensors of these names, shapes and dtypes.
        """
        self.adamw.state.clear()
        for key, value in tensors.items():
            if not (found := NAME.fullmatch(key)) or int(found[1]) >= len(self._parameters):
                raise ValueError(f"{key} is of no parameter of {len(self._parameters)}")
            self._set(key, self._parameters[int(found[1])], found[2], found[3], value)
        whole = all(state.keys() == STATE for state in self.adamw.state.values())
        if not whole or {key for key, _ in self._kept()} != tensors.keys():
            raise ValueError("moments or steps of some parameters are missing")

    def _set(self, key: str, parameter: Tensor, name: str, part: str | None, value: Tensor) -> None:
        state, step = self.adamw.state[parameter], torch.zeros(())
        if name == "step":
            sharding.check_like(key, value, step)
            state[name] = value.to(parameter.device) if self.adamw.defaults.get("fused") else value
        elif part and _coded(parameter.numel(), self._kind):
            moment = getattr(state.setdefault(name, self._empty_moment(parameter, name)), part)
            sharding.check_like(key, value, moment)
            moment.copy_(value)
        elif not _coded(parameter.numel(), self._kind):  # in its memory layout, which fused kernels rely on
            sharding.check_like(key, value, parameter)
            state[name] = torch.empty_like(parameter).copy_(sharding.placed(value, parameter))

    def _empty_moment(self, parameter: Tensor, name: str) -> Tensor:
        from torchao.optim.subclass_8bit import OptimState8bit

        signed = name == "exp_avg"  # squares are not
        return OptimState8bit.zeros(parameter.shape, signed, BLOCK, parameter.device, dtype=parameter.dtype)


def moment_bytes(parameters: Iterable[Tensor], kind: str) -> int:
    """Bytes of both moments of parameters in float32."""
    sizes = [parameter.numel() for parameter in parameters]
    return sum(2 * (num + 4 * num // BLOCK + 4 * CODES) if _coded(num, kind) else 8 * num for num in sizes)


def _coded(num: int, kind: str) -> bool:
    """Whether a moment of so many values has 8 bits each."""
    return kind == "8bit" and num >= SMALLEST and num % BLOCK == 0
