"""Experiments: inheritance, defaults, messages, and who owns which artifact."""

import copy
import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from dmd import config
from dmd.distill_section import cadence
from dmd.experiments import Experiments

ROOT = Path(__file__).resolve().parents[1]
SCHEMA = config.read_yaml(ROOT / "workflow" / "schemas" / "config.schema.yaml")
BASE: dict[str, Any] = {
    "dataset": {"kind": "digits"},
    "teacher": {
        "kind": "train",
        "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
        "training": {"updates": 10, "batch_size": 8, "learning_rate": 0.001},
    },
    "reference": {"features": {"kind": "pixels"}},
    "pairs": {"num_pairs": 16, "shard_size": 4, "shards_per_job": 3},
    "distill": {"phases": [{"updates": 5}]},
    "sample": {"num_samples": 8, "shard_size": 4, "repetitions": 2},
    "evaluate": {},
}

DIGITS32 = {"features": {"kind": "digits32", "file": "d.safetensors", "sha256": "d" * 64}}
LAST = {"updates": 1, "decoder": "full"}
OTHER_DIGITS32 = {"reference": {"features": {"file": "e.safetensors"}}}


def resolved(**children: dict[str, Any]) -> config.Json:
    """`base` and the given children of it, resolved."""
    written = {name.replace("_", "-"): {"extends": "base", **section} for name, section in children.items()}
    return config.resolve({"experiments": {"base": copy.deepcopy(BASE), **written}}, SCHEMA)


def fault(**children: dict[str, Any]) -> str:
    """The message for the given children."""
    with pytest.raises(config.ConfigError) as caught:
        resolved(**children)
    return str(caught.value)


def owners(found: config.Json, name: str) -> dict[str, str]:
    experiments = Experiments(found)
    rules = ("teacher", "reference", "pairs", "pairs_manifest", "distill", "sample", "features", "evaluate")
    return {rule: experiments.owner(name, rule) for rule in rules}


def test_shipped_configuration_resolves():
    found = config.load(ROOT / "config.yaml", ROOT / "workflow" / "schemas" / "config.schema.yaml")
    assert {"digits", "toy2d"} <= set(found["experiments"])


def test_merge_goes_deep_but_replaces_lists_and_other_kinds():
    parent = {"a": {"x": 1, "y": [1, 2]}, "b": {"kind": "one", "z": 3}, "c": {"name": "heun", "steps": 9}}
    child = {"a": {"y": [3]}, "b": {"kind": "two"}, "c": {"name": "euler"}}
    assert config.merge(parent, child) == {"a": {"x": 1, "y": [3]}, "b": {"kind": "two"}, "c": {"name": "euler"}}
    assert config.merge(parent, {"b": {"kind": "one", "w": 1}})["b"] == {"kind": "one", "z": 3, "w": 1}


def test_defaults_of_distill_are_the_papers():
    distill = resolved()["experiments"]["base"]["distill"]
    assert distill["regression_weight"] == 0.25 and distill["matching_batch_size"] == 392
    assert distill["levels"] == {
        "count": 1000, "rho": 7.0, "sigma_min": 0.002, "sigma_max": 80.0, "min_index": 20, "max_index": 980
    }  # fmt: skip
    assert distill["optimiser"]["learning_rate"] == 5e-5 and distill["optimiser"]["betas"] == [0.9, 0.999]
    assert distill["phases"][0] == {
        "updates": 5, "train": "both", "matching_scale": 1.0, "regression_scale": 1.0, "fake_updates": 1,
        "learning_rate_scale": 1.0, "fresh_optimiser": False, "max_index": None, "num_pairs": None, "decoder": None,
        "matching_batch_size": None, "regression_batch_size": None,
    }  # fmt: skip


def test_whole_numbers_and_written_defaults_give_the_same_spec():
    found = resolved(other={"distill": {"sigma": 80, "optimiser": {"warmup": 500}}})
    assert set(owners(found, "other").values()) == {"base", "other"}
    assert [rule for rule, owner in owners(found, "other").items() if owner == "other"] == ["evaluate"]


def test_specs_mention_only_what_is_switched_on_of_compute():
    child = {"distill": {"compute": {"dtype": "bfloat16", "tf32": False}, "processes": 2}, "pairs": {"compute": {}}}
    experiments = Experiments(resolved(child=child))
    assert not {"compute", "processes", "log_every"} & set(experiments.spec("base", "distill"))
    written = cadence(experiments.section("base", "distill"))
    assert written == {"checkpoint_every": 1000, "grid_every": 1000, "log_every": 1}
    assert experiments.spec("child", "distill")["compute"] == {"dtype": "bfloat16"}
    assert experiments.spec("child", "distill")["processes"] == 2
    assert experiments.owner("child", "pairs") == "base" == experiments.owner("child", "pairs_manifest")
    assert not any("compute" in experiments.spec("base", rule) for rule in ("pairs", "sample"))


def test_specs_mention_adapter_and_kind_of_optimiser_only_where_they_are_not_the_old_ones():
    children = {"written": {"distill": {"adapter": None, "optimiser": {"kind": "fused"}}}}
    children |= {"light": {"distill": {"adapter": {}, "optimiser": {"kind": "8bit"}}}}
    found = Experiments(resolved(**children))
    specs = {name: found.spec(name, "distill") for name in ("base", "written", "light")}
    assert (
        specs["written"] == specs["base"]
        and "adapter" not in specs["base"]
        and "kind" not in specs["base"]["optimiser"]
    )
    assert specs["light"]["adapter"] == {"rank": 64, "alpha": None, "targets": None}
    assert specs["light"]["optimiser"] == specs["base"]["optimiser"] | {"kind": "8bit"}


def test_lora_of_samples_stands_in_their_spec_without_its_path():
    teacher = {"from": "teacher", "solver": {"name": "heun"}}
    children = {"plain": {"sample": teacher}, "lora": {"sample": teacher | {"lora": {"file": "a.safetensors"}}}}
    found = Experiments(resolved(**children))
    assert "lora" not in found.spec("plain", "sample")
    assert found.spec("lora", "sample")["lora"] == {"scale": 1.0, "sha256": None}


def test_levels_name_their_kind_only_where_it_is_not_karras():
    levels = {"named": {"kind": "karras"}, "own": {"kind": "teacher", "max_index": 50}}
    found = Experiments(resolved(**{name: {"distill": {"levels": value}} for name, value in levels.items()}))
    specs = {name: found.spec(name, "distill") for name in ("base", "named", "own")}
    assert specs["named"] == specs["base"] and "kind" not in specs["base"]["levels"]
    assert specs["own"]["levels"] == {"kind": "teacher", "min_index": 20, "max_index": 50}


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"distill": {"regresion_weight": 1.0}}, ['"regresion_weight"', 'did you mean "regression_weight"?']),
        ({"distil": {}}, ['"distil"', 'did you mean "distill"?']),
        ({"distill": {"optimiser": {"learning_rate": "5e-5"}}}, ["learning_rate", "'5e-5' is a string", "5.0e-05"]),
        ({"pairs": {"solver": {"name": "heun", "stps": 3}}}, ["pairs.solver", '"stps"', 'did you mean "steps"?']),
        ({"teacher": {"network": {"widht": 3}}}, ["teacher.network", 'did you mean "width"?']),
        ({"distill": {"phases": [{"updates": 1, "trian": "fake"}]}}, ["phases[0]", 'did you mean "train"?']),
        ({"distill": {"adapter": {"rnk": 4}}}, ["distill.adapter", 'did you mean "rank"?']),
        ({"distill": {"adapter": {}, "start": "base"}}, ["distill.start: base", "the network that carries"]),
        ({"distill": {"compute": {"shard_parameters": True}}}, ["shard_parameters", "distill.processes is 1"]),
        (
            {"distill": {"compute": {"shard_parameters": True}, "processes": 5}},
            ["shard_parameters: 5 processes", "equal parts of matching_batch_size 392"],
        ),
        (
            {
                "distill": {
                    "compute": {"shard_parameters": True},
                    "processes": 2,
                    "phases": [{"updates": 1, "matching_batch_size": 7}],
                }
            },
            ["equal parts of phases[0].matching_batch_size 7"],
        ),
        (
            {"distill": {"compute": {"shard_parameters": True}, "processes": 2, "optimiser": {"kind": "8bit"}}},
            ["shard_parameters: optimiser.kind is 8bit"],
        ),
        ({"sample": {"lora": {"file": "inputs/lcm.safetensors"}}}, ["sample.lora", "is added to a teacher"]),
        ({"extends": "bse"}, ['unknown experiment "bse"', 'did you mean "base"?']),
        ({"distill": {"start": "bsae"}}, ["distill.start", 'did you mean "base"?']),
        ({"pairs": {"num_pairs": 15}}, ["pairs.num_pairs: 15 is not a multiple of shard_size 4"]),
        ({"sample": {"num_samples": 9}}, ["sample.num_samples: 9 is not a multiple of shard_size 4"]),
        ({"sample": {"first_seed": 2**31 - 15}}, ["sample.first_seed", "overlap"]),
        ({"sample": {"from": "teacher"}}, ["sample.solver.name", "heun or euler"]),
        ({"teacher": {"kind": "gaussian-mixture"}}, ["teacher.kind", "digits"]),
        ({"distill": {"levels": {"max_index": 1000}}}, ["distill.levels", "0..999"]),
        ({"distill": {"levels": {"kind": "teacher", "min_index": 981}}}, ["distill.levels: indices 981..980 are no"]),
        ({"distill": {"levels": {"kind": "teacher", "rho": 7.0}}}, ["distill.levels", '"rho"']),
        ({"distill": {"levels": {"kind": "teachr"}}}, ["distill.levels.kind", "teachr"]),
        ({"evaluate": {"neighbours": True}}, ["evaluate.neighbours"]),
        ({"distill": {"phases": [{"updates": "1e3"}]}}, ["phases[0].updates", "'1e3' is a string", "write 1000"]),
        ({"distill": {"phases": [{"updates": 1.5}]}}, ["phases[0].updates", "1.5"]),
        (
            {"distill": {"phases": [{"updates": 1}, {"updates": 1, "matching_scale": 0.0, "fake_updates": 2}]}},
            ["distill.phases[1].fake_updates: 2 would not be made, matching_scale is 0"],
        ),
        (
            {"distill": {"phases": [{"updates": 1, "train": "fake", "fake_updates": 2}]}},
            ["distill.phases[0].fake_updates: 2 would not be made, train is fake"],
        ),
        (
            {"reference": {"features": {"kind": "inception", "file": "i.pth"}}},
            ["child.reference.protocol.quantise: None", "those of 8-bit images: 256"],
        ),
        (
            {"reference": {"against": "training", "moments": {"file": "m.npz"}}},
            ["child.reference.against: training is a split of a dataset, but reference.moments"],
        ),
        (
            {"reference": {"protocol": {"quantise": 17, "resize": {"size": 8}}}},
            ["child.reference.protocol.resize", "quantise must be 256, not 17"],
        ),
        (
            {
                "teacher": {"kind": "train", "network": {"kind": "mlp", "width": 8, "layers": 1}},
                "reference": {"against": "training"},
                "dataset": {"kind": "images", "folder": "f", "resolution": 8, "num_held_out": "all"},
            },
            ["child.dataset.num_held_out", "teacher.kind is train", "child.reference.against: training is a split"],
        ),
        (
            {"dataset": {"kind": "images", "folder": "f", "resolution": 8, "num_held_out": "al"}},
            ["num_held_out", "'al'"],
        ),
        ({"reference": {"against": "test"}}, ["child.reference.against", "test"]),
        ({"sample": {"first_seed": 2**32 - 15}}, ["sample.first_seed", "4294967295", "4294967280 at most"]),
        ({"pairs": {"first_seed": 2**32 - 15}}, ["pairs.first_seed", "4294967295", "4294967280 at most"]),
        ({"distill": {"phases": [{"updates": 1, "num_pairs": 17}]}}, ["distill.phases[0].num_pairs: 17 of 16"]),
        ({"distill": {"phases": [{"updates": 1, "max_index": 19}]}}, ["phases[0].max_index: 19 is not within 20..999"]),
        (
            {"distill": {"processes": 2, "phases": [{"updates": 1, "matching_batch_size": 1}]}},
            ["distill.phases[0].matching_batch_size: 1 cannot be shared by 2 processes"],
        ),
        (
            {
                "distill": {
                    "processes": 8,
                    "compute": {"shard_parameters": True},
                    "phases": [{"updates": 1, "matching_batch_size": 12}],
                }
            },
            ["distill.phases[0].matching_batch_size: 12 has no equal parts for 8 processes"],
        ),
        ({"distill": {"guidance": 0.5}}, ["distill.guidance", "0.5"]),
        ({"distill": {"guidance": 3}}, ["distill.guidance: 3.0, but a teacher of kind train knows no empty prompt"]),
        (
            {"distill": {"match_pairs": True, "regression_weight": 0}},
            ["distill.match_pairs: true, but matching_weight or regression_weight is 0"],
        ),
        (
            {"distill": {"regression_distance": {"kind": "l2", "decoder": "full"}}},
            ["distill.regression_distance.decoder: a teacher of kind train makes no latents"],
        ),
        ({"distill": {"processes": 393}}, ["distill.processes: 393 cannot share matching_batch_size 392"]),
        (
            {"distill": {"processes": 4}, "resources": {"distill": {"nodes": 3}}},
            ["resources.distill.nodes: 3 cannot share 4 processes evenly"],
        ),
        ({"resources": {"pairs": {"nodes": 2}}}, ["resources.pairs", '"nodes"']),
        ({"distill": {"compute": {"dtype": "float16"}}}, ["distill.compute.dtype", "float16"]),
        ({"sample": {"compute": {"micro_batch_size": 3}}}, ["sample.compute", '"micro_batch_size"']),
        ({"pairs": {"first_seed": 2**32}}, ["pairs.first_seed", "maximum of 4294967295"]),
    ],
)
def test_fault_is_named_with_key_and_value(section, words):
    message = fault(child=section)
    assert all(word in message for word in words), message


def test_reference_of_moments_needs_no_dataset_and_its_spec_no_path():
    moments = {"moments": {"file": "m.npz"}, "protocol": {"quantise": 256}}
    moments["features"] = {"kind": "inception", "file": "i.pth"}
    child = {"reference": moments, "sample": {"batch_size": 500}}
    found = Experiments(resolved(child=child, trained={"reference": {"against": "training"}}))
    spec = found.spec("child", "reference")
    clean = {"reference": {**moments, "features": {**moments["features"], "resize": "clean"}}}
    other = Experiments(resolved(child={**child, **clean}))
    assert other.spec("child", "features")["features"] == {"kind": "inception", "sha256": None, "resize": "clean"}
    assert spec["moments"] == {"sha256": None} and spec["features"].pop("batch_size") == 64
    assert spec["features"] == {"kind": "inception", "sha256": None}
    assert found.spec("child", "features")["batch_size"] == 64
    assert found.spec("base", "features")["batch_size"] == found.section("base", "sample")["batch_size"]
    assert "dataset" not in spec and "against" not in found.spec("base", "reference")
    assert found.spec("trained", "reference") == {**found.spec("base", "reference"), "against": "training"}
    alone = {name: section for name, section in BASE.items() if name != "dataset"}
    with pytest.raises(config.ConfigError, match="alone.reference: needs a section dataset, or reference.moments"):
        config.resolve({"experiments": {"alone": alone}}, SCHEMA)
    config.resolve({"experiments": {"alone": {**alone, "reference": moments}}}, SCHEMA)


def test_files_of_unknown_digest_are_told_apart_by_their_paths():
    teachers = {name: {"teacher": {"kind": "edm", "file": f"{name}.pkl"}} for name in ("one", "other")}
    moments = {"moments": {"file": "m.npz"}}
    again = {"extends": "one", "distill": {"seed": 1}}
    far = {"extends": "one", "teacher": {"file": "other.pkl"}, "reference": {"moments": {"file": "n.npz"}}}
    teachers["one"]["reference"] = moments
    found = resolved(**teachers, again=again, far=far)
    assert owners(found, "again")["teacher"] == owners(found, "again")["reference"] == "one"
    assert set(owners(found, "far").values()) == {"far"}
    known = {"edm": {"url": "https://a.b/c", "file": "other.pkl", "sha256": "0" * 64}}
    known["copy"] = {"url": "https://a.b/d", "file": "one.pkl", "sha256": "0" * 64}
    written = {"base": copy.deepcopy(BASE), "one": {"extends": "base", **teachers["one"]}, "far": far}
    same = config.resolve({"experiments": written, "inputs": known}, SCHEMA)
    assert owners(same, "far")["teacher"] == "one"  # the same bytes under two names


def test_child_with_another_file_does_not_inherit_the_digest_of_its_parents():
    pinned = {"teacher": {"kind": "edm", "file": "a.pkl", "sha256": "a" * 64}}
    pinned["reference"] = {"moments": {"file": "m.npz", "sha256": "b" * 64}}
    other = {"extends": "pinned", "teacher": {"file": "b.pkl"}, "reference": {"moments": {"file": "n.npz"}}}
    again = {"extends": "pinned", "teacher": {"file": "a.pkl"}}
    found = resolved(pinned=pinned, other=other, again=again)
    assert set(owners(found, "other").values()) == {"other"}
    assert found["experiments"]["other"]["teacher"] == {"kind": "edm", "file": "b.pkl", "sha256": None}
    assert found["experiments"]["other"]["reference"]["moments"] == {"file": "n.npz", "sha256": None}
    assert owners(found, "again")["teacher"] == "pinned"
    assert found["experiments"]["again"]["teacher"]["sha256"] == "a" * 64
    assert "sha256" in fault(digits={"reference": DIGITS32}, child={"extends": "digits", **OTHER_DIGITS32})


@pytest.mark.parametrize("digest", [None, "a" * 64])
def test_child_with_another_folder_owns_its_teacher(digest):
    first = {"teacher": {"kind": "diffusers", "folder": "A", "sha256": digest}}
    found = resolved(
        first=first, second={"extends": "first", "teacher": {"folder": "B"}}, same={"extends": "first", "sample": {}}
    )
    assert owners(found, "second")["teacher"] == owners(found, "second")["distill"] == "second"
    assert owners(found, "same")["teacher"] == "first"


@pytest.mark.parametrize("file", ["./in/../a.pkl", "ABSOLUTE"])
def test_file_is_that_of_its_input_however_it_is_spelt(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = str(tmp_path / "a.pkl") if file == "ABSOLUTE" else file
    written = {"base": {**copy.deepcopy(BASE), "teacher": {"kind": "edm", "file": file}}}
    entry = {"url": "https://a.b/c", "file": "a.pkl", "sha256": "0" * 64}
    found = config.resolve({"experiments": written, "inputs": {"edm": entry}}, SCHEMA)
    assert found["experiments"]["base"]["teacher"] == {"kind": "edm", "file": "a.pkl", "sha256": "0" * 64}
    elsewhere = str(tmp_path.parent / "a.pkl")
    entry["file"], written["base"]["teacher"]["file"] = "../a.pkl", elsewhere
    found = config.resolve({"experiments": written, "inputs": {"edm": entry}}, SCHEMA)
    assert found["inputs"]["edm"]["file"] == found["experiments"]["base"]["teacher"]["file"] == elsewhere
    assert found["experiments"]["base"]["teacher"]["sha256"] == "0" * 64
    entry["file"] = str(tmp_path / "results" / "a.pkl")
    with pytest.raises(config.ConfigError, match="only the workflow writes"):
        config.resolve({"experiments": written, "inputs": {"edm": entry}}, SCHEMA)


def test_child_drops_moments_for_the_images_of_its_dataset():
    moments = {"features": {"kind": "inception", "file": "i.pth"}, "protocol": {"quantise": 256}}
    parent = {"reference": {**moments, "moments": {"file": "m.npz"}}}
    images = {"extends": "parent", "reference": {"moments": None, "against": "training"}}
    found = resolved(parent=parent, images=images, direct={"reference": {**moments, "against": "training"}})
    assert found["experiments"]["images"]["reference"] == found["experiments"]["direct"]["reference"]
    assert owners(found, "images")["reference"] == "images"
    assert Experiments(found).spec("images", "reference")["dataset"] == found["experiments"]["base"]["dataset"]


def test_resources_are_in_no_spec():
    found = resolved(child={"resources": {"distill": {"memory_mb": 9000, "hours": 2.5}, "evaluate": {"hours": 1}}})
    assert {rule for rule, owner in owners(found, "child").items() if owner == "child"} == {"evaluate"}


def test_inception_score_belongs_to_inception_features():
    section = {"features": {"kind": "inception", "file": "i.pth"}, "protocol": {"quantise": 256}}
    found = Experiments(resolved(child={"reference": section}))
    assert found.spec("child", "inception_score") == {"experiment": "child", "splits": 10, "seed": 2020}
    with pytest.raises(config.ConfigError, match="an Inception Score needs kind inception, not pixels"):
        found.spec("base", "inception_score")


def test_adjacent_seed_ranges_do_not_overlap():
    resolved(child={"sample": {"first_seed": 2**31 - 16}})
    resolved(child={"sample": {"first_seed": 2**32 - 16}})


def test_whole_floats_become_integers_where_the_schema_wants_those():
    child = {
        "teacher": {"network": {"multipliers": [1.0, 2.0]}, "training": {"updates": 400.0}},
        "reference": {"protocol": {"quantise": 17.0}},
        "distill": {"sigma": 80, "optimiser": {"fake_learning_rate": 1}},
    }
    found = resolved(child=child)["experiments"]["child"]
    numbers = [*found["teacher"]["network"]["multipliers"], found["teacher"]["training"]["updates"]]
    numbers += [found["reference"]["protocol"]["quantise"]]
    assert numbers == [1, 2, 400, 17] and all(type(number) is int for number in numbers)
    distill = found["distill"]
    assert [type(number) for number in (distill["sigma"], distill["optimiser"]["fake_learning_rate"])] == [float] * 2


@pytest.mark.parametrize("group", ["tables", "charts"])
def test_table_or_chart_of_an_experiment_without_scores_is_refused(group):
    row = {"label": "x", "experiments": ["start"], "points": [["start"]]}
    entry = {"rows": [{**row}]} if group == "tables" else {"kind": "calls", "series": [{**row}]}
    for part in (*entry.get("rows", ()), *entry.get("series", ())):
        del part["points" if group == "tables" else "experiments"]
    written = {"experiments": {"start": {"dataset": {"kind": "digits"}}}, group: {"demo": entry}}
    message = f'{group}.demo: experiment "start" .* has no section reference, sample, evaluate'
    with pytest.raises(config.ConfigError, match=message):
        config.resolve(written, SCHEMA)


def test_circle_of_parents_is_shown():
    written = {"a": {"extends": "b"}, "b": {"extends": "a"}}
    with pytest.raises(config.ConfigError, match="a -> b -> a"):
        config.resolve({"experiments": written}, SCHEMA)


@pytest.mark.parametrize("name", ["tables", "logs", "Base", "a_b", "-a"])
def test_reserved_or_odd_name_is_refused(name):
    with pytest.raises(config.ConfigError):
        config.resolve({"experiments": {name: {}}}, SCHEMA)


@pytest.mark.parametrize(
    ("section", "owned"),
    [
        ({"teacher": {"seed": 1}}, "teacher pairs pairs_manifest distill sample features evaluate"),
        ({"pairs": {"num_pairs": 32}}, "pairs_manifest distill sample features evaluate"),
        ({"distill": {"seed": 1}}, "distill sample features evaluate"),
        ({"sample": {"first_seed": 99}}, "sample features evaluate"),
        ({"sample": {"repetitions": 3}}, "evaluate"),
        ({"sample": {"from": "teacher", "solver": {"name": "euler"}}}, "sample features evaluate"),
        ({"reference": {"seed": 1}}, "reference features evaluate"),
        ({"evaluate": {"seed": 1}}, "evaluate"),
        ({"distill": {"start": "other"}}, "distill sample features evaluate"),
    ],
)
def test_child_owns_artifacts_from_the_first_stage_it_changes(section, owned):
    found = owners(resolved(child=section, other={"teacher": {"seed": 7}}), "child")
    assert {rule for rule, owner in found.items() if owner == "child"} == set(owned.split())


@pytest.mark.parametrize("lacking", ["sample", "distill", "pairs", "reference"])
def test_parent_that_lacks_a_section_owns_nothing_that_needs_it(lacking):
    parent = {name: copy.deepcopy(section) for name, section in BASE.items() if name != lacking}
    written = {"parent": parent, "child": {"extends": "parent", lacking: copy.deepcopy(BASE[lacking])}}
    found = config.resolve({"experiments": written}, SCHEMA)
    needing = {
        "sample": {"reference", "sample", "features", "evaluate"},
        "distill": {"distill", "sample", "features", "evaluate"},
        "pairs": {"pairs", "pairs_manifest", "distill", "sample", "features", "evaluate"},
        "reference": {"reference", "features", "evaluate"},
    }[lacking]
    assert {rule for rule, owner in owners(found, "child").items() if owner == "child"} == needing
    experiments = Experiments(found)
    assert {rule for rule in owners(found, "child") if not experiments.has("parent", rule)} == needing


def test_blocks_cover_every_shard_once_and_stay_within_a_repetition():
    experiments = Experiments(resolved())
    assert experiments.blocks("base", "pairs") == [(0, 2), (3, 3)]
    assert experiments.blocks("base", "sample") == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_block_spec_differs_from_the_shared_one_only_in_its_place():
    experiments = Experiments(resolved())
    shared, one = experiments.spec("base", "pairs"), experiments.spec("base", "pairs", (3, 3))
    assert one == {**shared, "first": 3, "last": 3} and "num_pairs" not in one


def test_imported_teacher_needs_no_dataset_up_to_the_generator():
    sections = {name: copy.deepcopy(BASE[name]) for name in ("pairs", "distill")}
    teachers: dict[str, Any] = {"one": {"file": "inputs/a.pkl", "sha256": "89abcdef"}}
    teachers |= {"moved": {"file": "b.pkl", "sha256": "89abcdef"}, "other": {"sha256": "01234567"}}
    written: dict[str, Any] = {"one": {**sections, "teacher": {"kind": "edm", **teachers["one"]}}}
    written |= {name: {"extends": "one", "teacher": {"kind": "edm", **teachers[name]}} for name in ("moved", "other")}
    experiments = Experiments(config.resolve({"experiments": written}, SCHEMA))
    assert experiments.spec("one", "teacher") == {"kind": "edm", "sha256": "89abcdef"}
    for rule in ("teacher", "pairs", "pairs_manifest", "distill"):
        assert [experiments.owner(name, rule) for name in written] == ["one", "one", "other"]


def test_trained_teacher_needs_a_dataset():
    experiments = Experiments(config.resolve({"experiments": {"a": {"teacher": BASE["teacher"]}}}, SCHEMA))
    with pytest.raises(config.ConfigError, match='"a" has no section "dataset"'):
        experiments.owner("a", "teacher")


def test_missing_section_is_named():
    experiments = Experiments(config.resolve({"experiments": {"start": {"dataset": {"kind": "digits"}}}}, SCHEMA))
    with pytest.raises(config.ConfigError, match='"start" has no section "sample"'):
        experiments.owner("start", "evaluate")


def test_every_stage_takes_exactly_the_keys_of_its_spec():
    """Held against the signatures of the stages, so that neither side changes alone."""
    import importlib
    import inspect

    from dmd.stages import command_line

    found = config.load(ROOT / "config.yaml", ROOT / "workflow" / "schemas" / "config.schema.yaml")
    experiments = Experiments(found)
    modules = {"pairs_manifest": "manifest", "samples_manifest": "manifest"}
    rules = ("teacher", "reference", "pairs", "sample", "features", "evaluate", "pictures", "export", *modules)
    for experiment in ("digits", "toy2d"):
        for rule in rules:
            run = importlib.import_module(f"dmd.stages.{modules.get(rule, rule)}").run
            numbers = {
                name: parameter
                for name, parameter in inspect.signature(run, eval_str=True).parameters.items()
                if not command_line.is_path(parameter.annotation)
            }
            block = (0, 0) if rule in ("pairs", "sample") else None
            command_line.check_spec(experiments.spec(experiment, rule, block), numbers)


def test_what_is_off_in_distill_is_no_part_of_its_spec():
    phases = [{"updates": 5}, {"updates": 2, "max_index": 500, "num_pairs": 8, "matching_batch_size": 16}]
    children = {
        "same": {"guidance": 1.0, "match_pairs": False, "regression_distance": {"kind": "l2", "decoder": "none"}},
        "other": {"match_pairs": True, "phases": phases, "sigma": None},
    }
    found = Experiments(resolved(**{name: {"distill": section} for name, section in children.items()}))
    base, same, other = (found.spec(name, "distill") for name in ("base", "same", "other"))
    assert same == base and not {"guidance", "match_pairs"} & base.keys() and "max_index" not in base["phases"][0]
    assert base["regression_distance"] == {"kind": "l2"} and "decoder" not in base["phases"][0]
    assert other["match_pairs"] is True and other["sigma"] is None and other["phases"][0] == base["phases"][0]
    assert other["phases"][1].items() - base["phases"][0].items() >= set(phases[1].items())


def test_decoders_of_all_phases_are_upstream_of_a_distillation_of_latents():
    prompts = {"kind": "file", "file": "prompts.parquet"}
    texts = {"prompts": prompts, "sample": {"prompts": prompts}}
    texts["teacher"] = {"kind": "stable-diffusion", "folder": "sd", "tiny_autoencoder": {"folder": "tiny"}}
    distance = {"kind": "l2", "decoder": "tiny"}
    found = resolved(
        text=texts | {"distill": {"guidance": 3, "regression_distance": distance}},
        both=texts | {"distill": {"regression_distance": distance, "phases": [{"updates": 1}, LAST]}},
        full=texts | {"distill": {"regression_distance": distance, "phases": [LAST]}},
    )
    upstream = {name: [rule for rule, _ in Experiments(found).upstream(name, "distill")] for name in found["parents"]}
    before = ["teacher", "pairs_manifest"]
    assert upstream["base"] == before and upstream["text"] == [*before, "tiny_autoencoder"]
    assert upstream["both"] == [*before, "tiny_autoencoder", "autoencoder"]
    assert upstream["full"] == [*before, "autoencoder"]
    texts["teacher"] = {"kind": "stable-diffusion", "folder": "sd"}
    message = fault(text=texts | {"distill": {"regression_distance": distance}})
    assert "decoder: tiny, but section teacher names no tiny_autoencoder" in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"sigma": float("nan")}, "experiments.child.distill.sigma: nan is no number that can be used"),
        ({"sigma": float("inf")}, "inf is no number"),
        ({1: 2}, "the key 1 is no text"),
        ({"seed": datetime.date(2001, 1, 1)}, "is a date to YAML"),
    ],
)
def test_value_that_json_does_not_have_is_named(value: Any, message: str):
    assert message in fault(child={"distill": value})


def test_parent_that_is_no_name_is_named():
    for value in ({"a": 1}, 5, ["base"]):
        with pytest.raises(config.ConfigError, match="other.extends: .* is no name of an experiment"):
            config.resolve({"experiments": {"other": {"extends": value}}}, SCHEMA)


def test_file_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(config.ConfigError, match="config.yaml: 'utf-8' codec"):
        config.read_yaml(tmp_path / "config.yaml")


def test_storage_is_off_and_its_faults_are_named():
    def place(**entry: Any) -> Any:
        return config.resolve({"experiments": {"base": copy.deepcopy(BASE)}, "storage": entry}, SCHEMA)["storage"]

    assert config.resolve({"experiments": {}}, SCHEMA)["storage"] is None
    whole = {"prefix": "s3://bucket/a", "endpoint": None, "cache": ".cache/shards", "cache_gb": 200.0, "keep": True}
    assert place(prefix="s3://bucket/a", cache_gb=200) == whole
    for entry, words in [
        ({"prefix": "ftp://bucket/a"}, "storage.prefix"),
        ({"prefix": "https://me:secret@server/a"}, "storage.prefix"),
        ({"prefix": "https://server/a?sig=secret"}, "storage.prefix"),
        ({"prefix": "s3://bucket/a", "endpoint": "https://me:secret@server"}, "storage.endpoint"),
        ({"prefix": "http://server/a", "keep": False}, "storage.keep: false, but http://server/a is to read only"),
        ({"prefix": "http://server/a", "endpoint": "http://b"}, "storage.endpoint: http://b"),
        ({"prefix": "s3://bucket/a", "cache": "./results/cache"}, "storage.cache: ./results/cache lies in results/"),
        ({"prefix": "s3://bucket/a", "cache": os.path.abspath("results/c")}, "results/c lies in results/"),
        ({"prefix": "s3://bucket/a", "cache_gb": 0}, "storage.cache_gb"),
        ({"prefix": "s3://bucket/a", "folder": "b"}, 'storage: unknown key "folder"'),
    ]:
        with pytest.raises(config.ConfigError, match=words):
            place(**entry)


def test_storage_is_part_of_no_spec():
    written = {"experiments": {"base": copy.deepcopy(BASE)}}
    plain = Experiments(config.resolve(written, SCHEMA))
    stored = Experiments(config.resolve({**written, "storage": {"prefix": "s3://bucket/a", "keep": False}}, SCHEMA))
    for rule in ("pairs", "pairs_manifest", "distill"):
        assert stored.spec("base", rule, (0, 1)) == plain.spec("base", rule, (0, 1))
