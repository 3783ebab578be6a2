"""Trains a classifier whose features score images. The weights are kept in git; no rule makes them.

python -m dmd.stages.feature_network --output workflow/resources/fashion64.safetensors \
    --spec "$(cat workflow/resources/fashion64.json)"

It is trained on the training split only. The same spec gives the same bytes on one machine; on another machine the
last bits may differ, so the configuration pins the digest of the tracked file.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dmd.data import dataset as datasets
from dmd.jobs import job, reporting, torch_setup
from dmd.metrics.features import CLASSIFIERS, Classifier
from dmd.provenance import tensor_files

PASS = 1000  # images at once when the accuracy is measured


def run(
    *,
    output: Path,
    kind: str = "digits32",
    dataset: dict[str, Any],
    updates: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    label_smoothing: float,
    shift: float,
    rotation: float,
    scaling: float,
    seed: int,
    threads: int,
) -> None:
    """Trains with AdamW, a one-cycle schedule, and randomly transformed images.

    Args:
        output: safetensors file of the weights; its metadata holds these arguments and the accuracy on each split.
        kind: digits32 or fashion64.
        dataset: section `dataset` of an experiment.
        shift: largest shift along each axis, in pixels.
        rotation: largest rotation, in degrees.
        scaling: largest change of scale, relative to 1.
    """
    spec = {name: value for name, value in locals().items() if name not in ("output", "kind")}
    torch_setup.set_threads(threads)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    training = datasets.load(dataset, "training")
    network = CLASSIFIERS[kind]()
    optimiser = torch.optim.AdamW(network.parameters(), weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=updates)
    for _ in reporting.progress(range(updates), total=updates, unit="updates"):
        batch = torch.randint(len(training), (batch_size,), generator=generator)
        logits = network.logits(_transform(training.batch(batch), shift, rotation, scaling, generator))
        loss = functional.cross_entropy(logits, training.labels[batch], label_smoothing=label_smoothing)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    accuracy = {split: _accuracy(network, dataset, split) for split in datasets.SPLITS}
    reporting.log(f"{kind}: accuracy {accuracy}")
    tensor_files.save(output, network.state_dict(), {"kind": kind, "spec": spec, "accuracy": accuracy})


def _transform(image: Tensor, shift: float, rotation: float, scaling: float, generator: torch.Generator) -> Tensor:
    """Images (B, C, H, W), each shifted, rotated and scaled at random; uncovered pixels become black (-1)."""

    def uniform(largest: float) -> Tensor:
        return (torch.rand(len(image), generator=generator) * 2 - 1) * largest

    angle, scale = uniform(math.radians(rotation)), 1 + uniform(scaling)
    across, down = uniform(2 * shift / image.shape[3]), uniform(2 * shift / image.shape[2])
    cosine, sine = scale * angle.cos(), scale * angle.sin()
    rows = [torch.stack([cosine, -sine, across], 1), torch.stack([sine, cosine, down], 1)]
    grid = functional.affine_grid(torch.stack(rows, 1), list(image.shape), align_corners=False)
    return functional.grid_sample(image + 1, grid, align_corners=False) - 1


def _accuracy(network: Classifier, dataset: dict[str, Any], split: str) -> float:
    """Fraction of the split's images whose predicted class is their label."""
    data = datasets.load(dataset, split)
    with torch.no_grad():
        predicted = torch.cat([network(data.batch(part))[1] for part in torch.arange(len(data)).split(PASS)])
    return float((predicted == data.labels).double().mean())


if __name__ == "__main__":
    job.main(run)
