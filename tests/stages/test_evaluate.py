"""Stage evaluate: the five score files of good, copied and broken samples."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dmd.data import dataset as datasets
from dmd.metrics.frechet import moments_distance
from dmd.metrics.moments import Moments
from dmd.provenance import files, tensor_files
from dmd.stages import evaluate
from tests.stages.scored import MIXTURE, draw_points, make_features, make_reference

NAMES = ("fid", "kid", "prdc", "classes", "memorisation")
NUMBERS: dict[str, Any] = {"experiment": "points", "neighbours": 3, "kid_subset": None, "seed": 0}


def scored(folder: Path, real: Path, blocks: list[Path], **changes: Any) -> dict[str, Any]:
    outputs = {name: folder / f"{name}.json" for name in NAMES}
    evaluate.run(reference=real, features=blocks, **outputs, **(NUMBERS | changes))
    return {name: json.loads(path.read_text()) for name, path in outputs.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("scores")


@pytest.fixture(scope="module")
def real(folder):
    return make_reference(folder / "reference.safetensors")


@pytest.fixture(scope="module")
def blocks(folder, real):
    """Two repetitions of fresh points, the first in two blocks."""
    points = draw_points(400, seed=1)
    return [
        make_features(folder, real, points[start:stop], first=start)
        for start, stop in ((200, 400), (0, 150), (150, 200))
    ]


@pytest.fixture(scope="module")
def scores(folder, real, blocks):
    return scored(folder, real, blocks)


def test_frechet_distance_is_that_of_all_blocks_of_a_repetition(real, blocks, scores):
    generated = np.concatenate([tensor_files.load(blocks[i])[0]["features"] for i in (1, 2)])
    held_out = tensor_files.load(real)[0]["held_out.features"]
    expected = moments_distance(Moments.of(held_out.new_tensor(generated)), Moments.of(held_out))
    assert scores["fid"]["values"][0] == pytest.approx(expected, rel=1e-6)


def test_fid_file_follows_its_schema(real, scores):
    fid = scores["fid"]
    assert fid["metric"] == "fd-coordinates"
    assert fid["value"] == pytest.approx(np.mean(fid["values"]))
    assert fid["min"] == min(fid["values"])
    assert fid["std"] == pytest.approx(np.std(fid["values"], ddof=1))
    assert fid["first_seeds"] == [100, 300]
    assert (fid["num_samples"], fid["network_calls"], fid["experiment"]) == (200, 35, "points")
    assert fid["floor"].keys() == {"mean", "std", "num"}
    assert fid["features"] == {"name": "coordinates", "sha256": None}
    assert fid["reference"]["name"] == "gaussian-mixture-held-out"
    assert fid["protocol"] == {"resize": None, "quantise": None, "labels": "random"}
    assert fid["inputs"]["reference"] == files.sha256(real)
    assert len(fid["inputs"]["features"]) == 3
    assert fid["training"]["values"] != fid["values"]


def test_scores_of_fresh_points_look_real(scores):
    assert scores["fid"]["value"] < 5 * scores["fid"]["floor"]["mean"]
    assert scores["prdc"]["coverage"]["value"] > 0.8
    assert scores["prdc"]["precision"]["value"] > 0.9
    assert abs(scores["memorisation"]["z"]["value"]) < 3
    assert scores["classes"]["accuracy"]["values"] == [1, 1]
    assert scores["classes"]["requested"]["value"] == 0
    assert scores["classes"]["real"]["value"] < 0.1
    assert [sum(counts) for counts in scores["classes"]["counts"]] == [200, 200]


def test_scores_are_the_same_bytes_whatever_the_order_of_blocks(folder, real, blocks, scores):
    before = [(folder / f"{name}.json").read_bytes() for name in NAMES]
    scored(folder, real, blocks[::-1])
    assert [(folder / f"{name}.json").read_bytes() for name in NAMES] == before


def test_copies_of_training_points_are_found(tmp_path, real):
    copies = datasets.load(MIXTURE, "training").images[:200].numpy()
    found = scored(tmp_path, real, [make_features(tmp_path, real, copies, first=0)])
    assert found["memorisation"]["z"]["value"] < -10
    assert found["fid"]["training"]["value"] < found["fid"]["value"] + found["fid"]["floor"]["mean"]
    assert found["fid"]["std"] is None


def test_samples_of_one_mode_have_low_recall_and_far_classes(tmp_path, real):
    points = draw_points(200, seed=3)
    points[:, 0] = -abs(points[:, 0])
    found = scored(tmp_path, real, [make_features(tmp_path, real, points, first=0, labelled=False)])
    assert found["prdc"]["recall"]["value"] < 0.6
    assert found["classes"]["uniform"]["value"] == pytest.approx(0.5)
    assert found["classes"]["accuracy"] is None
    assert found["fid"]["value"] > 50 * found["fid"]["floor"]["mean"]


def test_kernel_subsets_give_a_spread_around_the_whole(tmp_path, real, blocks, scores):
    found = scored(tmp_path, real, blocks, kid_subset=100)["kid"]
    assert found["subsets"]["size"] == 100
    assert len(found["subsets"]["stds"]) == 2
    assert abs(found["value"] - scores["kid"]["value"]) < max(found["subsets"]["stds"])


def test_evaluate_refuses_missing_and_doubled_blocks(tmp_path, real, blocks):
    with pytest.raises(ValueError, match="repetition 0 ends before sample 150"):
        scored(tmp_path, real, blocks[:2])
    with pytest.raises(ValueError, match="begins at sample 150, expected 0"):
        scored(tmp_path, real, [blocks[0], blocks[2]])
    with pytest.raises(ValueError, match="begins at sample 0, expected 150"):
        scored(tmp_path, real, [*blocks, blocks[1]])
    with pytest.raises(ValueError, match="no blocks"):
        scored(tmp_path, real, [])
    assert not list(tmp_path.glob("*.json"))


def test_evaluate_refuses_features_made_with_another_reference(tmp_path, blocks):
    other = make_reference(tmp_path / "reference.safetensors", seed=1)
    with pytest.raises(ValueError, match="made with another reference"):
        scored(tmp_path, other, blocks)


def test_evaluate_refuses_a_floor_of_another_number_of_samples(tmp_path):
    real = make_reference(tmp_path / "reference.safetensors", num_samples=100)
    block = make_features(tmp_path, real, draw_points(200, seed=1), first=0)
    with pytest.raises(ValueError, match="floor for 100 samples, but there are 200"):
        scored(tmp_path, real, [block])


def test_evaluate_names_an_altered_block(tmp_path, real):
    block = make_features(tmp_path, real, draw_points(200, seed=1), first=0)
    content = bytearray(block.read_bytes())
    content[-5] ^= 1
    block.write_bytes(content)
    with pytest.raises(ValueError, match="00000.safetensors is damaged"):
        scored(tmp_path, real, [block])


def test_images_that_changed_between_teacher_and_reference_are_refused(tmp_path, real, blocks):
    teacher, known = tmp_path / "denoiser.safetensors", tensor_files.load_metadata(real)["dataset"]["sha256"]
    tensor_files.save(teacher, {}, {"dataset_sha256": "0" * 64})
    said = f"images of sha256 {'0' * 64}, but .* was made of images of sha256 {known}: a file was overwritten"
    with pytest.raises(ValueError, match=said):
        scored(tmp_path, real, blocks, teacher=teacher)
    assert not (tmp_path / "fid.json").exists()
    tensor_files.save(teacher, {}, {"dataset_sha256": known})
    inputs = scored(tmp_path, real, blocks, teacher=teacher)["fid"]["inputs"]
    assert inputs["teacher"] == files.sha256(teacher)
