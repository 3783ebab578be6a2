"""A reference of published moments, with points and with Inception features; of training images; of all images."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dmd import torchvision_operators
from dmd.data import dataset as datasets
from dmd.metrics.frechet import frechet_distance, gaussian_floor
from dmd.metrics.moments import Moments
from dmd.provenance import files, tensor_files
from dmd.stages import evaluate, features, inception_score
from tests.stages.scored import MIXTURE, POINTS, draw_points, make_block, make_features, make_reference

NAMES = ("fid", "kid", "prdc", "classes", "memorisation")
NUMBERS: dict[str, Any] = {"experiment": "points", "neighbours": 3, "kid_subset": None, "seed": 0}
MEAN, COVARIANCE = np.zeros(2), np.array([[4.25, 0.1], [0.1, 0.25]])


def of_moments(folder: Path, mean: np.ndarray = MEAN, covariance: np.ndarray = COVARIANCE, **changes: Any) -> Path:
    """A reference of moments."""
    statistics = folder / "published_moments.npz"
    np.savez(statistics, mu=mean, sigma=covariance)
    given = {"dataset": None, "moments": {"sha256": None}, "statistics": statistics}
    return make_reference(folder / "reference.safetensors", **(given | changes))


def scored(folder: Path, real: Path, blocks: list[Path]) -> dict[str, Any]:
    outputs = {name: folder / f"{name}.json" for name in NAMES}
    evaluate.run(reference=real, features=blocks, **outputs, **NUMBERS)
    return {name: json.loads(path.read_text()) for name, path in outputs.items()}


def test_distance_to_published_moments_is_that_of_the_formula(tmp_path):
    real = of_moments(tmp_path)
    points = draw_points(200, seed=1)
    blocks = [make_features(tmp_path, real, points[start:stop], first=start) for start, stop in ((0, 150), (150, 200))]
    found = scored(tmp_path, real, blocks)
    mean, covariance = torch.from_numpy(MEAN), torch.from_numpy(COVARIANCE)
    moments = Moments.of(torch.from_numpy(points).flatten(1))
    expected = frechet_distance(moments.mean, moments.covariance, mean, covariance)
    assert found["fid"]["value"] == pytest.approx(expected, rel=1e-6)
    floor = gaussian_floor(mean, covariance, num_samples=200, num_draws=5, seed=0)
    assert found["fid"]["floor"] == {
        "kind": "gaussian", "mean": pytest.approx(np.mean(floor)), "std": pytest.approx(np.std(floor, ddof=1)), "num": 5
    }  # fmt: skip
    digest = files.sha256(tmp_path / "published_moments.npz")
    assert found["fid"]["reference"] == {"name": "published_moments", "sha256": digest}
    assert found["fid"]["real_distance"] is None and "training" not in found["fid"]


def test_scores_that_need_real_features_are_null_and_say_why(tmp_path):
    real = of_moments(tmp_path)
    found = scored(tmp_path, real, [make_features(tmp_path, real, draw_points(200, seed=1), first=0)])
    values = {"kid": "value", "prdc": "recall", "memorisation": "z"}
    for name, value in values.items():
        assert found[name][value] is None
        assert found[name]["reason"].startswith("the reference holds moments only")
        assert found[name]["num_samples"] == 200
    assert found["classes"]["num_classes"] == 0 and found["classes"]["accuracy"] is None


def test_reference_refuses_moments_of_another_file_or_size(tmp_path):
    with pytest.raises(ValueError, match=r"moments.npz has sha256 .*, but .*00000000"):
        of_moments(tmp_path, moments={"sha256": "00000000"})
    with pytest.raises(ValueError, match="give either images"):
        of_moments(tmp_path, dataset=MIXTURE)
    with pytest.raises(ValueError, match="give either images"):
        make_reference(tmp_path / "r.safetensors", dataset=None)
    weights = Path("workflow/resources/digits32.safetensors")
    digits = {"features": {"kind": "digits32", "sha256": files.sha256(weights)}, "network": weights}
    with pytest.raises(ValueError, match="has 2 features, but digits32 has 32"):
        of_moments(tmp_path, **digits)


def test_training_images_can_be_what_samples_are_compared_with(tmp_path):
    held_out = make_reference(tmp_path / "held-out.safetensors")
    training = make_reference(tmp_path / "training.safetensors", against="training")
    points = draw_points(200, seed=1)
    usual = scored(tmp_path / "a", held_out, [make_features(tmp_path / "a", held_out, points, first=0)])
    edms = scored(tmp_path / "b", training, [make_features(tmp_path / "b", training, points, first=0)])
    assert edms["fid"]["value"] == usual["fid"]["training"]["value"] != usual["fid"]["value"]
    assert edms["fid"]["held_out"]["value"] == usual["fid"]["value"]
    assert edms["fid"]["real_distance"] == usual["fid"]["real_distance"]
    assert edms["fid"]["reference"]["name"] == "gaussian-mixture-training"
    assert edms["memorisation"]["z"] == usual["memorisation"]["z"]
    assert edms["kid"]["real_distance"] == pytest.approx(usual["kid"]["real_distance"], rel=1e-9)
    floors = [tensor_files.load_metadata(path)["floor"]["mean"] for path in (held_out, training)]
    assert floors[0] != floors[1]
    images = datasets.load(MIXTURE, "training").images
    copies = make_features(tmp_path / "c", training, images[:200].numpy(), first=0)
    assert scored(tmp_path / "c", training, [copies])["prdc"]["precision"]["value"] == 1


SECTION: dict[str, Any] = {
    "features": {"kind": "inception", "sha256": None},
    "protocol": {"quantise": 256, "resize": None},
}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory, inception_file) -> dict[str, Any]:
    """Inception features of 16 images in two blocks, compared with moments."""
    folder = tmp_path_factory.mktemp("photographs")
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(2048, 40, generator=generator, dtype=torch.float64) / 6
    moments = (np.full(2048, 18.0), (root @ root.T).numpy())
    numbers = {"network": inception_file, "num_samples": 16, "floor_draws": 1, **SECTION}
    real = of_moments(folder, *moments, **numbers)
    images = torch.rand(16, 3, 8, 8, generator=generator).numpy() * 2 - 1
    blocks = []
    for first, last in ((0, 10), (10, 16)):
        names = {"first": first, "num_samples": 16, "shard_size": 2}
        block = make_block(folder / f"{first}/blocks/0.parquet", images[first:last], np.zeros(16), **names)
        blocks.append(folder / "features" / f"{first}.safetensors")
        settings = {"network": inception_file, "batch_size": 4, **SECTION}
        features.run(block=block, reference=real, output=blocks[-1], **settings)
    output = folder / "inception_score.json"
    given = {"reference": real, "features": blocks, "network": inception_file, "output": output}
    inception_score.run(**given, experiment="points", splits=4, seed=2020)
    found = {"features": torch.cat([tensor_files.load(path)[0]["features"] for path in blocks]), "moments": moments}
    return {**found, "given": given, "score": json.loads(output.read_text()), **scored(folder, real, blocks)}


def test_inception_scores_of_unknown_weights_are_never_called_fid(photographs, inception_file):
    assert photographs["fid"]["metric"] == "fd-inception" and photographs["kid"]["metric"] == "kid-inception"
    assert photographs["score"]["metric"] == "is-inception"
    assert photographs["fid"]["features"] == {"name": "inception", "sha256": files.sha256(inception_file)}


def test_distance_of_few_inception_features_equals_a_direct_computation(photographs):
    mean, covariance = (torch.from_numpy(values) for values in photographs["moments"])
    generated = photographs["features"].double()
    centred = (generated - generated.mean(0)) / (len(generated) - 1) ** 0.5
    cross = torch.linalg.eigvalsh(centred @ covariance @ centred.T).clamp(min=0).sqrt().sum()
    expected = (generated.mean(0) - mean).square().sum() + centred.square().sum() + covariance.trace() - 2 * cross
    assert photographs["fid"]["value"] == pytest.approx(float(expected), rel=1e-6)


def test_inception_score_is_torch_fidelitys_of_the_networks_logits(photographs, inception_file):
    torchvision_operators.ensure()
    from torch_fidelity.metric_isc import isc_features_to_metric

    head = torch.load(inception_file, weights_only=True)["fc.weight"]
    expected = isc_features_to_metric(photographs["features"] @ head.T, 4, True, 2020)
    assert photographs["score"]["value"] == pytest.approx(expected["inception_score_mean"], rel=1e-6)
    assert photographs["score"]["value"] > 1.01
    assert photographs["score"]["splits"]["num"] == 4 and len(photographs["score"]["splits"]["stds"]) == 1


def test_inception_score_refuses_the_features_of_other_weights(photographs, tmp_path):
    other = tmp_path / "other.pth"
    torch.save({"fc.weight": torch.zeros(1008, 2048)}, other)
    with pytest.raises(ValueError, match="other.pth has sha256 .* holds features of"):
        inception_score.run(**{**photographs["given"], "network": other}, experiment="points", splits=4, seed=2020)


def test_inception_features_are_those_of_eight_bit_images(photographs, inception_file, tmp_path):
    section = {**SECTION, "protocol": {"quantise": None, "resize": None}}
    with pytest.raises(ValueError, match="needs 256 grey levels, but protocol.quantise is None"):
        of_moments(tmp_path, network=inception_file, **section)
    assert POINTS["protocol"]["quantise"] is None


def test_reference_of_all_images_of_a_folder_has_no_other_split(tmp_path):
    random = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for number in range(30):
        Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).save(tmp_path / "photos" / f"{number:02d}.png")
    folder: dict[str, Any] = {"kind": "images", "folder": str(tmp_path / "photos"), "labels": "none", "resolution": 4}
    folder |= {"channels": 3, "resize": "lanczos", "crop": "center", "split_seed": 0, "num_held_out": "all"}
    section = {"features": {"kind": "pixels", "size": 2}}
    section["protocol"] = {"quantise": 256, "resize": {"size": 4, "filter": "lanczos"}}
    real = make_reference(tmp_path / "reference.safetensors", dataset=folder, num_samples=20, **section)
    images = random.uniform(-1, 1, (20, 3, 8, 8)).astype(np.float32)  # twice as large as the real ones
    block = make_block(tmp_path / "s/blocks/0.parquet", images, np.full(20, -1), first=0, num_samples=20)
    features.run(block=block, reference=real, output=tmp_path / "f.safetensors", batch_size=7, **section)
    found = scored(tmp_path, real, [tmp_path / "f.safetensors"])
    whole = tensor_files.load(real)[0]["all.features"]
    assert whole.shape == (30, 12)
    moments, own = Moments.of(whole), Moments.of(tensor_files.load(tmp_path / "f.safetensors")[0]["features"])
    expected = frechet_distance(own.mean, own.covariance, moments.mean, moments.covariance)
    assert found["fid"]["value"] == pytest.approx(expected)
    assert found["fid"]["reference"]["name"] == "images" and found["fid"]["protocol"]["resize"]["size"] == 4
    assert found["fid"]["real_distance"] is None and not {"training", "held_out"} & found["fid"].keys()
    assert found["kid"]["value"] is not None and found["kid"]["real_distance"] is None
    assert found["prdc"]["recall"]["value"] is not None and found["prdc"]["real"] is None
    assert found["memorisation"]["z"] is None and "no training images" in found["memorisation"]["reason"]
