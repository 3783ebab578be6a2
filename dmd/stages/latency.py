"""Stage latency: seconds from prompt to pixels, in total and for text encoder, denoiser and decoder.

Each figure is the median over batches after a warm-up; the paper measures batches of one image. Nothing else should run
on the machine meanwhile. A LoRA (`sample.lora`) would be merged into the weights and take no extra time, so it is not
loaded.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from dmd.config.sections import Latency, Sample
from dmd.jobs import job, reporting, torch_setup
from dmd.models import loading
from dmd.models.autoencoder import Codec
from dmd.models.text_encoder import Text
from dmd.provenance import record
from dmd.report import score_files
from dmd.sampling.noise import SeededDraws
from dmd.sampling.sampler import Sampler
from dmd.sampling.solvers import solve

PROMPT = "a photograph of an astronaut riding a horse"  # all prompts are padded to the same length
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
    """Writes latency.json: median seconds per batch, in total and for text encoder, denoiser and decoder.

    Args:
        denoiser: teacher/denoiser.safetensors or distill/generator.safetensors.
        text_encoder: if the denoiser's condition is text.
        autoencoder: if the denoiser works on latents.
        experiment: name of the experiment, for the file.
        solver, weights, guidance, calls: as in stage sample.
        batch_sizes: batch sizes to measure; `value` is that of the first.
        repeats, warmup: number of measured batches, and of unmeasured batches before them.
        dtype: float32, bfloat16 or float16, for weights and passes.

    Raises:
        ValueError: damaged inputs, an unknown dtype, or a text encoder or autoencoder that is missing or not needed.
    """
    spec = {name: value for name, value in locals().items() if not isinstance(value, Path | None)}
    if dtype not in DTYPES:
        raise ValueError(f"latency.dtype {dtype!r} is not one of {list(DTYPES)}")
    torch_setup.set_threads(threads)
    with record.writing(output):
        inputs = record.check_inputs(denoiser=denoiser, text_encoder=text_encoder, autoencoder=autoencoder)
        target = torch_setup.choose_device(device)
        sampler = Sampler(denoiser, solver=solver, weights=weights, device=target, guidance=guidance, calls=calls)
        spec["solver"] = solver if solver["name"] == "student" else sampler.solver
        for name, path, key in (("text-encoder", text_encoder, "text"), ("autoencoder", autoencoder, "image_shape")):
            if (path is None) == (key in sampler.metadata):
                raise ValueError(f"--{name} must be given if {denoiser} has {key}, and only then, but it is {path}")
        chain = Chain(
            sampler.denoiser,
            loading.load_text(text_encoder).to(target) if text_encoder else None,
            loading.load_codec(autoencoder).to(target) if autoencoder else None,
            DTYPES[dtype],
            solver=sampler.solver,
            shape=sampler.shape,
            num_classes=sampler.num_classes,
            device=target,
        )
        batches = [chain.measure(size, repeats=repeats, warmup=warmup) for size in batch_sizes]
        for batch in batches:
            reporting.log(
                f"batch of {batch['batch_size']}: {batch['seconds']:.4g} s, {batch['images_per_second']:.4g} images/s"
            )
        score = {
            **record.provenance("latency", spec, inputs),
            "experiment": experiment,
            "metric": "latency",
            "value": batches[0]["seconds"],
            "unit": "s",
            "network_calls": chain.network_calls,
            "device": torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
            "batches": batches,
        }
        score_files.write(output, score, inputs)


class Chain:
    """Text encoder, denoiser and decoder, one after the other.

    Attributes:
        network_calls: number of calls in the last measured batch.
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
        """All modules must be on `device`; their weights are cast in place to `dtype` (None: they stay float32)."""
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
    def measure(self, size: int, *, repeats: int, warmup: int) -> dict[str, Any]:
        """Median seconds of a batch and of each part, the share of each part in their sum, and images per second.

        All batches have the same noise; one that is never measured draws what is needed between calls.
        """
        draws = SeededDraws(range(size), self.shape, num_classes=self.num_classes)
        noise, label = draws.noise.to(self.device), draws.label.to(self.device)
        fresh = functools.cache(lambda number: draws.fresh(number).to(self.device))
        times = [self._batch(noise, label, fresh) for _ in range(max(warmup, 1) + repeats)][-repeats:]
        parts = {name: statistics.median(batch[name] for batch in times) for name in times[0]}
        seconds = parts.pop("batch")
        total = sum(parts.values())
        return {
            "batch_size": size,
            "seconds": seconds,
            "fastest": min(batch["batch"] for batch in times),
            "images_per_second": size / seconds,
            "parts": parts,
            "shares": {name: value / total for name, value in parts.items()},
        }

    def _batch(self, noise: Tensor, label: Tensor, fresh: Callable[[int], Tensor]) -> dict[str, float]:
        """Seconds of each part, and of the batch."""
        times: dict[str, float] = {}
        begin = self._now()
        condition, latent = label, noise
        if (text := self.text) is not None:
            condition = self._time(times, "text_encoder", lambda: text.encode([PROMPT] * len(noise)).states)
        image, self.network_calls = self._time(
            times, "denoiser", lambda: solve(self.denoiser, latent, condition, self.solver, fresh)
        )
        if (codec := self.codec) is not None:
            self._time(times, "decoder", lambda: codec.decode(image))
        times["batch"] = self._now() - begin
        return times

    def _time(self, times: dict[str, float], name: str, part: Callable[[], Any]) -> Any:
        begin = self._now()
        result = part()
        times[name] = self._now() - begin
        return result

    def _now(self) -> float:
        """The time in seconds, read after the GPU has finished its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


if __name__ == "__main__":
    job.main(run, Latency, Sample)
