"""The scores that stage evaluate writes, one function each, see `SCORES`, and the features that they need."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from dmd.data import feature_blocks
from dmd.data.feature_blocks import Repetition
from dmd.metrics.classes import class_counts, class_scores
from dmd.metrics.frechet import frechet_distance
from dmd.metrics.inception import metric_name
from dmd.metrics.kernel import NUM_SUBSETS, kernel_distance, subset_kernel_distances
from dmd.metrics.memorisation import QUANTILE, memorisation
from dmd.metrics.moments import Moments
from dmd.metrics.neighbours import neighbour_radii
from dmd.metrics.prdc import prdc
from dmd.provenance import record, tensor_files

Score = dict[str, Any]
REASONS = {  # `Reference.against` -> why some scores cannot be computed
    "moments": "the reference holds moments only, no features of real images",
    "all": "the reference has no training images apart from those that samples are compared with",
}


@dataclass(frozen=True)
class Reference:
    """What samples are compared with. Its tensors are read on demand.

    Attributes:
        facts: metadata of the file.
    """

    path: Path
    facts: dict[str, Any]

    @property
    def against(self) -> str:
        """What samples are compared with: held_out, training, all (images without a training split) or moments."""
        return self.facts.get("against", "held_out")

    @property
    def beside(self) -> str | None:
        """The split that samples are not compared with; None if there is none (moments, all)."""
        return {"held_out": "training", "training": "held_out"}.get(self.against)

    def metric(self, score: str) -> str:
        """Name of a score with the features of this reference; for example, only the released Inception gives `fid`."""
        return metric_name(score, self.facts["features"])

    def load(self, split: str | None, *names: str) -> list[Tensor]:
        """The named tensors of a split: features, labels, predicted, mean or covariance."""
        return tensor_files.load_some(self.path, *(f"{split}.{name}" for name in names))


def load_features(
    reference: Path, features: Sequence[Path], inputs: record.Inputs
) -> tuple[list[Repetition], Reference, dict[str, Any]]:
    """Repetitions, reference, and the fields that all score files share, such as number and seeds of samples."""
    digest = inputs["reference"][str(reference)]
    repetitions, shared = feature_blocks.group(features, reference_sha256=digest)
    real = Reference(reference, tensor_files.load_metadata(reference))
    facts = real.facts
    if facts["floor"]["num_samples"] != shared["num_samples"]:
        raise ValueError(
            f"{reference} has a floor for {facts['floor']['num_samples']} samples, but there are "
            f"{shared['num_samples']} per repetition"
        )
    split = "" if real.beside is None else "-" + real.against.replace("_", "-")
    return (
        repetitions,
        real,
        {
            "num_samples": shared["num_samples"],
            "network_calls": shared["network_calls"],
            "first_seeds": [repetition.first_seed for repetition in repetitions],
            "features": facts["features"],
            "reference": {"name": facts["dataset"]["name"] + split, "sha256": facts["dataset"]["sha256"]},
            "protocol": {**shared["protocol"], "labels": shared["labels"]},
        },
    )


def frechet(repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """Frechet distances to the split that samples are compared with; under the other split's name those to it."""
    splits = [real.against, *([real.beside] if real.beside else [])]
    compared = {split: real.load(split, "mean", "covariance") for split in splits}
    values: dict[str, list[float]] = {split: [] for split in splits}
    for repetition in repetitions:
        count, total, outer = repetition.sums("count", "sum", "outer")
        moments = Moments(int(count), total, outer)
        for split, distances in values.items():
            distances.append(frechet_distance(moments.mean, moments.covariance, *compared[split]))
    floor = real.facts["floor"]
    return {
        "metric": real.metric("fd"),
        **spread(values[real.against]),
        **({real.beside: spread(values[real.beside])} if real.beside else {}),
        "floor": {name: floor[name] for name in ("kind", "mean", "std", "num") if name in floor},
        "real_distance": real.facts["real_distance"],
    }


def kernel(repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """Kernel distances, and `real_distance` between training and held-out images (null if there is no split)."""
    size, seed = settings["kid_subset"], settings["seed"]
    (compared,) = real.load(real.against, "features")
    values, stds = [], []
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        if size is None:
            values.append(kernel_distance(generated, compared))
        else:
            distances = subset_kernel_distances(generated, compared, size=size, seed=seed)
            values.append(float(distances.mean()))
            stds.append(float(distances.std()))
    other = real.load(real.beside, "features")[0] if real.beside else None
    return {
        "metric": real.metric("kid"),
        **spread(values),
        "subsets": None if size is None else {"size": size, "num": NUM_SUBSETS, "stds": stds},
        "real_distance": None if other is None else kernel_distance(other, compared),
    }


def precision_recall(repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """Precision, recall, density, coverage; `real`: the same of up to as many images of the other split, or null."""
    neighbours = settings["neighbours"]
    (compared,) = real.load(real.against, "features")
    radii = neighbour_radii(compared, neighbours=neighbours)
    values, num_samples = [], 0
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        values.append(prdc(generated, compared, neighbours=neighbours, real_radii=radii))
        num_samples = len(generated)
    other = real.load(real.beside, "features")[0][:num_samples] if real.beside else None
    return {
        "metric": real.metric("prdc"),
        "neighbours": neighbours,
        **spreads(values),
        "real": None
        if other is None
        else {"num_samples": len(other), **prdc(other, compared, neighbours=neighbours, real_radii=radii)},
    }


def classes(repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """Counts of predicted classes, and `class_scores`; all null where the features predict no classes."""
    num_classes = real.facts["num_classes"]
    if num_classes == 0:
        names = ("counts", "real_counts", "real", "uniform", "requested", "accuracy")
        return {"metric": real.metric("classes"), "num_classes": 0, **dict.fromkeys(names)}
    real_counts = class_counts(*real.load(real.against, "predicted"), num_classes=num_classes)
    counts, values = [], []
    for repetition in repetitions:
        predicted, label = repetition.load("predicted", "label")
        counts.append(class_counts(predicted, num_classes=num_classes).tolist())
        values.append(class_scores(predicted, label, real_counts))
    return {
        "metric": real.metric("classes"),
        "num_classes": num_classes,
        "counts": counts,
        "real_counts": real_counts.tolist(),
        **spreads(values),
    }


def copying(repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """The three-sample test for copies of training images; see `memorisation`."""
    training, held_out = (real.load(split, "features")[0] for split in ("training", "held_out"))
    values = []
    for repetition in repetitions:
        (generated,) = repetition.load("features")
        values.append(memorisation(generated, training, held_out))
    return {"metric": real.metric("memorisation"), "nearer_than": QUANTILE, **spreads(values)}


@dataclass(frozen=True)
class Kind:
    """One score file: the function that computes it, and the name of its metric.

    Attributes:
        not_against: values of `Reference.against` with which the score cannot be computed.
        null_keys: keys that are null in that case.
    """

    score: Callable[[Sequence[Repetition], Reference, Mapping[str, Any]], Score]
    metric: str
    not_against: tuple[str, ...] = ()
    null_keys: tuple[str, ...] = ()


SCORES = {
    "fid": Kind(frechet, "fd"),
    "kid": Kind(kernel, "kid", ("moments",), ("value", "values", "min", "std", "subsets", "real_distance")),
    "prdc": Kind(precision_recall, "prdc", ("moments",), ("precision", "recall", "density", "coverage", "real")),
    "classes": Kind(classes, "classes"),
    "memorisation": Kind(
        copying, "memorisation", ("moments", "all"), ("auc", "z", "nearer", "distance", "held_out_distance")
    ),
}


def score(name: str, repetitions: Sequence[Repetition], real: Reference, settings: Mapping[str, Any]) -> Score:
    """Content of the score file `{name}.json`: nulls and a reason if this reference does not allow the score.

    Args:
        settings: neighbours, kid_subset and seed of stage evaluate.
    """
    kind = SCORES[name]
    if real.against in kind.not_against:
        return {"metric": real.metric(kind.metric), **dict.fromkeys(kind.null_keys), "reason": REASONS[real.against]}
    return kind.score(repetitions, real, settings)


def spreads(repetitions: Sequence[Mapping[str, float | None]]) -> Score:
    """`spread` of each score over the repetitions; null where no repetition has a value."""
    result: Score = {}
    for name in repetitions[0]:
        values = [value for scores in repetitions if (value := scores[name]) is not None]
        result[name] = spread(values) if values else None
    return result


def spread(values: Sequence[float]) -> Score:
    """Mean (`value`), all values, smallest, and standard deviation (divisor num - 1; null for a single value)."""
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"value": statistics.fmean(values), "values": list(values), "min": min(values), "std": std}
