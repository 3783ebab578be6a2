"""Experiments that nobody wrote: seeds of one that was written, and those of files that are included."""

from pathlib import Path
from typing import Any

import pytest

from dmd import config
from dmd.config import inheritance
from dmd.config.reading import update

ROOT = Path(__file__).resolve().parents[2]
BASE = (ROOT / "tests" / "config" / "base.yaml").read_text()
METHOD = {"name": "dmd", "phases": [{"updates": 5}]}


def written(**sections: Any) -> dict[str, Any]:
    return {"experiments": {name.replace("_", "-"): section for name, section in sections.items()}}


def test_each_seed_is_an_experiment_with_noise_of_its_own():
    sample = {"num_samples": 4, "shard_size": 4}
    found = config.resolve(written(a={"distill": {"method": METHOD, "seeds": [3, 0, 7]}, "sample": sample}))
    seeds = {name: (each.distill.seed, each.sample.first_seed) for name, each in found.experiments.items()}
    assert seeds == {"a": (3, 0), "a-seed0": (0, 0), "a-seed7": (7, 7_000_000)}
    assert found.parents == {"a": None, "a-seed0": "a", "a-seed7": "a"}


def test_each_seed_learns_from_its_own_seed_of_a_student_that_it_inherits_as_teacher():
    flow = {"name": "rectified-flow", "objective": "reflow", "calls": 2, "phases": [{"updates": 5}]}
    taught = {"distill": {"method": METHOD}, "teacher": {"kind": "experiment", "name": "first"}}
    whole = written(
        first={"teacher": {"kind": "file", "file": "a"}, "distill": {"method": flow, "seeds": [0, 1]}},
        second=taught,
        third={"extends": "second", "teacher": {"weights": "raw"}, "distill": {"seeds": [0, 1, 2]}},
    )
    found = config.resolve(whole).experiments
    teachers = {name: each.teacher.name for name, each in found.items() if name.startswith("third")}
    assert teachers == {"third": "first", "third-seed1": "first-seed1", "third-seed2": "first"}
    assert found["third-seed1"].teacher.weights == "raw"


def test_seeds_without_samples_have_no_section_sample():
    found = config.resolve(written(a={"distill": {"method": METHOD, "seeds": [0, 1]}}))
    assert found.experiments["a-seed1"].distill.seed == 1 and found.experiments["a-seed1"].sample is None


def test_seeds_are_not_inherited_and_inherited_samples_count():
    sample = {"num_samples": 4, "shard_size": 4}
    parent = {"distill": {"method": METHOD, "seeds": [0, 1]}, "sample": sample}
    found = config.resolve(written(a=parent, b={"extends": "a"}, c={"extends": "a", "distill": {"seeds": [0, 2]}}))
    assert set(found.experiments) == {"a", "a-seed1", "b", "c", "c-seed2"}
    assert found.experiments["c-seed2"].sample.first_seed == 2_000_000


def test_a_seed_extends_the_same_seed_of_the_parent_and_shares_its_training():
    """Whatever stands first; a seed that the parent lacks extends the experiment itself."""
    sample = {"num_samples": 4, "shard_size": 4, "solver": {"name": "student"}}
    parent = {"distill": {"method": METHOD, "seeds": [0, 1]}, "sample": sample}
    child = {"extends": "a", "sample": {"weights": "raw"}, "distill": {"seeds": [0, 1, 2]}}
    for names in ({"a": parent, "b": child}, {"b": child, "a": parent}):
        found = config.resolve(written(**names))
        assert found.parents == {"a": None, "a-seed1": "a", "b": "a", "b-seed1": "a-seed1", "b-seed2": "b"}
        assert found.experiments["b-seed1"].sample.weights == "raw" == found.experiments["b-seed2"].sample.weights
        assert found.experiments["b-seed1"].distill == found.experiments["a-seed1"].distill
        assert found.experiments["b-seed1"].sample.first_seed == 1_000_000
    odd = child | {"sample": {"weights": "rare"}}
    with pytest.raises(config.ConfigError) as caught:
        config.resolve(written(a=parent, b=odd))
    assert str(caught.value).count("'rare'") == 1


def test_rows_and_points_are_of_the_first_seeds_as_many_as_wanted():
    scored = {"dataset": {"kind": "digits"}, "reference": {"features": {"kind": "pixels"}}, "evaluate": {}}
    scored |= {"sample": {"num_samples": 4, "shard_size": 4}, "distill": {"method": METHOD, "seeds": [0, 1, 2]}}
    whole = written(a=scored, b={"extends": "a"})
    rows = [{"label": "x", "experiments": ["a", "b"]}, {"label": "z", "experiments": ["a-seed1"]}]
    rows.append({"label": "y", "experiments": ["b", "a"], "seeds": 2})
    series = [{"label": "x", "points": [["a"], ["b"]]}]
    expected = {"all": ("a", "a-seed1", "a-seed2", "b"), 2: ("a", "a-seed1", "b"), 1: ("a", "b")}
    for seeds, experiments in expected.items():
        table, chart = {"rows": rows, "seeds": seeds}, {"kind": "calls", "series": series, "seeds": seeds}
        found = config.resolve({**whole, "tables": {"t": table}, "charts": {"c": chart}})
        assert [row.experiments for row in found.tables["t"].rows] == [experiments, ("a-seed1",), ("b", "a", "a-seed1")]
        assert [each.points for each in found.charts["c"].series] == [(experiments[:-1], ("b",))]


def test_child_of_another_method_keeps_all_but_the_method_and_optimisers_of_its_roles():
    parent = {"method": {"name": "gan", "weight": 1.0}, "ema_decay": 0.5, "schedule": {"warmup": 7}}
    parent["optimisers"] = {"student": {"learning_rate": 1.0}, "critic": {"learning_rate": 2.0}}
    child = {"extends": "a", "distill": {"method": METHOD, "optimisers": {"fake": {"learning_rate": 3.0}}}}
    merged = inheritance._merge_chain([child, {"distill": parent}])["distill"]
    assert merged["method"] == METHOD and merged["ema_decay"] == 0.5 and merged["schedule"] == {"warmup": 7}
    assert merged["optimisers"] == {"student": {"learning_rate": 1.0}, "fake": {"learning_rate": 3.0}}
    child["distill"]["optimisers"]["critic"] = {"learning_rate": 4.0}  # its own, to be refused
    assert "critic" in inheritance._merge_chain([child, {"distill": parent}])["distill"]["optimisers"]


@pytest.mark.parametrize(
    ("distill", "message"),
    [
        (None, "c.distill: null is not a section: leave the key out"),
        ({"optimisers": None}, "c.distill.optimisers: None is not a mapping"),
    ],
)
def test_grandchild_that_removes_the_optimisers_of_another_method_gets_a_message(distill: Any, message: str):
    first = {"method": {"name": "gan", "phases": [{"updates": 5}]}, "optimisers": {"student": {"learning_rate": 1.0}}}
    middle = {"extends": "a", "distill": {"method": METHOD}}
    with pytest.raises(config.ConfigError) as caught:
        config.resolve(written(a={"distill": first}, b=middle, c={"extends": "b", "distill": distill}))
    assert str(caught.value) == message


def test_included_files_add_their_entries(tmp_path: Path):
    (tmp_path / "more").mkdir()
    (tmp_path / "base.yaml").write_text("include: [more/one.yaml]\n" + BASE)
    (tmp_path / "more" / "one.yaml").write_text("include: [two.yaml]\nexperiments:\n  one: {extends: base}\n")
    (tmp_path / "more" / "two.yaml").write_text("tables: {t: {rows: [{label: a, experiments: [one]}]}}\n")
    found = config.load(tmp_path / "base.yaml")
    assert set(found.experiments) == {"base", "one"} and set(found.tables) == {"t"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [base.yaml]\n", "include goes in a circle: .*base.yaml -> .*one.yaml -> .*base.yaml"),
        ("storage: null\n", 'one.yaml: an included file has experiments, tables, charts, inputs, not "storage"'),
        ("experiments: [a]\n", "one.yaml: experiments: .* is not a mapping"),
        ("include: one\n", "one.yaml: include: 'one' is not a list of files"),
        ("include: [three.yaml]\n", "three.yaml is missing"),
        ("include: [two.yaml, ./two.yaml]\n", "two.yaml is included twice; once is enough"),
        ("include: [/dev/zero]\n", "/dev/zero is a device, not a file"),
        (
            "experiments:\n  a: {}\n  a: {}\n",
            'one.yaml: the key "a" stands twice in a mapping: in line 2 and in line 3',
        ),
        ("experiments: {a: {}, a: {}}\n", "in line 1 and in line 1"),
    ],
)
def test_include_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str):
    (tmp_path / "base.yaml").write_text("include: [one.yaml]\n" + BASE)
    (tmp_path / "one.yaml").write_text(text)
    (tmp_path / "two.yaml").write_text("experiments: {two: {extends: base}}\n")
    with pytest.raises(config.ConfigError, match=message):
        config.load(tmp_path / "base.yaml")


def test_later_file_goes_over_the_first_key_by_key():
    assert update({"a": {"b": 1, "c": [1]}, "d": 1}, {"a": {"c": [2]}, "d": {"e": 1}}) == {
        "a": {"b": 1, "c": [2]},
        "d": {"e": 1},
    }
