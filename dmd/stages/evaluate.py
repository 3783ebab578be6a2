"""Stage evaluate: every score of an experiment's samples, from features alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from dmd.artifacts import feature_blocks, record
from dmd.artifacts import tensors as tensor_files
from dmd.artifacts.feature_blocks import Repetition
from dmd.metrics.classes import class_counts, class_scores
from dmd.metrics.frechet import frechet_distance
from dmd.metrics.kernel import NUM_SUBSETS, kernel_distance, subset_kernel_distances
from dmd.metrics.memorisation import QUANTILE, memorisation
from dmd.metrics.moments import Moments
from dmd.metrics.prdc import prdc
from dmd.stages import stage

Real = dict[str, Tensor]  # {split}.features, .predicted, .mean, .covariance; split is training or held_out


def run(
    *,
    reference: Path,
    features: list[Path],
    fid: Path,
    kid: Path,
    prdc: Path,
    classes: Path,
    memorisation: Path,
    experiment: str,
    neighbours: int,
    kid_subset: int | None,
    seed: int,
) -> None:
    """Writes five score files: Frechet and kernel distance, precision and kin, class counts, memorisation.

    Args:
        reference: features of real data. Scores compare with its held-out images; those against the training
            images stand beside them.
        features: blocks of features that make up whole repetitions.
        experiment: its name, for the files.
        neighbours: k of precision, recall, density and coverage.
        kid_subset: size of the 100 random subsets whose kernel distances are averaged; null = all at once.
        seed: of the subsets.

    Raises:
        ValueError: damaged or missing blocks, or blocks made with another reference.
    """
    stage.set_threads(1)
    spec = {"experiment": experiment, "neighbours": neighbours, "kid_subset": kid_subset, "seed": seed}
    with record.exclusive(fid):
        inputs = record.check_inputs(reference=reference, features=features)
        digest = inputs["reference"][str(reference)]
        repetitions, shared = feature_blocks.group(features, reference_sha256=digest)
        real, facts = tensor_files.load(reference)
        head = {
            **record.provenance("evaluate", spec, inputs),
            **_head(repetitions, shared, facts, reference),
            "experiment": experiment,
        }
        scores = {
            fid: _frechet(repetitions, real, facts),
            kid: _kernel(repetitions, real, kid_subset, seed),
            prdc: _prdc(repetitions, real, neighbours),
            classes: _classes(repetitions, real, facts["num_classes"]),
            memorisation: _memorisation(repetitions, real),
        }
        for path, score in scores.items():
            score = {**head, **score, "metric": score["metric"].format(name=facts["features"]["name"])}
            with record.publish(path, stage="evaluate", inputs=inputs) as temporary:
                temporary.write_text(json.dumps(score, sort_keys=True, indent=1, allow_nan=False) + "\n")


def _head(
    repetitions: Sequence[Repetition], shared: dict[str, Any], facts: dict[str, Any], reference: Path
) -> dict[str, Any]:
    """What all score files say: how many samples of which seeds, compared with what, in which features."""
    if facts["floor"]["num_samples"] != shared["num_samples"]:
        raise ValueError(
            f"{reference} has the floor of {facts['floor']['num_samples']} samples, but there are "
            f"{shared['num_samples']}"
        )
    return {
        "num_samples": shared["num_samples"],
        "network_calls": shared["network_calls"],
        "first_seeds": [repetition.first_seed for repetition in repetitions],
        "features": facts["features"],
        "reference": {"name": f"{facts['dataset']['name']}-held-out", "sha256": facts["dataset"]["sha256"]},
        "protocol": {**shared["protocol"], "labels": shared["labels"]},
    }


def _frechet(repetitions: Sequence[Repetition], real: Real, facts: dict[str, Any]) -> dict[str, Any]:
    """Frechet distances to the held-out images and, under `training`, to the training images."""
    values: dict[str, list[float]] = {"held_out": [], "training": []}
    for repetition in repetitions:
        count, total, outer = repetition.sums("count", "sum", "outer")
        moments = Moments(int(count), total, outer)
        for split, found in values.items():
            mean, covariance = real[f"{split}.mean"], real[f"{split}.covariance"]
            found.append(frechet_distance(moments.mean, moments.covariance, mean, covariance))
    return {
        "metric": "fd-{name}",
        **_spread(values["held_out"]),
        "training": _spread(values["training"]),
        "floor": {name: facts["floor"][name] for name in ("mean", "std", "num")},
        "real_distance": facts["real_distance"],
    }


def _kernel(repetitions: Sequence[Repetition], real: Real, size: int | None, seed: int) -> dict[str, Any]:
    """Kernel distances, and the one of the training images (`real_distance`)."""
    held_out = real["held_out.features"]
    values, stds = [], []
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        if size is None:
            values.append(kernel_distance(generated, held_out))
        else:
            distances = subset_kernel_distances(generated, held_out, size=size, seed=seed)
            values.append(float(distances.mean()))
            stds.append(float(distances.std()))
    return {
        "metric": "kid-{name}",
        **_spread(values),
        "subsets": None if size is None else {"size": size, "num": NUM_SUBSETS, "stds": stds},
        "real_distance": kernel_distance(real["training.features"], held_out),
    }


def _prdc(repetitions: Sequence[Repetition], real: Real, neighbours: int) -> dict[str, Any]:
    """Precision, recall, density, coverage; `real`: the same of as many training images in place of samples."""
    held_out = real["held_out.features"]
    found, num_samples = [], 0
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        found.append(prdc(generated, held_out, neighbours=neighbours))
        num_samples = len(generated)
    training = real["training.features"][:num_samples]
    return {
        "metric": "prdc-{name}",
        "neighbours": neighbours,
        **_spreads(found),
        "real": {"num_samples": len(training), **prdc(training, held_out, neighbours=neighbours)},
    }


def _classes(repetitions: Sequence[Repetition], real: Real, num_classes: int) -> dict[str, Any]:
    """Counts of predicted classes, and `class_scores`; all null where the features predict no classes."""
    if num_classes == 0:
        names = ("counts", "real_counts", "real", "uniform", "requested", "accuracy")
        return {"metric": "classes-{name}", "num_classes": 0, **dict.fromkeys(names)}
    real_counts = class_counts(real["held_out.predicted"], num_classes=num_classes)
    counts, found = [], []
    for repetition in repetitions:
        predicted, label = repetition.load("predicted", "label")
        counts.append(class_counts(predicted, num_classes=num_classes).tolist())
        found.append(class_scores(predicted, label, real_counts))
    return {
        "metric": "classes-{name}",
        "num_classes": num_classes,
        "counts": counts,
        "real_counts": real_counts.tolist(),
        **_spreads(found),
    }


def _memorisation(repetitions: Sequence[Repetition], real: Real) -> dict[str, Any]:
    """The three-sample test; see `memorisation`."""
    training, held_out = real["training.features"], real["held_out.features"]
    found = []
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        found.append(memorisation(generated, training, held_out))
    return {"metric": "memorisation-{name}", "nearer_than": QUANTILE, **_spreads(found)}


def _spreads(found: Sequence[Mapping[str, float | None]]) -> dict[str, Any]:
    """`_spread` of each score over the repetitions; null where it is not known."""
    spreads = {}
    for name in found[0]:
        values = [value for scores in found if (value := scores[name]) is not None]
        spreads[name] = _spread(values) if values else None
    return spreads


def _spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean (`value`), all values, smallest, and standard deviation (divisor num - 1; null of one)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "values": list(values), "min": min(values), "std": std}


if __name__ == "__main__":
    stage.main(run)
