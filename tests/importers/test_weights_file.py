"""State dicts of torch.save: as torch.load reads them, whatever wraps them; hostile ones are refused in one line."""

import importlib.util
import io
import math
import pickle
import tarfile
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from dmd.importers import weights_file

NAME = "stem.weight"
SHARED = torch.arange(100.0)
STATE = {
    NAME: torch.arange(12.0).view(3, 4),
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "half": torch.tensor([1.5, -2]).half(),
    "bfloat16": torch.tensor([1.5, -2]).bfloat16(),
    "double": torch.tensor([1 / 3]).double(),
    "scalar": torch.tensor(7),
    "bytes": torch.arange(3).byte(),
    "flags": torch.tensor([True, False]),
    "transposed": torch.arange(20.0).view(4, 5).T,
    "every second": torch.arange(10.0)[2:8:2],
    "shared": SHARED[:40],
    "shared end": SHARED[50:],
}
PICKLE_HEAD = b"".join(pickle.dumps(each, 2) for each in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def refused(path: Path) -> str:
    with pytest.raises(ValueError) as error:
        weights_file.read(path, name=NAME)
    message = str(error.value)
    assert message.startswith(str(path)) and "\n" not in message and "weights_only" not in message
    return message


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "state", [STATE, OrderedDict(STATE), torch.nn.Sequential(torch.nn.BatchNorm2d(3)).state_dict()]
)
def test_state_dict_is_what_torch_reads(tmp_path, state, zipped):
    path = saved(tmp_path / "a.pt", state, _use_new_zipfile_serialization=zipped)
    expected = torch.load(path, weights_only=True)
    found = weights_file.read(path, name=next(iter(state)))
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert (found[name].dtype, found[name].stride()) == (value.dtype, value.stride())
        assert torch.equal(found[name], value)
    if state is STATE:
        assert found["shared"].untyped_storage().data_ptr() == found["shared end"].untyped_storage().data_ptr()


def test_published_heads_are_what_torch_reads():
    found = importlib.util.find_spec("lpips")
    assert found is not None and found.origin is not None
    path = Path(found.origin).parent / "weights" / "v0.1" / "vgg.pth"
    expected = torch.load(path, map_location="cpu", weights_only=True)
    heads = weights_file.read(path, name="lin0.model.1.weight")
    assert list(heads) == list(expected) and all(torch.equal(heads[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "model.", "ema.", "module._orig_mod.", "net.unet.", "a."])
@pytest.mark.parametrize("keys", [(), ("state_dict",), ("model",), ("ema", "params"), ("a", "b", "c", "d")])
def test_words_of_wrappers_are_taken_off(tmp_path, prefix, keys):
    content: Any = {f"{prefix}{name}": value for name, value in STATE.items()}
    for key in keys:
        content = {key: content, "epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "lr": [0.1, None]}}
    found = weights_file.read(saved(tmp_path / "a.pt", content), name=NAME)
    assert list(found) == list(STATE) and torch.equal(found["shared"], STATE["shared"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"ema": STATE, "model": STATE | {"half": torch.ones(2)}}, "holds several networks: .* ema.stem.*model.stem"),
        ({f"{word}.{name}": value for word in ("a", "b") for name, value in STATE.items()}, "a.stem.weight, b.stem"),
        ({"module.stem.weight": torch.ones(2), "other": torch.ones(2)}, "begin with module., but others, too: other"),
        ({"state_dict": {"module.stem.weight": torch.ones(2), "module.n": 3}}, "something else than tensors: module.n"),
        ({"state_dict": {"other": torch.ones(2)}}, "something else than tensors: state_dict"),
        ({1: torch.ones(2)}, "holds no dict of names and tensors"),
        ({**STATE, "bad": torch.tensor([1.0, math.nan])}, "holds weights that are not finite: bad"),
        ({**STATE, "bad": torch.tensor([-math.inf]).half()}, "holds weights that are not finite: bad"),
        ({}, "holds no dict of names and tensors"),
        ([torch.ones(2)], "holds no dict of names and tensors"),
        (torch.nn.Linear(2, 2), "global torch.nn.modules.linear.Linear is refused"),
        ({"a": torch.ones(2), "b": {1, 2}}, "refused|something else"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_no_single_network_is_named(tmp_path, content, message, zipped):
    path = saved(tmp_path / "a.pt", content, _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=message):
        weights_file.read(path, name=NAME)


def doubled(levels: int) -> bytes:
    """A pickle of a dict whose key is a tuple of two equal tuples of two equal tuples ...: its hash takes for ever."""
    return b"\x80\x02})" + b"q\x00h\x00\x86" * levels + b"K\x01s."


def test_one_list_given_to_many_dicts_takes_no_memory_beyond_that_of_the_file(tmp_path):
    pairs = b"](" + b"K\x01N\x86" * 10_000 + b"eq\x00"
    content = b"\x80\x02](" + pairs + b"ccollections\nOrderedDict\nh\x00\x85R" * 300 + b"e."
    (tmp_path / "a.pt").write_bytes(PICKLE_HEAD + content)
    assert "objects made of more than 2000000 items" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_key_whose_hash_would_never_end_is_refused(tmp_path, zipped):
    path = tmp_path / "a.pt"
    if zipped:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a/data.pkl", doubled(100))
    else:
        path.write_bytes(PICKLE_HEAD + doubled(100))
    assert "a tuple as a key" in refused(path)


def zip_of(parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def storage_pickle(key: str, num: int) -> bytes:
    """A state dict of one tensor that claims `num` values."""
    text = lambda word: b"X" + len(word).to_bytes(4, "little") + word.encode()  # noqa: E731
    number = pickle.dumps(num, 2)[2:-1]
    entry = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key) + text("cpu") + number + b"tQ"
    shape = number + b"\x85K\x01\x85\x89}"
    return b"\x80\x02}" + text(NAME) + b"ctorch._utils\n_rebuild_tensor_v2\n(" + entry + b"K\x00" + shape + b"tRs."


def test_file_of_two_directories_is_checked_as_it_is_read(tmp_path):
    """torch's parser took the directory at the end, Python's that of the longer comment: one claimed little."""
    bomb = zip_of({"a/data.pkl": storage_pickle("0", 1 << 22), "a/data/0": bytes(1 << 24)}, zipfile.ZIP_DEFLATED)
    small = zip_of({"a/data.pkl": storage_pickle("0", 1), "a/data/0": bytes(4)})
    for content in (bomb + small, small + bomb):
        (tmp_path / "a.pt").write_bytes(content)
        try:
            assert weights_file.read(tmp_path / "a.pt", name=NAME)[NAME].tolist() == [0.0]
        except ValueError as error:
            assert "claim" in str(error)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (zip_of({"a/data.pkl": storage_pickle("0", 1 << 40), "a/data/0": bytes(4)}), "4 are left"),
        (zip_of({"a/data.pkl": storage_pickle("0", -1), "a/data/0": bytes(4)}), "4 are left"),
        (zip_of({"a/data.pkl": storage_pickle("1", 1), "a/data/0": bytes(4)}), "no item named"),
        (zip_of({"a/data.pkl": b"\x80\x02}.", "b/data.pkl": b"\x80\x02}."}), "no data.pkl"),
        (zip_of({"mu.npy": b""}), "torch.save did not write"),
        (zip_of({"a/data.pkl": b"\x80\x02}.", "a/constants.pkl": b""}), "TorchScript"),
        (zip_of({"a/data.pkl": b"\x80\x02}.", "a/byteorder": b"big"}), "not little-endian"),
        (zip_of({"a/data.pkl": b"\x80\x02}.", "a/x": bytes(1 << 20)}, zipfile.ZIP_DEFLATED), "parts claim"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "Git LFS pointer of 63 bytes.*lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "an HTML or XML page"),
        (b"", "it is empty"),
        (PICKLE_HEAD, "bytes are needed, but 0 are left"),
        (PICKLE_HEAD + storage_pickle("0", 1) + pickle.dumps(["1"], 2), "exactly the storages that it names"),
        (pickle.dumps({"a": 1}), "not in torch's format"),
    ],
)
def test_foreign_or_hostile_file_is_refused_in_words(tmp_path, content, message):
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        weights_file.read(tmp_path / "a.pt", name=NAME)
    refused(tmp_path / "a.pt")


def test_tar_of_old_torch_is_named(tmp_path):
    with tarfile.open(tmp_path / "a.pt", "w") as archive:
        archive.addfile(tarfile.TarInfo("storages"))
    assert "tar format of torch 0.1" in refused(tmp_path / "a.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_file_is_refused_at_every_length(tmp_path, zipped):
    whole = saved(tmp_path / "whole.pt", STATE, _use_new_zipfile_serialization=zipped).read_bytes()
    path = tmp_path / "a.pt"
    for size in range(1, len(whole), 37):
        path.write_bytes(whole[:size])
        message = refused(path)
        assert not zipped or size < 4 or "ends early" in message
