"""Small IDX files through the whole chain: a guided network of patches, its tracked file, a student, scores, ONNX."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import dmd
from dmd import config
from dmd.config import Experiments
from dmd.config.sections import Evaluate, Pairs, Reference, Sample
from dmd.data.image_shards import ImageReader
from dmd.jobs import command_line
from dmd.metrics.features import Fashion64
from dmd.provenance import files, tensor_files
from dmd.stages import (
    distill,
    evaluate,
    export_onnx,
    features,
    images,
    manifest,
    pairs,
    reference,
    sample,
    teacher,
    teacher_file,
)
from tests.idx_files import write_folder

UNET = {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [7], "patch": 2}
SECTIONS = {"pairs": Pairs, "reference": Reference, "sample": Sample, "evaluate": Evaluate}


def configuration(folder: Path, classifier: Path) -> dict[str, Any]:
    """Experiments of the teacher's training and of the distillation from its file."""
    training = {
        "method": {"name": "denoising", "batch_size": 8, "label_dropout": 0.2, "phases": [{"updates": 8}]},
        "schedule": {"warmup": 0},
    }
    trained = {
        "device": "cpu",
        "dataset": {"kind": "idx", "folder": str(write_folder(folder / "idx", 24, 12, side=28)), "shard_size": 18},
        "teacher": {"kind": "train", "network": UNET, "training": training},
    }
    small = {
        "extends": "trained",
        "teacher": {"kind": "file", "file": str(folder / "teacher.safetensors")},
        "reference": {
            "features": {"kind": "fashion64", "file": str(classifier), "sha256": files.sha256(classifier)},
            "protocol": {"quantise": 256},
            "floor_draws": 2,
        },
        "pairs": {"num_pairs": 4, "shard_size": 4, "guidance": 2.0, "solver": {"name": "heun", "steps": 2}},
        "distill": {
            "method": {
                "name": "dmd",
                "guidance": 2.0,
                "regression_distance": {"kind": "l2"},
                "matching_batch_size": 2,
                "regression_batch_size": 2,
                "phases": [{"updates": 8}],
            },
            "monitor": {"every": 4, "num_images": 8, "seeds": 4},
        },
        "sample": {"num_samples": 8, "shard_size": 8},
        "evaluate": {"neighbours": 2},
    }
    return {"experiments": {"trained": trained, "small": small}}


class Chain:
    """Runs stages with the specs of a configuration, as rules do."""

    def __init__(self, folder: Path, configuration: dict[str, Any]) -> None:
        self.folder, self.experiments = folder, Experiments(config.resolve(configuration))

    def path(self, name: str, rule: str, number: int = 0) -> Path:
        return self.folder / self.experiments.path(name, rule, (0, 0), number)

    def run(self, stage: ModuleType, name: str, rule: str, **paths: Any) -> None:
        block = (0, 0) if rule in ("pairs", "sample") else None
        _, parameters = command_line.parameters(stage.run)
        sections = [SECTIONS[rule]] if rule in SECTIONS else []
        spec = self.experiments.spec(name, rule, block)
        stage.run(**paths, **command_line.arguments(spec, parameters, tuple(sections)))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    folder = tmp_path_factory.mktemp("idx")
    classifier = folder / "classifier.safetensors"
    tensor_files.save(classifier, Fashion64().state_dict(), {"kind": "fashion64"})
    chain = Chain(folder, configuration(folder, classifier))
    data, first, second = (
        chain.path(*each) for each in (("trained", "images"), ("trained", "teacher"), ("small", "teacher"))
    )
    chain.run(images, "trained", "images", output=data)
    chain.run(teacher, "trained", "teacher", output=first, table=first.with_name("log.parquet"), images=data)
    teacher_file.run(teacher=first, output=folder / "teacher.safetensors", hours=0.1)
    table = second.with_name("log.parquet")
    chain.run(teacher, "small", "teacher", output=second, table=table, source=folder / "teacher.safetensors")
    real, block, drawn = (chain.path("small", rule) for rule in ("reference", "pairs", "sample"))
    chain.run(reference, "small", "reference", output=real, images=data, network=classifier)
    chain.run(pairs, "small", "pairs", output=block, teacher=second)
    rows, student = chain.path("small", "pairs_manifest"), chain.path("small", "distill")
    chain.run(manifest, "small", "pairs_manifest", output=rows, blocks=[block])
    table = student.with_name("log.parquet")
    given = {"teacher": second, "manifest": rows, "network": classifier}
    chain.run(distill, "small", "distill", output=student, table=table, **given)
    chain.run(sample, "small", "sample", output=drawn, denoiser=student)
    measured = chain.path("small", "features")
    chain.run(features, "small", "features", output=measured, block=drawn, reference=real, network=classifier)
    scores = {name: folder / "small" / f"{name}.json" for name in ("fid", "kid", "prdc", "classes", "memorisation")}
    chain.run(evaluate, "small", "evaluate", reference=real, features=[measured], **scores)
    return chain


def test_splits_of_the_files_are_the_splits_of_the_images(finished: Chain):
    splits = [ImageReader(finished.path("small", "images"), split) for split in ("training", "held_out")]
    assert [len(each) for each in splits] == [24, 12] and splits[0].shape == (1, 28, 28)
    assert finished.path("small", "images").parent.parent.name == "trained"


def test_score_names_features_data_and_calls(finished: Chain):
    score = json.loads((finished.folder / "small" / "fid.json").read_text())
    assert score["metric"] == "fd-fashion64" and score["network_calls"] == 1 and score["value"] > 0
    assert score["reference"]["name"] == "idx-held-out"


def test_student_of_patches_draws_and_goes_through_onnx(finished: Chain):
    student = finished.path("small", "distill")
    assert dmd.load(student, device="cpu")(3, label=2).shape == (3, 1, 28, 28)
    export_onnx.run(generator=student, output=finished.folder / "generator.onnx")
    metadata = tensor_files.load_metadata(student)
    assert metadata["network"]["patch"] == 2 and (finished.folder / "generator.onnx").stat().st_size > 0


def test_teacher_of_a_file_can_be_guided(finished: Chain):
    path = finished.path("small", "teacher")
    plain, guided = (dmd.load(path, device="cpu", steps=2, guidance=each)(2, label=1) for each in (1.0, 3.0))
    assert (plain - guided).abs().max() > 1e-4
