"""Stage reference: what it measures of real data, and what it refuses."""

from pathlib import Path

import pytest
import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from dmd.provenance import files, tensor_files
from tests.stages.scored import MIXTURE, make_reference

WEIGHTS = Path("workflow/resources/digits32.safetensors")
DIGITS = {
    "dataset": {"kind": "digits", "split_seed": 0, "num_training": 1000},
    "protocol": {"quantise": 17, "resize": None},
}


def digits32(path: Path) -> dict[str, str]:
    return {"kind": "digits32", "file": str(path), "sha256": files.sha256(WEIGHTS)}


def test_reference_holds_features_and_moments_of_both_splits(tmp_path):
    found, metadata = tensor_files.load(make_reference(tmp_path / "reference.safetensors"))
    for split, num in (("training", 300), ("held_out", 250)):
        features = found[f"{split}.features"]
        assert features.shape == (num, 2)
        torch.testing.assert_close(found[f"{split}.mean"], features.double().mean(0))
        torch.testing.assert_close(found[f"{split}.covariance"], torch.cov(features.double().T))
        assert torch.equal(found[f"{split}.predicted"], (features[:, 0] > 0).long())
    assert metadata["modes"] == MIXTURE["means"]
    assert metadata["num_classes"] == 2
    assert metadata["features"] == {"name": "coordinates", "sha256": None}
    assert metadata["floor"]["num_samples"] == 200
    assert 0 < metadata["floor"]["mean"] < 0.1


def test_reference_of_the_same_spec_has_the_same_bytes(tmp_path):
    first, second = (make_reference(tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert first.read_bytes() == second.read_bytes()


def test_floor_falls_as_samples_grow(tmp_path):
    floors = []
    for num_samples in (50, 5000):
        path = make_reference(tmp_path / f"{num_samples}.safetensors", num_samples=num_samples, floor_draws=20)
        floors.append(tensor_files.load_metadata(path)["floor"]["mean"])
    assert floors[1] < floors[0] / 2


def test_digits32_tells_held_out_digits_apart(tmp_path):
    path = make_reference(
        tmp_path / "reference.safetensors", network=WEIGHTS, features=digits32(WEIGHTS), num_samples=1000, **DIGITS
    )
    found, metadata = tensor_files.load(path)
    right = found["held_out.predicted"] == found["held_out.labels"]
    assert right.double().mean() >= 0.98
    assert found["held_out.features"].shape == (797, 32)
    assert metadata["floor"]["mean"] == pytest.approx(0.986, abs=0.3)
    assert WEIGHTS.stat().st_size <= 300_000


def test_reference_refuses_another_feature_network_and_names_both_digests(tmp_path):
    other = tmp_path / "other.safetensors"
    tensor_files.save(other, {"head.bias": torch.zeros(10)}, {})
    with pytest.raises(ValueError) as error:
        make_reference(tmp_path / "reference.safetensors", network=other, features=digits32(other), **DIGITS)
    for part in (str(other), files.sha256(other), files.sha256(WEIGHTS)):
        assert part in str(error.value)
    assert not (tmp_path / "reference.safetensors").exists()


def test_reference_says_where_a_missing_feature_network_belongs(tmp_path):
    missing = tmp_path / "digits32.safetensors"
    with pytest.raises(ValueError, match="is missing: put the file with sha256"):
        make_reference(tmp_path / "reference.safetensors", network=missing, features=digits32(missing), **DIGITS)
    with pytest.raises(ValueError, match="needs the file"):
        make_reference(tmp_path / "reference.safetensors", features=digits32(missing), **DIGITS)


def test_reference_refuses_an_unknown_resize(tmp_path):
    for levels, filter, message in (
        (256, "hamming", "'hamming' is none of lanczos"),
        (None, "box", "quantise must be 256, not None"),
    ):
        protocol = {"quantise": levels, "resize": {"size": 4, "filter": filter}}
        with pytest.raises(ValueError, match=message):
            make_reference(tmp_path / "r.safetensors", protocol=protocol)


def test_batches_of_the_feature_network_are_as_large_as_its_section_says(tmp_path):
    sizes = set()
    handle = register_module_forward_pre_hook(lambda module, inputs: sizes.add(len(inputs[0])))
    make_reference(tmp_path / "reference.safetensors", features={"kind": "coordinates", "batch_size": 7})
    handle.remove()
    assert max(sizes) == 7
