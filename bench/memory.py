"""Memory of a text-to-image distillation, of full networks and of adapters: python -m bench.memory.

Counts the bytes of tensors while updates of a small network run on the CPU, and estimates the bytes of Stable Diffusion
1.5 from passes on fake tensors. Writes bench/results/memory.json.
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
from dmd.models.adapters import add_adapters, with_network
from dmd.models.compute import Compute, prepare
from dmd.models.denoiser import Denoiser
from dmd.models.lora import Adapter, targets
from dmd.models.networks import build
from dmd.models.networks.published_architectures import SD15
from dmd.models.tensor_bytes import Peak, weight_bytes
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
NUM = 2  # latents in a batch
ADAPTER = Adapter(rank=64, alpha=None, targets=None)
NARROW = Adapter(rank=12, alpha=None, targets=None)  # for `MIDDLE`: about the same fraction of the weights
SIGMA = 14.6146  # highest level of Stable Diffusion
SETTINGS: dict[str, dict[str, Any]] = {
    "whole": {},
    "whole, checkpointed": {"checkpointed": True},
    "whole, 8 bits": {"kind": "8bit"},
    "whole, 8 bits, checkpointed": {"kind": "8bit", "checkpointed": True},
    "adapters": {"adapter": ADAPTER},
    "adapters, checkpointed": {"adapter": ADAPTER, "checkpointed": True},
    "adapters, 8 bits, checkpointed": {"adapter": ADAPTER, "kind": "8bit", "checkpointed": True},
}
IMAGES = (1, 4, 16)  # micro-batch sizes of the estimates
GB = 10**9


def main() -> None:
    """The command line: measures, estimates, prints and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(setting.THREADS)
    figures: dict[str, Any] = {"measured": {}, "foretold": {}, "torch": torch.__version__, "rank": ADAPTER["rank"]}
    for name, chosen in SETTINGS.items():
        narrow = chosen | ({"adapter": NARROW} if "adapter" in chosen else {})
        figures["measured"][name] = measure(**narrow)
        print(f"{name:32} {_line(figures['measured'][name])}", flush=True)
    for name, chosen in SETTINGS.items():
        figures["foretold"][name] = estimate(**chosen)
        print(f"Stable Diffusion 1.5, {name:32} {_line(figures['foretold'][name])}", flush=True)
    OUTPUT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n")


def measure(*, adapter: Adapter | None = None, kind: str = "fused", checkpointed: bool = False) -> dict[str, float]:
    """MB of weights and moments, and at the peak of two float32 updates of student and fake denoiser of `MIDDLE`."""
    torch.manual_seed(0)
    trainer = _trainer(kind, adapter, checkpointed)
    text, noise = torch.randn(NUM, LENGTH, MIDDLE["config"]["cross_attention_dim"]), torch.randn(NUM, 4, 32, 32)
    streams = {
        "noise": updates.FixedRows({"noise": noise, "label": text}),
        "pairs": updates.FixedRows({"noise": torch.randn_like(noise), "label": text, "image": torch.randn_like(noise)}),
    }
    phases, _ = plan(trainer.training.method)
    rows = loader(trainer, streams, phases, stage="distill")
    steps = [rows.take(update) for update in range(2)]
    rows.close()
    networks = trainer.networks
    weights = sum(weight_bytes(networks[role]) for role in networks) + weight_bytes(networks.average)
    gc.collect()
    with Peak() as peak:
        for update in range(2):
            trainer.update(phases.clock(update), steps[update])
            gc.collect()
    moments = [value for optimiser in networks.optimisers.values() for value in optimiser.tensors().values()]
    trained = sum(parameter.numel() for parameter in networks.weights("student").parameters())
    figures = {"weights": weights, "moments": sum(value.numel() * value.element_size() for value in moments)}
    figures |= {"peak": weights + peak.most}
    return {"trained_millions": trained / 1e6} | {f"{name}_mb": value / 1e6 for name, value in figures.items()}


def estimate(*, adapter: Adapter | None = None, kind: str = "fused", checkpointed: bool = False) -> dict[str, float]:
    """GB of Stable Diffusion 1.5: weights in float32, moments as `kind` says, passes in bfloat16."""
    passes = activations(SD15, adapter, checkpointed=checkpointed)
    with torch.device("meta"):
        network = build(SD15)
        parameters = [*network.parameters()]
        if adapter:
            layers = targets(network, adapter["targets"]).values()
            parameters = [weight for layer in layers for weight in _Layer(layer, adapter["rank"]).added()]
    weights, trained = weight_bytes(network), 4 * sum(weight.numel() for weight in parameters)
    figures: dict[str, float] = {"trained_millions": trained / 4e6, "weights_gb": (weights + 3 * trained) / GB}
    figures |= {"moments_gb": 2 * moment_bytes(parameters, kind) / GB, "gradients_gb": trained / GB}
    fixed = sum(value for name, value in figures.items() if name.endswith("_gb"))
    return figures | {f"peak_gb_of_{num}": fixed + (passes[0] + num * passes[1]) / GB for num in IMAGES}


def activations(architecture: dict[str, Any], adapter: Adapter | None, *, checkpointed: bool) -> tuple[int, int]:
    """Bytes of a bfloat16 pass with gradient, on fake tensors: fixed, and per image; without gradients of weights."""
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
    """A layer with a LoRA adapter, like peft's layers, which cannot be built on fake tensors."""

    def __init__(self, layer: Any, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down: nn.Module
        self.up: nn.Module
        if isinstance(layer, nn.Conv2d):
            options = {"stride": layer.stride, "padding": layer.padding, "bias": False}
            self.down = nn.Conv2d(layer.in_channels, rank, layer.kernel_size, **options)  # type: ignore[arg-type]
            self.up = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(layer.in_features, rank, bias=False)
            self.up = nn.Linear(rank, layer.out_features, bias=False)

    def added(self) -> list[nn.Parameter]:
        """Its trained parameters."""
        return [*self.down.parameters(), *self.up.parameters()]

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return self.layer(value) + self.up(self.down(value)) * 1.0


def _pass_bytes(denoiser: Denoiser, num: int, shape: tuple[int, ...], width: int) -> int:
    inputs = torch.zeros(num, *shape), torch.ones(num), torch.zeros(num, LENGTH, width)
    denoiser(*inputs).sum().backward()  # allocates the gradients of weights, which are not counted
    gc.collect()
    with Peak() as peak:
        denoiser(*inputs).sum().backward()
    return peak.most


def _trainer(kind: str, adapter: Adapter | None, checkpointed: bool) -> Trainer:
    """A trainer before its first update, of three networks, or of one network with two adapters."""
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
        part = Denoiser(build(MIDDLE), sigma_data=1.0, preconditioning=discrete)
        prepare(part, Compute(gradient_checkpointing=checkpointed))
        parts.append(part)
    if adapter:
        carrier = parts[0]
        parts = [with_network(carrier, view) for view in add_adapters(carrier.network, adapter, roles[1:], seed=0)]
    trainer = updates.trainer(section, dict(zip(roles, parts, strict=True)), (4, 32, 32), text=True, sigma_data=1.0)
    trainer.start()
    return trainer


def _line(figures: dict[str, float]) -> str:
    return ", ".join(_words(figures))


def _words(figures: dict[str, float]) -> Iterator[str]:
    for name, value in figures.items():
        yield f"{name.replace('_', ' ')} {value:.4g}"


if __name__ == "__main__":
    main()
