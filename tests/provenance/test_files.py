"""A file is whole or absent, whatever happens while it is written."""

import hashlib
import os
import resource
import subprocess

import numpy as np
import pyarrow as pa
import pytest
import torch

from dmd.data import manifest, shards
from dmd.provenance import files, tensor_files

CONTENT = np.arange(30_000, dtype=np.float32)
WRITERS = {
    "a.txt": lambda path: path.write_bytes(CONTENT.tobytes()),
    "a.tar": lambda path: shards.write(path, [(0, {"image": CONTENT})], {}),
    "a.parquet": lambda path: manifest.write(path, pa.table({"value": CONTENT * 0.1}), {}),
    "a.safetensors": lambda path: tensor_files.write(path, {"value": torch.from_numpy(CONTENT)}, {}),
    "others.safetensors": lambda path: tensor_files.write_for_others(path, {"value": torch.from_numpy(CONTENT)}),
}
TENSORS = {name for name in WRITERS if name.endswith(".safetensors")}  # their library renames a file of its own


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_canonical_json_is_one_text_per_value():
    assert files.canonical_json({"b": [1.0, None], "a": {"d": 1, "c": 2}}) == '{"a":{"c":2,"d":1},"b":[1.0,null]}'
    with pytest.raises(ValueError):
        files.canonical_json({"a": float("nan")})


@pytest.mark.parametrize("size", [0, 1, files.CHUNK_SIZE, files.CHUNK_SIZE + 1])
def test_sha256_is_that_of_the_whole_file(tmp_path, size):
    content = os.urandom(size)
    (tmp_path / "a").write_bytes(content)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_atomic_shows_the_file_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "a"
    with files.atomic(path) as temporary:
        temporary.write_text("half")
        assert not path.exists() and temporary.parent == path.parent
    assert path.read_text() == "half" and names(path.parent) == ["a"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_atomic_leaves_nothing_after_an_exception_and_keeps_the_old_file(tmp_path, error):
    path = tmp_path / "a"
    path.write_text("old")
    with pytest.raises(error), files.atomic(path) as temporary:
        temporary.write_text("new")
        raise error
    assert path.read_text() == "old" and names(tmp_path) == ["a"]


def test_atomic_replaces_what_a_killed_writer_left(tmp_path):
    (tmp_path / ".tmp-a").write_text("left by a writer that was killed")
    with files.atomic(tmp_path / "a") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "whole"


@pytest.mark.parametrize("name", sorted(set(WRITERS) - TENSORS))
def test_a_full_disk_is_named_and_the_old_file_stays(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    (tmp_path / f".tmp-{name}").symlink_to("/dev/full")  # every write there fails with ENOSPC
    with pytest.raises(OSError, match=f"no space left while writing {path}"), files.atomic(path) as temporary:
        WRITERS[name](temporary)
    assert path.read_text() == "old" and names(tmp_path) == [name]


@pytest.mark.parametrize("name", sorted(TENSORS))
def test_a_full_disk_is_named_for_tensors(tmp_path, name):
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount a small file system; the limit on file size below is tested instead")
    try:
        path = tmp_path / name
        tensor_files.save(path, {"value": torch.ones(10)}, {})
        with pytest.raises(OSError, match=f"no space left while writing {path}"), files.atomic(path) as temporary:
            WRITERS[name](temporary)
        assert len(tensor_files.load(path)[0]["value"]) == 10 and names(tmp_path) == [name]
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_write_the_system_refuses_leaves_nothing(tmp_path, name):
    path = tmp_path / name
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError), files.atomic(path) as temporary:
            WRITERS[name](temporary)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old" and names(tmp_path) == [name]


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_the_same_content_gives_the_same_bytes_readable_by_all(tmp_path, name):
    for folder in ("first", "second"):
        with files.atomic(tmp_path / folder / name) as temporary:
            WRITERS[name](temporary)
    first, second = (tmp_path / folder / name for folder in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    (tmp_path / "plain").touch()
    assert first.stat().st_mode == (tmp_path / "plain").stat().st_mode
