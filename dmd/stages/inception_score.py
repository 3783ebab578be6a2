"""Stage inception_score: the Inception Score of an experiment's samples, from the same features as its FID."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from dmd.config.sections import InceptionScore
from dmd.data.feature_blocks import Repetition
from dmd.importers import feature_files
from dmd.jobs import job, torch_setup
from dmd.metrics.inception_score import inception_scores
from dmd.provenance import record
from dmd.report import score_files, scores

HEAD = "fc.weight"  # (1008, 2048); as in torch-fidelity, the bias is left out


def run(
    *,
    reference: Path,
    features: list[Path],
    network: Path,
    output: Path,
    experiment: str,
    splits: int,
    seed: int,
) -> None:
    """Writes inception_score.json: for each repetition the mean and the standard deviation over splits.

    Args:
        reference: the file that the features were made with.
        features: blocks of Inception features that make up whole repetitions.
        network: the weights that made the features; their last layer gives the class probabilities.
        experiment: name of the experiment, for the file.
        splits, seed: see `inception_scores`.

    Raises:
        ValueError: damaged or missing blocks, or features of another network.
    """
    spec = {"experiment": experiment, "splits": splits, "seed": seed}
    torch_setup.set_threads(1)
    with record.writing(output):
        inputs = record.check_inputs(reference=reference, features=features, network=network)
        repetitions, real, head = scores.load_features(reference, features, inputs)
        digest = inputs["network"][str(network)]
        if real.facts["features"] != {"name": "inception", "sha256": digest}:
            raise ValueError(f"{network} has sha256 {digest}, but {reference} holds features of {head['features']}")
        classifier = feature_files.weights(network, "inception")[HEAD]
        means, stds = [], []
        for repetition in repetitions:
            over_splits = scores.spread(
                inception_scores(
                    _logits(repetition, classifier), num_samples=head["num_samples"], num_splits=splits, seed=seed
                )
            )
            means.append(over_splits["value"])
            stds.append(over_splits["std"])
        score = {"metric": real.metric("is"), **scores.spread(means), "splits": {"num": splits, "stds": stds}}
        head |= {**record.provenance("inception_score", spec, inputs), "experiment": experiment}
        score_files.write(output, {**head, **score}, inputs)


def _logits(repetition: Repetition, classifier: Tensor) -> Iterator[Tensor]:
    for (features,) in repetition.blocks("features"):
        yield features @ classifier.T


if __name__ == "__main__":
    job.main(run, InceptionScore)
