"""Stage clip: the CLIP score of an experiment's samples, from the cosine similarities that stage features wrote."""

from __future__ import annotations

from pathlib import Path

from dmd.data import feature_blocks
from dmd.jobs import job, torch_setup
from dmd.metrics.clip import metric_name
from dmd.provenance import record, tensor_files
from dmd.report import score_files, scores


def run(*, features: list[Path], output: Path, experiment: str) -> None:
    """Writes clip.json: the mean cosine similarity of images and captions (not scaled), also per repetition.

    Args:
        features: blocks with cosine similarities that make up whole repetitions.
        experiment: name of the experiment, for the file.

    Raises:
        ValueError: damaged or missing blocks, or blocks without cosines.
    """
    spec = {"experiment": experiment}
    torch_setup.set_threads(1)
    with record.writing(output):
        inputs = record.check_inputs(features=features)
        reference = tensor_files.load_metadata(features[0])["inputs"]["reference"] if features else ""
        repetitions, shared = feature_blocks.group(features, reference_sha256=reference)
        if (clip := shared["clip"]) is None:
            raise ValueError(f"{features[0]} has no CLIP cosine similarities: it was made without evaluate.clip")
        means = [float(repetition.load("clip")[0].double().mean()) for repetition in repetitions]
        score = {
            **record.provenance("clip", spec, inputs),
            "experiment": experiment,
            "metric": metric_name(clip),
            **scores.spread(means),
            "network": {name: clip[name] for name in ("name", "sha256")},
            "prefix": clip["prefix"],
            "resize": clip.get("resize"),
            "num_samples": shared["num_samples"],
            "first_seeds": [repetition.first_seed for repetition in repetitions],
            "network_calls": shared["network_calls"],
        }
        score_files.write(output, score, inputs)


if __name__ == "__main__":
    job.main(run)
