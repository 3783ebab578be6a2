"""Stage pairs: bytes depend on the spec and the seed alone; whole tars are kept, all others made again."""

import logging
import shutil
import subprocess
import sys

import numpy as np
import pytest

from dmd.data import manifest, shards
from dmd.provenance import files, record
from dmd.sampling.noise import seeded_noise
from dmd.stages import pairs

TARS = ("00000.tar", "00001.tar")


def make(folder, teacher_file, numbers: dict, **changed):
    """One block in `folder`; returns its path."""
    numbers = numbers | changed
    block = folder / "blocks" / f"{numbers['first']:05d}-{numbers['last']:05d}.parquet"
    pairs.run(teacher=teacher_file, output=block, **numbers)
    return block


def items(folder, names=TARS) -> list[tuple[int, shards.Item]]:
    return [item for name in names for item in shards.read(folder / name)]


@pytest.fixture
def made(manifest_file, tmp_path):
    """A copy of the two shards and their block."""
    folder = tmp_path / "pairs"
    shutil.copytree(manifest_file.parent, folder)
    return folder


def test_shards_do_not_depend_on_how_blocks_split_them(manifest_file, teacher_file, pairs_numbers, tmp_path):
    for number in (1, 0):
        make(tmp_path, teacher_file, pairs_numbers, first=number, last=number)
    for name in TARS:
        assert (tmp_path / name).read_bytes() == (manifest_file.parent / name).read_bytes()


def test_two_jobs_whose_blocks_overlap_share_their_tars(manifest_file, teacher_file, pairs_numbers, tmp_path):
    commands = []
    for last in (1, 2):
        block = tmp_path / "blocks" / f"00000-{last:05d}.parquet"
        spec = files.canonical_json(pairs_numbers | {"last": last})
        paths = ["--teacher", str(teacher_file), "--output", str(block)]
        commands.append([sys.executable, "-m", "dmd.stages.pairs", *paths, "--spec", spec])
    jobs = [subprocess.Popen(command) for command in commands]
    assert [job.wait() for job in jobs] == [0, 0]
    for name in TARS:
        assert (tmp_path / name).read_bytes() == (manifest_file.parent / name).read_bytes()


def test_block_from_nothing_has_the_same_bytes_again(manifest_file, teacher_file, pairs_numbers, tmp_path):
    block = make(tmp_path, teacher_file, pairs_numbers)
    assert block.read_bytes() == (manifest_file.parent / "blocks" / block.name).read_bytes()


@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_noise_and_labels_are_bit_equal_across_batch_sizes(
    manifest_file, teacher_file, pairs_numbers, tmp_path, batch_size
):
    make(tmp_path, teacher_file, pairs_numbers, batch_size=batch_size)
    for (index, found), (same, expected) in zip(items(tmp_path), items(manifest_file.parent), strict=True):
        assert index == same
        assert found["noise"].tobytes() == expected["noise"].tobytes() and found["label"] == expected["label"]
        np.testing.assert_allclose(found["image"], expected["image"], rtol=0, atol=1e-4)


def test_passes_in_bfloat16_draw_the_same_noise_and_nearly_the_same_images(
    manifest_file, teacher_file, pairs_numbers, tmp_path, caplog
):
    caplog.set_level(logging.INFO, logger="dmd")
    compute = {"dtype": "bfloat16", "channels_last": True, "tf32": True}
    block = make(tmp_path, teacher_file, pairs_numbers, compute=compute)
    assert manifest.read(block).metadata["spec"]["compute"] == {"compile": False, **compute}
    assert "memory plan: at least" in caplog.text and "activations of 4 images" in caplog.text
    for (_, mine), (_, exact) in zip(items(tmp_path), items(manifest_file.parent), strict=True):
        assert all((mine[name] == exact[name]).all() for name in ("noise", "label"))
        error = np.abs(mine["image"] - exact["image"])
        assert 0 < error.max() < 0.1 and mine["image"].dtype == np.float32


def test_pairs_hold_what_their_seeds_draw_whatever_the_shard_size(teacher_file, pairs_numbers, manifest_file, tmp_path):
    make(tmp_path, teacher_file, pairs_numbers, shard_size=4, last=2)
    found = items(tmp_path, (*TARS, "00002.tar"))
    noise, label = seeded_noise(range(2**31, 2**31 + 12), (1, 8, 8), num_classes=10)
    for index, (number, item) in enumerate(found):
        assert number == index and int(item["label"]) == int(label[index]) and item["label"].dtype == np.int64
        assert item["noise"].dtype == item["image"].dtype == np.float32
        assert np.array_equal(item["noise"], noise[index].numpy())
    for (_, item), (_, expected) in zip(found, items(manifest_file.parent), strict=True):
        np.testing.assert_allclose(item["image"], expected["image"], rtol=0, atol=1e-4)


def test_block_lists_rows_digests_and_counted_calls(made, teacher_file):
    block = manifest.read(made / "blocks" / "00000-00001.parquet")
    assert block.table["index"].to_pylist() == list(range(12))
    assert block.table["seed"].to_pylist() == [2**31 + index for index in range(12)]
    assert block.metadata["facts"] == {"shape": [1, 8, 8], "num_classes": 10, "sigma": 80.0, "network_calls": 5}
    assert block.metadata["inputs"] == {"denoiser": files.sha256(teacher_file)}
    for file, name in zip(block.shards, TARS, strict=True):
        assert file.path.resolve() == made / name
        with shards.Shard(file.path, size=file.size, sha256=file.sha256) as shard:
            rows = block.table.slice(file.first, file.num).to_pylist()
            assert [(index, place.offset, place.length) for index, place in shard.index()] == [
                (row["index"], row["offset"], row["length"]) for row in rows
            ]
            assert [int(item["label"]) for _, item in shard.items()] == [row["label"] for row in rows]


def times(folder) -> list[int]:
    return [(folder / name).stat().st_mtime_ns for name in TARS]


def test_a_block_that_grows_keeps_its_tars_and_adds_new_ones(made, teacher_file, pairs_numbers):
    before = times(made)
    block = make(made, teacher_file, pairs_numbers, last=2)
    assert times(made) == before and (made / "00002.tar").is_file()
    assert len(manifest.read(block).table) == 18


def test_a_restarted_block_makes_only_what_is_missing(made, teacher_file, pairs_numbers, caplog):
    caplog.set_level(logging.INFO, logger="dmd")
    block, before = made / "blocks" / "00000-00001.parquet", times(made)
    content, tar = block.read_bytes(), (made / "00001.tar").read_bytes()
    block.unlink()
    (made / "00001.tar").unlink()
    make(made, teacher_file, pairs_numbers)
    assert block.read_bytes() == content and (made / "00001.tar").read_bytes() == tar
    assert times(made)[0] == before[0] and "1 shards of 6 images to draw, 1 exist already" in caplog.text


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no record", "foreign"])
def test_a_tar_that_is_not_whole_is_made_again(made, teacher_file, pairs_numbers, damage):
    tar = made / "00000.tar"
    content = tar.read_bytes()
    if damage == "no record":
        record.sidecar(tar).unlink()
    elif damage == "foreign":
        shards.write(tar, [], {"who": "knows"})
    else:
        tar.write_bytes(content[:-512] if damage == "truncated" else content[:-2000] + b"\1" + content[-1999:])
    make(made, teacher_file, pairs_numbers)
    assert tar.read_bytes() == content and record.check(tar)


@pytest.mark.parametrize(
    "changed", [{"first_seed": 5}, {"labels": "balanced"}, {"solver": {"name": "student", "calls": {"sigmas": [80.0]}}}]
)
def test_a_tar_of_another_spec_is_made_again(made, teacher_file, pairs_numbers, changed):
    before = [(made / name).read_bytes() for name in TARS]
    block = make(made, teacher_file, pairs_numbers, **changed)
    assert all((made / name).read_bytes() != old for name, old in zip(TARS, before, strict=True))
    assert [shard.sha256 for shard in manifest.read(block).shards] == [files.sha256(made / name) for name in TARS]


def test_a_full_disk_is_named_and_leaves_nothing_half_written(teacher_file, pairs_numbers, tmp_path):
    (tmp_path / ".tmp-00001.tar").symlink_to("/dev/full")
    with pytest.raises(OSError, match=f"no space left while writing {tmp_path}/00001.tar"):
        make(tmp_path, teacher_file, pairs_numbers)
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == [".00000.tar.json", "00000.tar"]
    make(tmp_path, teacher_file, pairs_numbers)
    assert len(items(tmp_path)) == 12


def test_a_damaged_teacher_is_named_before_any_work(teacher_file, pairs_numbers, tmp_path):
    shutil.copytree(teacher_file.parent, tmp_path / "teacher")
    damaged = tmp_path / "teacher" / teacher_file.name
    content = bytearray(damaged.read_bytes())
    content[-50] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ValueError, match=f"{damaged} is damaged"):
        make(tmp_path / "pairs", damaged, pairs_numbers)
    assert not (tmp_path / "pairs").exists()


def test_images_that_are_not_finite_are_refused(teacher_file, pairs_numbers, tmp_path):
    solver = pairs_numbers["solver"] | {"sigma_max": 1e38}
    with pytest.raises(ValueError, match=r"images of seeds \[2147483648, .* not finite"):
        make(tmp_path, teacher_file, pairs_numbers, solver=solver)
    assert not list(tmp_path.glob("*.tar"))
