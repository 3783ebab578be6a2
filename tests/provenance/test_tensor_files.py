"""Tensors and their metadata survive a round trip; damage is named."""

import pytest
import torch

from dmd.provenance import tensor_files

CONTENT = {
    "b": torch.arange(6).reshape(2, 3),
    "a.weight": torch.tensor([1.5, float("nan"), -0.0]),
    "half": torch.ones(2, dtype=torch.bfloat16),
    "scalar": torch.tensor(3.0).double(),
}
METADATA = {"spec": {"z": 1, "a": [0.1, None]}, "kind": "train"}


def test_tensors_and_metadata_survive_a_round_trip(tmp_path):
    path = tmp_path / "a.safetensors"
    tensor_files.save(path, CONTENT, METADATA)
    loaded, metadata = tensor_files.load(path)
    assert metadata == METADATA == tensor_files.load_metadata(path)
    assert loaded.keys() == CONTENT.keys()
    for name, tensor in CONTENT.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_bytes_do_not_depend_on_order_or_memory_layout(tmp_path):
    matrix = torch.arange(12.0).reshape(3, 4)
    tensor_files.save(tmp_path / "a", {"x": matrix, "y": matrix[0].clone()}, {"p": 1, "q": 2})
    turned = {"y": matrix[0].clone(), "x": matrix.T.contiguous().T}
    tensor_files.save(tmp_path / "b", turned, {"q": 2, "p": 1})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_missing_truncated_or_foreign_file_is_named(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(ValueError, match=str(path)):
        tensor_files.load(path)
    tensor_files.save(path, CONTENT, METADATA)
    content = path.read_bytes()
    for size in (0, 7, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(ValueError, match=f"{path} cannot be read"):
            tensor_files.load(path)
    from safetensors.torch import save_file

    save_file({"x": torch.ones(1)}, path)
    with pytest.raises(ValueError, match=f"{path} has no 'dmd' metadata"):
        tensor_files.load(path)


def test_a_header_larger_than_any_published_one_is_refused_before_it_is_read(tmp_path):
    """The library would take a minute for 90 MB of metadata, deaf to signals."""
    path = tmp_path / "a.safetensors"
    for size in (tensor_files.MAX_HEADER + 1, 2**63):
        path.write_bytes(size.to_bytes(8, "little") + b"{}")
        with pytest.raises(ValueError, match=f"{path} .*: its header would have {size} bytes, more than 16777216"):
            tensor_files.read(path)
