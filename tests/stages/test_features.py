"""Stage features: one block of samples as features and sums."""

import numpy as np
import pytest
import torch

from dmd.metrics.features import quantise
from dmd.provenance import tensor_files
from dmd.stages import features
from tests.stages.scored import POINTS, draw_points, make_block, make_features, make_reference


@pytest.fixture
def real(tmp_path):
    return make_reference(tmp_path / "reference.safetensors")


def test_features_keep_order_labels_and_sums(tmp_path, real):
    points = draw_points(200, seed=1)
    found, metadata = tensor_files.load(make_features(tmp_path, real, points, first=400))
    expected = torch.from_numpy(points).flatten(1)
    assert torch.equal(found["features"], expected)
    assert torch.equal(found["predicted"], (expected[:, 0] > 0).long())
    assert torch.equal(found["label"], found["predicted"])
    assert int(found["count"]) == 200
    torch.testing.assert_close(found["sum"], expected.double().sum(0))
    torch.testing.assert_close(found["outer"], expected.double().T @ expected.double())
    assert (metadata["repetition"], metadata["first_seed"]) == (2, 100 + 400)
    assert metadata["network_calls"] == 35


def test_features_quantise_images_as_the_protocol_says(tmp_path):
    section = {"features": {"kind": "pixels", "size": 8}, "protocol": {"quantise": 5, "resize": None}}
    real = make_reference(tmp_path / "reference.safetensors", **section)
    points = draw_points(100, seed=2)
    block = make_block(tmp_path / "s/blocks/0.parquet", points, np.full(100, -1), first=0, num_samples=100)
    output = tmp_path / "features.safetensors"
    features.run(block=block, reference=real, output=output, batch_size=30, **section)
    found, metadata = tensor_files.load(output)
    assert torch.equal(found["features"], quantise(torch.from_numpy(points), 5).flatten(1))
    assert metadata["features"]["name"] == "pixels8"
    assert (found["predicted"] == -1).all()


def test_features_name_a_damaged_shard(tmp_path, real):
    points = draw_points(200, seed=1)
    block = make_block(tmp_path / "s/blocks/0.parquet", points, np.zeros(200), first=0, num_samples=200)
    shard = tmp_path / "s/00002.tar"
    content = bytearray(shard.read_bytes())
    content[3000] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="00002.tar is damaged"):
        features.run(block=block, reference=real, output=tmp_path / "f.safetensors", batch_size=64, **POINTS)
    assert not (tmp_path / "f.safetensors").exists()


def test_features_refuse_a_reference_of_another_protocol(tmp_path):
    real = make_reference(tmp_path / "reference.safetensors", protocol={"quantise": 3, "resize": None})
    with pytest.raises(ValueError, match="but the spec has"):
        make_features(tmp_path, real, draw_points(200, seed=1), first=0)


def test_features_refuse_a_block_across_repetitions(tmp_path, real):
    with pytest.raises(ValueError, match="samples 100 to 299, of more than one repetition of 200"):
        make_features(tmp_path, real, draw_points(200, seed=1), first=100)
