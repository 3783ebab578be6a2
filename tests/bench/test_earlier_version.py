"""The comparison with the earlier version sees what changed, whatever it is in; this tree agrees with itself."""

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file

from bench.earlier_version import __main__ as command
from bench.earlier_version.cases import CASES, Step
from bench.earlier_version.comparison import Comparison, compare, difference
from bench.earlier_version.renames import Rename, match
from bench.earlier_version.stages import StageReport, compare_step, from_equal_inputs, from_own_inputs, make_whole
from bench.earlier_version.tree import ROOT, Tree

WEIGHTS = {"raw.a": torch.arange(1.0, 5.0), "raw.b": torch.full((2, 2), 0.5, dtype=torch.bfloat16)}
ROWS = {"update": [0, 1], "fake_loss": [2.0, 1.0], "gap_bin0": [float("nan"), 1.0]}
FACTS = {"shape": [1, 8, 8], "sigma": 80.0, "stage": "distill", "version": 1, "spec": {"seed": 0}}


def write(path: Path, content: dict, facts: dict = FACTS) -> Path:
    """An artifact of tensors, columns, arrays or values, as its suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".safetensors":
        save_file(content, path, metadata={"dmd": json.dumps(facts)})
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(content).replace_schema_metadata({"dmd": json.dumps(facts)}), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(content))
    else:
        with tarfile.open(path, "w") as tar:
            for name, array in content.items():
                stream = io.BytesIO()
                np.save(stream, array)
                member = tarfile.TarInfo(name)
                member.size = stream.tell()
                stream.seek(0)
                tar.addfile(member, stream)
    return path


def compared(folder: Path, name: str, old: dict, new: dict, *renames: Rename, facts: dict = FACTS) -> list[Comparison]:
    """What is said of two artifacts, the second with other facts where they are given."""
    paths = write(folder / "old" / name, old), write(folder / "new" / name, new, facts)
    return list(compare(name, *paths, renames))


def test_equal_artifacts_agree_bit_by_bit_whatever_their_specs_are(tmp_path):
    other = FACTS | {"version": 2, "spec": {"method": "dmd"}}
    for name, content in (("g.safetensors", WEIGHTS), ("log.parquet", ROWS)):
        found = compared(tmp_path, name, content, content, facts=other)
        assert [(each.num, each.num_equal) for each in found] == [(len(content), len(content)), (4, 4)]
        assert all(each.agrees for each in found)


def test_a_column_may_be_missing_only_if_it_has_no_value(tmp_path):
    empty, full = ROWS | {"gap_bin1": [float("nan")] * 2}, ROWS | {"gap_bin1": [float("nan"), 0.5]}
    assert all(each.agrees for each in compared(tmp_path / "empty", "log.parquet", empty, ROWS))
    columns, _ = compared(tmp_path / "full", "log.parquet", full, ROWS)
    assert columns.only_old == ["gap_bin1"] and not columns.agrees


@pytest.mark.parametrize(("by", "agrees"), [(4e-7, True), (1e-5, False)])
def test_changed_tensor_differs_by_its_largest_value(tmp_path, by, agrees):
    changed = WEIGHTS | {"raw.a": WEIGHTS["raw.a"].clone()}
    changed["raw.a"][3] += 4 * by
    tensors, _ = compared(tmp_path, "g.safetensors", WEIGHTS, changed)
    assert tensors.num_equal == 1 and tensors.worst == "raw.a" and tensors.agrees == agrees
    assert tensors.relative == pytest.approx(by, rel=0.3) and tensors.absolute == pytest.approx(4 * by, rel=0.3)


@pytest.mark.parametrize(
    ("name", "old", "new", "worst"),
    [
        ("log.parquet", ROWS, ROWS | {"fake_loss": [2.0, 1.001]}, "fake_loss"),
        ("log.parquet", ROWS, ROWS | {"gap_bin0": [0.0, 1.0]}, "gap_bin0: infinite or not a number in one tree only"),
        ("log.parquet", ROWS, ROWS | {"update": [0.0, 1.0]}, "update: int64 (2,) became float64 (2,)"),
        ("prompts.parquet", {"prompt": ["a", "b"]}, {"prompt": ["a", "c"]}, "prompt: other text"),
        ("fid.json", {"values": [3.0], "inputs": 1}, {"values": [3.1], "inputs": 2}, "values.0"),
        ("fid.json", {"metric": "fd"}, {"metric": "fid"}, "metric: other text"),
        ("0.tar", {"0.a.npy": np.ones(2)}, {"0.a.npy": np.zeros(2)}, "0.a.npy"),
        ("0.tar", {"0.a.npy": np.ones(2)}, {"0.a.npy": np.ones(3)}, "0.a.npy: float64 (2,) became float64 (3,)"),
    ],
)
def test_changed_value_is_named(tmp_path, name, old, new, worst):
    found = compared(tmp_path, name, old, new)[0]
    assert not found.agrees and found.worst == worst and found.num - found.num_equal == 1


def test_changed_fact_is_named(tmp_path):
    _, facts = compared(tmp_path, "g.safetensors", WEIGHTS, WEIGHTS, facts=FACTS | {"sigma": 79.0})
    assert not facts.agrees and facts.worst == "sigma" and facts.absolute == 1.0


def test_missing_name_is_told_of_either_side(tmp_path):
    fewer = {name: value for name, value in ROWS.items() if name != "fake_loss"}
    lacking, _ = compared(tmp_path, "log.parquet", ROWS, fewer)
    assert not lacking.agrees and (lacking.only_old, lacking.only_new) == (["fake_loss"], [])
    adding, _ = compared(tmp_path, "log.parquet", fewer, ROWS)
    assert not adding.agrees and (adding.only_old, adding.only_new) == ([], ["fake_loss"])


def test_renamed_dropped_and_added_names_agree_where_a_row_says_so(tmp_path):
    renames = (
        Rename("*.parquet", "fake_(.*)", r"\1/fake"),
        Rename("*", "gap_bin.*", None),
        Rename("*", None, "num_.*"),
    )
    new = {"update": ROWS["update"], "loss/fake": ROWS["fake_loss"], "num_calls": [1, 2]}
    found, _ = compared(tmp_path, "log.parquet", ROWS, new, *renames)
    assert found.agrees and found.num == 2 and found.declared == ["gap_bin0", "num_calls"]
    assert match("fid.json", ["fake_loss"], ["fake_loss"], renames).pairs == [("fake_loss", "fake_loss")]
    with pytest.raises(ValueError, match="the same new one"):
        match("a", ["x", "y"], ["x"], [Rename("*", "[xy]", "x")])


def test_values_beside_zeros_are_infinitely_far():
    assert difference(np.zeros(2), np.array([0.0, 1e-30])).relative == float("inf")
    negative = difference(np.zeros(1), -np.zeros(1))
    assert not negative.bits and negative.relative == 0.0


def test_file_on_one_side_only_is_named(tmp_path):
    step = Step("distill", ("e/*.json",), checkpoints=("e/*.safetensors",))
    for tree in ("old", "new"):
        write(tmp_path / tree / "results/e/fid.json", {"value": 1.0})
    with pytest.raises(ValueError, match="no file matches"):
        compare_step(step, tmp_path / "old", tmp_path / "new")
    write(tmp_path / "old/kept/e/1.safetensors", WEIGHTS)
    with pytest.raises(ValueError, match=r"one side only: e/1.safetensors \(earlier version\)"):
        compare_step(step, tmp_path / "old", tmp_path / "new")
    write(tmp_path / "new/kept/e/1.safetensors", WEIGHTS)
    assert [each.agrees for each in compare_step(step, tmp_path / "old", tmp_path / "new")] == [True] * 3


def test_command_ends_with_status_1_and_names_the_stage(capsys):
    good = StageReport("toy2d", "pairs", ["pairs"], [Comparison("a.tar", "tensors", num=1, num_equal=1)])
    bad = StageReport("toy2d", "distill", comparisons=[Comparison("log.parquet", "columns", only_new=["loss"])])
    command.end([good], 1.0)
    with pytest.raises(SystemExit, match="differs from the earlier version: toy2d.distill, text.pairs"):
        command.end([good, bad, StageReport("text", "pairs")], 1.0)
    assert "in this tree only: loss" in command.as_text(bad)
    assert json.loads(json.dumps(command.as_json(bad)))["comparisons"][0]["agrees"] is False


def test_configurations_of_both_houses_name_every_case():
    for side in ("old", "new"):
        for case in CASES.values():
            config = Tree(ROOT, ROOT / "bench" / "earlier_version" / side).config(case.name, quick=True)
            assert case.name in yaml.safe_load(config)["experiments"]


@pytest.mark.slow
def test_this_tree_agrees_with_itself_and_a_changed_stage_is_found_where_it_is(tmp_path):
    configs, case, numbers = ROOT / "bench" / "earlier_version" / "new", CASES["toy2d"], {"quick": True, "cores": 1}
    tree, made = Tree(ROOT, configs), tmp_path / "made"
    make_whole(case, tree, made, inputs_from=ROOT, **numbers)
    reports = list(from_equal_inputs(case, made, tree, tmp_path / "again", renames=(), **numbers))
    assert [report.stage for report in reports] == [step.name for step in case.steps]
    for report in reports:
        assert report.agrees and all(each.num_equal == each.num for each in report.comparisons), report
        assert report.stage == "sources" or report.rules == [report.stage]
    shutil.copytree(configs, tmp_path / "configs")
    changed = yaml.safe_load((configs / "toy2d.yaml").read_text())
    changed["experiments"]["toy2d"]["distill"]["seed"] = 1
    (tmp_path / "configs" / "toy2d.yaml").write_text(yaml.safe_dump(changed))
    short = dataclasses.replace(case, steps=case.steps[:4])
    found = from_own_inputs(short, made, Tree(ROOT, tmp_path / "configs"), tmp_path / "own", renames=(), **numbers)
    assert {report.stage: report.agrees for report in found} == {
        "sources": True, "pairs": True, "pairs_manifest": True, "distill": False
    }  # fmt: skip
