"""Stage evaluate: the scores of an experiment's samples, from their features."""

from __future__ import annotations

from pathlib import Path

from dmd.config.sections import Evaluate
from dmd.jobs import job, torch_setup
from dmd.provenance import record, tensor_files
from dmd.report import score_files, scores


def run(
    *,
    reference: Path,
    features: list[Path],
    fid: Path,
    kid: Path,
    prdc: Path,
    classes: Path,
    memorisation: Path,
    teacher: Path | None = None,
    experiment: str,
    neighbours: int,
    kid_subset: int | None,
    seed: int,
) -> None:
    """Writes five score files: Frechet distance, kernel distance, precision and recall, class counts, memorisation.

    Args:
        reference: features, or only moments, of real data. All scores compare with the split that it names; some also
            compare with the other split. With only moments, scores that need features are null.
        features: blocks of features that make up whole repetitions.
        teacher: the teacher of the samples, to check that it was trained on the reference's images; None: no check.
        experiment: name of the experiment, for the files.
        neighbours: k of precision, recall, density and coverage.
        kid_subset: size of the 100 random subsets whose kernel distances are averaged (torch-fidelity's default is
            1000); None: one distance of all samples.
        seed: seed of the random subsets.

    Raises:
        ValueError: damaged or missing blocks, blocks made with another reference, or a teacher trained on other images
            than those of the reference.
    """
    paths = {"fid": fid, "kid": kid, "prdc": prdc, "classes": classes, "memorisation": memorisation}
    spec = {"experiment": experiment, "neighbours": neighbours, "kid_subset": kid_subset, "seed": seed}
    torch_setup.set_threads(1)
    with record.writing(fid):
        inputs = record.check_inputs(reference=reference, features=features, teacher=teacher)
        repetitions, real, head = scores.load_features(reference, features, inputs)
        if teacher is not None:
            check_images(teacher, reference)
        head |= {**record.provenance("evaluate", spec, inputs), "experiment": experiment}
        contents = {path: {**head, **scores.score(name, repetitions, real, spec)} for name, path in paths.items()}
        for path, score in contents.items():
            score_files.write(path, score, inputs)


def check_images(teacher: Path, reference: Path) -> None:
    """ValueError if a teacher was trained on other images than those of a reference."""
    trained = tensor_files.load_metadata(teacher)["dataset_sha256"]
    measured = tensor_files.load_metadata(reference)["dataset"]["sha256"]
    if trained != measured:
        raise ValueError(
            f"{teacher} was trained on images of sha256 {trained}, but {reference} was made of images of sha256 "
            f"{measured}: a file was overwritten in between; run snakemake again, which makes both anew"
        )


if __name__ == "__main__":
    job.main(run, Evaluate)
