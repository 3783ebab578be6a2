"""Memory of a distillation of a text-to-image network, whole and by adapters: python -m bench.memory.

Counts bytes of tensors while updates run on the CPU, of a network small enough for that, and foretells those of Stable
Diffusion 1.5, whose passes are made on tensors without memory. Writes bench/results/memory.json.
"""

from __future__ import annotations

import argparse
import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from bench import setting, updates
from dmd.models.adapters import carried, with_network
from dmd.models.compute import Compute, prepare
from dmd.models.counting import Peak, weight_bytes
from dmd.models.denoiser import Denoiser
from dmd.models.lora import Adapter, targets
from dmd.models.networks import build
from dmd.models.networks.released import SD15
from dmd.train.optimiser import moment_bytes
from dmd.train.trainer import Trainer, loader, plan

OUTPUT = Path(__file__).parent / "results" / "memory.json"
MIDDLE: dict[str, Any] = {  # Stable Diffusion's layers at a fifth of its width
    "kind": "unet2d-condition",
    "config": SD15["config"]
    | {
        "sample_size": 32,
        "block_out_channels": [64, 128, 256, 256],
        "attention_head_dim": 4,
        "cross_attention_dim": 128,
    },
}
LENGTH = 77  # tokens
NUM = 2  # images of a batch, latents of noise
ADAPTER = Adapter(rank=64, alpha=None, targets=None)
NARROW = Adapter(rank=12, alpha=None, targets=None)  # the same part of the weights in the narrow network
SIGMA = 14.6146  # of the last level of Stable Diffusion
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, checkpointed": {"checkpointed": True},
    "whole, 8 bits": {"kind": "8bit"},
    "whole, 8 bits, checkpointed": {"kind": "8bit", "checkpointed": True},
    "adapters": {"adapter": ADAPTER},
    "adapters, checkpointed": {"adapter": ADAPTER, "checkpointed": True},
    "adapters, 8 bits, checkpointed": {"adapter": ADAPTER, "kind": "8bit", "checkpointed": True},
}
IMAGES = (1, 4, 16)  # of a micro batch, for which a card is foretold
GB = 10**9


def main() -> None:
    """Measures, foretells, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(setting.THREADS)
    figures: dict[str, Any] = {"measured": {}, "foretold": {}, "torch": torch.__version__, "rank": ADAPTER["rank"]}
    for name, chosen in SETTINGS.items():
        narrow = chosen | ({"adapter": NARROW} if "adapter" in chosen else {})
        figures["measured"][name] = measured(**narrow)
        print(f"{name:32} {_line(figures['measured'][name])}", flush=True)
    for name, chosen in SETTINGS.items():
        figures["foretold"][name] = foretold(**chosen)
        print(f"Stable Diffusion 1.5, {name:32} {_line(figures['foretold'][name])}", flush=True)
    OUTPUT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def measured(*, adapter: Adapter | None = None, kind: str = "fused", checkpointed: bool = False) -> dict[str, float]:
    """Bytes, in MB, of two updates of student and fake denoiser of the middle network, in float32."""
    torch.manual_seed(0)
    found = _trainer(kind, adapter, checkpointed)
    text, noise = torch.randn(NUM, LENGTH, MIDDLE["config"]["cross_attention_dim"]), torch.randn(NUM, 4, 32, 32)
    streams = {
        "noise": updates.Given({"noise": noise, "label": text}),
        "pairs": updates.Given({"noise": torch.randn_like(noise), "label": text, "image": torch.randn_like(noise)}),
    }
    phases, _ = plan(found.training.method)
    rows = loader(found, streams, phases, stage="distill")
    steps = [rows.take(update) for update in range(2)]
    rows.close()
    networks = found.networks
    weights = sum(weight_bytes(networks[role]) for role in networks) + weight_bytes(networks.average)
    gc.collect()
    with Peak() as peak:
        for update in range(2):
            found.update(phases.clock(update), steps[update])
            gc.collect()
    moments = [value for each in networks.optimisers.values() for value in each.tensors().values()]
    trained = sum(parameter.numel() for parameter in networks.weights("student").parameters())
    figures = {"weights": weights, "moments": sum(value.numel() * value.element_size() for value in moments)}
    figures |= {"peak": weights + peak.most}
    return {"trained_millions": trained / 1e6} | {f"{name}_mb": value / 1e6 for name, value in figures.items()}


def foretold(*, adapter: Adapter | None = None, kind: str = "fused", checkpointed: bool = False) -> dict[str, float]:
    """GB of Stable Diffusion 1.5: weights and moments in float32, passes in bfloat16."""
    passes = activations(SD15, adapter, checkpointed=checkpointed)
    with torch.device("meta"):
        network = build(SD15)
        parameters = [*network.parameters()]
        if adapter:
            layers = targets(network, adapter["targets"]).values()
            parameters = [each for layer in layers for each in _Layer(layer, adapter["rank"]).added()]
    whole, trained = weight_bytes(network), 4 * sum(each.numel() for each in parameters)
    figures: dict[str, float] = {"trained_millions": trained / 4e6, "weights_gb": (whole + 3 * trained) / GB}
    figures |= {"moments_gb": 2 * moment_bytes(parameters, kind) / GB, "gradients_gb": trained / GB}
    kept = sum(value for name, value in figures.items() if name.endswith("_gb"))
    return figures | {f"peak_gb_of_{num}": kept + (passes[0] + num * passes[1]) / GB for num in IMAGES}


def activations(architecture: dict[str, Any], adapter: Adapter | None, *, checkpointed: bool) -> tuple[int, int]:
    """Bytes of a pass with gradient, in bfloat16 and by tensors without memory: once, and for each image.

    Gradients of weights are there before, and not counted.
    """
    with FakeTensorMode():
        network: Any = build(architecture).eval()
        if adapter:
            network.requires_grad_(False)
            for name, layer in targets(network, adapter["targets"]).items():
                network.set_submodule(name, _Layer(layer, adapter["rank"]))
        denoiser = Denoiser(network, sigma_data=1.0)
        prepare(denoiser, Compute(dtype="bfloat16", gradient_checkpointing=checkpointed))
        shape, width = (network.channels, network.resolution, network.resolution), network.text_width
        one, two = (_pass_bytes(denoiser, num, shape, width) for num in (1, 2))
    return max(2 * one - two, 0), two - one


class _Layer(nn.Module):
    """Computes as peft's layers do, which cannot be made of tensors without memory."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            chosen = {"stride": layer.stride, "padding": layer.padding, "bias": False}
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **chosen)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)

    def added(self) -> list[nn.Parameter]:
        """What is trained of it."""
        return [*self.down.parameters(), *self.up.parameters()]

    def forward(self, given: torch.Tensor) -> torch.Tensor:
        return self.layer(given) + self.up(self.down(given)) * 1.0


def _pass_bytes(denoiser: Denoiser, num: int, shape: tuple[int, ...], width: int) -> int:
    given = torch.zeros(num, *shape), torch.ones(num), torch.zeros(num, LENGTH, width)
    denoiser(*given).sum().backward()  # leaves gradients
    gc.collect()
    with Peak() as peak:
        denoiser(*given).sum().backward()
    return peak.most


def _trainer(kind: str, adapter: Adapter | None, checkpointed: bool) -> Trainer:
    """A distillation of three networks, or of one with two adapters, at its first update."""
    levels = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64).square()
    alphas = torch.cumprod(1 - levels, 0).tolist()
    discrete = {"kind": "discrete", "alphas_cumprod": alphas, "prediction": "epsilon"}
    section = setting.distill(
        shared_noise=False,
        batch_size=NUM,
        optimiser={"kind": kind, "gradient_clip": 1.0},
        levels={"kind": "teacher"},
        sigma=SIGMA,
    )
    roles = list(section.method.roles())  # the teacher first
    parts: list[Denoiser] = []
    for _ in range(1 if adapter else len(roles)):
        made = Denoiser(build(MIDDLE), sigma_data=1.0, preconditioning=discrete)
        prepare(made, Compute(gradient_checkpointing=checkpointed))
        parts.append(made)
    if adapter:
        carrier = parts[0]
        parts = [with_network(carrier, view) for view in carried(carrier.network, adapter, roles[1:], seed=0)]
    found = updates.trainer(section, dict(zip(roles, parts, strict=True)), (4, 32, 32), text=True, sigma_data=1.0)
    found.start()
    return found


def _line(figures: dict[str, float]) -> str:
    return ", ".join(_words(figures))


def _words(figures: dict[str, float]) -> Iterator[str]:
    for name, value in figures.items():
        yield f"{name.replace('_', ' ')} {value:.4g}"


if __name__ == "__main__":
    main()
