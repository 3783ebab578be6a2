"""Images of the teacher that a student is compared with during its training."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from dmd.config.training import TrainingCompute
from dmd.models.compute import Compute
from dmd.models.loading import DenoiserFile
from dmd.sampling.default_solver import default_solver, resolve_solver
from dmd.sampling.sampler import Sampler


@dataclass(frozen=True)
class TeacherImages:
    """Draws with the default solver of `dmd.load`; the teacher is in memory only meanwhile.

    Attributes:
        guidance: of the images that the student learns.
        batch_size: images in a pass.
    """

    file: DenoiserFile
    guidance: float
    compute: TrainingCompute
    device: torch.device
    batch_size: int

    @property
    def sigma(self) -> float:
        """Noise level that it starts from."""
        facts = dict(self.file.facts)
        return resolve_solver(default_solver(facts, None, None, self.file.path), facts, self.file.path)[1]

    def __call__(self, seeds: Sequence[int], label: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Batches of images, on the CPU, and the passes of the network per image.

        Args:
            label: labels int64 (N,), or text states (N, L, E).
        """
        compute = cast(Compute, self.compute.model_dump(include={"dtype", "channels_last"}))
        options = {"device": self.device, "batch_size": self.batch_size, "guidance": self.guidance}
        sampler = Sampler(self.file.path, solver=None, compute=compute, **options)  # type: ignore[arg-type]
        text = label.ndim == 3
        batches = sampler.batches(seeds, fixed_labels=None if text else label, states=label if text else None)
        for batch in batches:
            yield batch.image, batch.network_calls * (2 if sampler.guided else 1)
