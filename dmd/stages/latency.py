"""Stage latency: how long one image takes from its prompt to its pixels, and the share of each part.

Measured as the paper does: a batch of one, text encoder and decoder included, after a warm-up, the median of many. The
numbers are those of the machine they were measured on, which should do nothing else meanwhile. A LoRA (`sample.lora`)
becomes part of the weights and takes no time, so it is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmd.cluster import job, reporting, torch_setup
from dmd.config.sections import Latency, Sample
from dmd.models import loading
from dmd.models.autoencoder import Codec
from dmd.models.calls import Calls
from dmd.models.text_encoder import Text
from dmd.provenance import record
from dmd.sampling.noise import seeded_draws
from dmd.sampling.sampler import Sampler
from dmd.sampling.solvers import solve
from dmd.stages.evaluate import write

PROMPT = "a photograph of an astronaut riding a horse"  # every prompt is filled up to the same length
DTYPES = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}


def run(
    *,
    denoiser: Path,
    output: Path,
    text_encoder: Path | None = None,
    autoencoder: Path | None = None,
    experiment: str,
    solver: dict[str, Any],
    weights: str,
    guidance: float = 1.0,
    calls: int | None = None,
    batch_sizes: list[int],
    repeats: int,
    warmup: int,
    dtype: str,
    device: str = "cpu",
    threads: int = 1,
) -> None:
    """Writes latency.json: median seconds of a batch, and of its text encoder, denoiser and decoder.

    Args:
        denoiser: teacher/denoiser.safetensors or distill/generator.safetensors.
        text_encoder, autoencoder: where its condition is text, and its images are latents.
        experiment: its name, for the file.
        solver, weights, guidance, calls: as in stage sample.
        batch_sizes: images at once; `value` is of the first.
        repeats, warmup: batches that count, and batches before them.
        dtype: of weights and passes: float32, bfloat16 or float16.

    Raises:
        ValueError: damaged inputs, an unknown dtype, or a text encoder or autoencoder that is missing or not needed.
    """
    spec = {name: value for name, value in locals().items() if not isinstance(value, Path | None)}
    if dtype not in DTYPES:
        raise ValueError(f"latency.dtype {dtype!r} is not one of {list(DTYPES)}")
    torch_setup.set_threads(threads)
    with record.exclusive(output):
        inputs = record.check_inputs(denoiser=denoiser, text_encoder=text_encoder, autoencoder=autoencoder)
        place = torch_setup.choose_device(device)
        sampler = Sampler(denoiser, solver=solver, weights=weights, device=place, guidance=guidance, calls=calls)
        for name, path, key in (("text-encoder", text_encoder, "text"), ("autoencoder", autoencoder, "image_shape")):
            if (path is None) == (key in sampler.metadata):
                raise ValueError(
                    f"--{name} is given exactly where the denoiser has {key}; {denoiser} and {path} do not fit"
                )
        chain = Chain(
            sampler.denoiser,
            loading.load_text(text_encoder).to(place) if text_encoder else None,
            loading.load_codec(autoencoder).to(place) if autoencoder else None,
            DTYPES[dtype],
            solver=sampler.solver,
            shape=sampler.shape,
            num_classes=sampler.num_classes,
            device=place,
        )
        batches = [chain.measured(size, repeats=repeats, warmup=warmup) for size in batch_sizes]
        for each in batches:
            reporting.log(
                f"{each['batch_size']} at once: {each['seconds']:.4g} s, {each['images_per_second']:.4g} images/s"
            )
        score = {
            **record.provenance("latency", spec, inputs),
            "experiment": experiment,
            "metric": "latency",
            "value": batches[0]["seconds"],
            "unit": "s",
            "network_calls": chain.network_calls,
            "device": torch.cuda.get_device_name(place) if place.type == "cuda" else "cpu",
            "batches": batches,
        }
        write(output, score, inputs)


class Chain:
    """Text encoder, denoiser and decoder, one after the other.

    Attributes:
        network_calls: that the last batch took.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        text: Text | None,
        codec: Codec | None,
        dtype: torch.dtype | None,
        *,
        solver: dict[str, Any],
        shape: tuple[int, ...],
        num_classes: int,
        device: torch.device,
    ) -> None:
        """All of it on `device`; weights are cast in place to `dtype`, None leaves them float32."""
        self.denoiser, self.text, self.codec = denoiser, text, codec
        self.solver, self.shape, self.num_classes, self.device = solver, shape, num_classes, device
        self.network_calls = 0
        if dtype is None:
            return
        network = getattr(denoiser, "network", None)
        if isinstance(network, nn.Module):
            network.to(dtype)
            cast(Any, denoiser).dtype = dtype
        for module in (text, codec):
            if module is not None:
                module.to(dtype)
        if codec is not None:
            codec.dtype = dtype

    @torch.no_grad()
    def measured(self, size: int, *, repeats: int, warmup: int) -> dict[str, Any]:
        """Median seconds of a batch and of each part, which part's share of their sum, and images per second."""
        calls = self.solver.get("calls")
        num_fresh = Calls.of(calls).num_fresh if calls else 0
        noise, label, fresh = seeded_draws(range(size), self.shape, num_classes=self.num_classes, num_fresh=num_fresh)
        noise, label, fresh = noise.to(self.device), label.to(self.device), [each.to(self.device) for each in fresh]
        found = [self._batch(noise, label, fresh) for _ in range(warmup + repeats)][warmup:]
        parts = {name: statistics.median(each[name] for each in found) for name in found[0]}
        seconds = parts.pop("whole")
        total = sum(parts.values())
        return {
            "batch_size": size,
            "seconds": seconds,
            "fastest": min(each["whole"] for each in found),
            "images_per_second": size / seconds,
            "parts": parts,
            "shares": {name: value / total for name, value in parts.items()},
        }

    def _batch(self, noise: Tensor, label: Tensor, fresh: list[Tensor]) -> dict[str, float]:
        """Seconds of each part that there is, and of the whole."""
        times: dict[str, float] = {}
        begin = self._now()
        condition, latent = label, noise
        if (text := self.text) is not None:
            condition = self._timed(times, "text_encoder", lambda: text.encode([PROMPT] * len(noise)).states)
        image, self.network_calls = self._timed(
            times, "denoiser", lambda: solve(self.denoiser, latent, condition, self.solver, fresh.__getitem__)
        )
        if (codec := self.codec) is not None:
            self._timed(times, "decoder", lambda: codec.decode(image))
        times["whole"] = self._now() - begin
        return times

    def _timed(self, times: dict[str, float], name: str, part: Callable[[], Any]) -> Any:
        begin = self._now()
        found = part()
        times[name] = self._now() - begin
        return found

    def _now(self) -> float:
        """Seconds, once the GPU has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


if __name__ == "__main__":
    job.main(run, Latency, Sample)
