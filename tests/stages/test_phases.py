"""Phases with numbers of their own: each the same as a run of those numbers; continued exactly."""

import math
import shutil
from pathlib import Path

import pytest
import torch

from dmd.data import manifest as manifests
from dmd.provenance import tensor_files
from dmd.stages import manifest
from tests.conftest import DISTILL
from tests.trainings import NAMES, changed, digests, distil

OWN = {"max_index": 500, "num_pairs": 6, "matching_batch_size": 3, "regression_batch_size": 4}


@pytest.fixture(scope="module")
def run(teacher_file, manifest_file):
    """Distils into a folder at a constant rate, with some inputs or keys changed."""
    section = changed(DISTILL, schedule={"decay": "constant"}, grid_every=100)

    def distilled(folder: Path, files: dict = {}, **keys) -> Path:  # noqa: B006
        return distil(folder, changed(section, **keys), **{"teacher": teacher_file, "manifest": manifest_file, **files})

    return distilled


@pytest.fixture(scope="module")
def both() -> dict:
    """A phase with both losses; not to be changed."""
    return {"updates": 4, "fake_updates": 1, "learning_rate_scale": 0.5}


@pytest.fixture(scope="module")
def own(run, both, tmp_path_factory) -> Path:
    """A distillation of one phase with numbers of its own; not to be changed."""
    return run(tmp_path_factory.mktemp("own"), phases=[both | OWN])


def rows(folder: Path) -> list[dict]:
    """Of the log, with the values that each has."""
    read = [{**row, "phase": 0} for row in manifests.read_table(folder / NAMES[1])[0].to_pylist()]
    return [{name: value for name, value in row.items() if not math.isnan(value)} for row in read]


def losses(folder: Path) -> list[dict]:
    """Of the rows."""
    return [{name: value for name, value in row.items() if name.startswith("loss/")} for row in rows(folder)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return tensor_files.load(folder / NAMES[0])[0]


SECTION = {"levels": {"max_index": 500}, "matching_batch_size": 3, "regression_batch_size": 4}  # the same for all


def test_a_phase_of_its_own_numbers_is_a_run_of_those_numbers(run, both, own, manifest_file, tmp_path):
    """`num_pairs` is a manifest that holds no more; each key matters."""
    block = manifest_file.parent / "blocks" / "00000-00001.parquet"
    manifest.run(blocks=[block], output=manifest_file.parent / "six.parquet", num=6, shard_size=6)
    apart = run(tmp_path / "section", {"manifest": manifest_file.parent / "six.parquet"}, phases=[both], **SECTION)
    one, same_keys = weights(own), weights(apart)
    assert all(torch.equal(one[name], value) for name, value in same_keys.items()) and rows(own) == rows(apart)
    for key in OWN:
        phase = both | {name: value for name, value in OWN.items() if name != key}
        assert losses(run(tmp_path / key, phases=[phase], monitor=None)) != losses(own), key


def test_phases_follow_each_other_as_runs_of_their_numbers_begin(run, both, own, tmp_path):
    """Rows of a run of two phases are those of a run that has the first alone, then others."""
    whole = rows(run(tmp_path / "whole", phases=[both | OWN, both | {"num_pairs": 12}]))
    assert len(whole) == 8 and whole[:4] == rows(own)
    null = dict.fromkeys([*OWN, "decoder"])
    again = rows(run(tmp_path / "null", phases=[both | OWN, both | null]))
    assert again == whole


def test_pairs_beyond_the_number_of_a_phase_are_never_read(run, both, manifest_file, tmp_path):
    """The second shard is damaged: only a phase of all twelve pairs finds out."""
    shutil.copytree(manifest_file.parent, tmp_path / "pairs")
    damaged = tmp_path / "pairs" / "00001.tar"
    damaged.write_bytes(damaged.read_bytes()[:-512])
    given = {"manifest": tmp_path / "pairs" / "manifest.parquet"}
    run(tmp_path / "six", given, phases=[both | {"updates": 9, "num_pairs": 6}])
    with pytest.raises(ValueError, match="00001.tar"):
        run(tmp_path / "all", given, phases=[both | {"num_pairs": 6}, both])
    with pytest.raises(ValueError, match=r"distill.method.phases\[1\].num_pairs: 13, but .* holds 12"):
        run(tmp_path / "more", phases=[both, both | {"num_pairs": 13}])


@pytest.fixture(scope="module")
def two_phases(both) -> dict:
    """Keys of a run of two phases; not to be changed."""
    return {"phases": [both | OWN, both], "match_pairs": True, "checkpoint_every": 1}


@pytest.fixture(scope="module")
def whole(run, two_phases, tmp_path_factory) -> Path:
    """A distillation of `two_phases` that nothing stopped; not to be changed."""
    return run(tmp_path_factory.mktemp("whole"), **two_phases)


@pytest.mark.parametrize("update", [4, 7])
def test_a_run_that_continues_in_the_middle_of_phases_has_the_same_bytes(run, two_phases, whole, tmp_path, update):
    (tmp_path / "grids" / f"{update:08d}.png").mkdir(parents=True)
    with pytest.raises(OSError):
        run(tmp_path, **two_phases, grid_every=update)
    shutil.rmtree(tmp_path / "grids")
    run(tmp_path, **two_phases)
    assert digests(tmp_path) == digests(whole)


def test_pairs_join_the_matching_batch_where_they_are_told_to(run, both, tmp_path):
    keys = {"phases": [both], "monitor": None}
    apart, joined = (rows(run(tmp_path / str(value), **keys, match_pairs=value)) for value in (False, True))
    assert apart[0]["loss/regression"] == joined[0]["loss/regression"]
    assert apart[0]["loss/fake"] != joined[0]["loss/fake"]
    assert apart[2]["loss/matching"] != joined[2]["loss/matching"]


def test_sigma_null_is_the_last_level_of_the_start(run, both, tmp_path):
    with pytest.raises(ValueError, match="distill.method.sigma: null is the highest noise level of .* which has none"):
        run(tmp_path, phases=[both], sigma=None)
