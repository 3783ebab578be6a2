"""Experiments: inheritance, defaults, messages, and who owns which artifact."""

import copy
import datetime
import os
from pathlib import Path
from typing import Any

import pytest

from dmd import config
from dmd.config import Configuration, Experiments
from dmd.config.rule_lookups import RuleLookups
from dmd.config.sections import Evaluate, Pairs, Reference, Sample
from dmd.config.training import Distill

ROOT = Path(__file__).resolve().parents[2]
BASE: dict[str, Any] = {
    "dataset": {"kind": "digits"},
    "teacher": {
        "kind": "train",
        "network": {"kind": "ddpmpp", "width": 8, "multipliers": [1, 2], "blocks": 1, "attention": [4]},
        "training": {"method": {"name": "denoising", "batch_size": 8, "phases": [{"updates": 10}]}},
    },
    "reference": {"features": {"kind": "pixels"}},
    "pairs": {"num_pairs": 16, "shard_size": 4, "shards_per_job": 3},
    "distill": {"method": {"name": "dmd", "phases": [{"updates": 5}]}},
    "sample": {"num_samples": 8, "shard_size": 4, "repetitions": 2},
    "evaluate": {},
}

DIGITS32 = {"features": {"kind": "digits32", "file": "d.safetensors", "sha256": "d" * 64}}
LAST = {"updates": 1, "decoder": "full"}
OTHER_DIGITS32 = {"reference": {"features": {"file": "e.safetensors"}}}


def resolved(**children: dict[str, Any]) -> Configuration:
    """`base` and the given children of it, resolved."""
    written = {name.replace("_", "-"): {"extends": "base", **section} for name, section in children.items()}
    return config.resolve({"experiments": {"base": copy.deepcopy(BASE), **written}})


def fault(**children: dict[str, Any]) -> str:
    """The message for the given children."""
    with pytest.raises(config.ConfigError) as caught:
        resolved(**children)
    return str(caught.value)


def owners(found: Configuration, name: str) -> dict[str, str]:
    experiments = Experiments(found)
    rules = ("teacher", "reference", "pairs", "pairs_manifest", "distill", "sample", "features", "evaluate")
    return {rule: experiments.owner(name, rule) for rule in rules}


def test_shipped_configuration_resolves():
    found = config.load(ROOT / "config.yaml")
    assert {"digits", "digits-seed2", "toy2d", "digits-sigma-alpha"} <= set(found.experiments)


def test_merge_goes_deep_but_replaces_lists_and_other_kinds():
    parent = {"a": {"x": 1, "y": [1, 2]}, "b": {"kind": "one", "z": 3}, "c": {"name": "heun", "steps": 9}}
    child = {"a": {"y": [3]}, "b": {"kind": "two"}, "c": {"name": "euler"}}
    assert config.merge(parent, child) == {"a": {"x": 1, "y": [3]}, "b": {"kind": "two"}, "c": {"name": "euler"}}
    assert config.merge(parent, {"b": {"kind": "one", "w": 1}})["b"] == {"kind": "one", "z": 3, "w": 1}


def test_defaults_of_distill_are_the_papers():
    distill = resolved().experiments["base"].distill
    method = distill.method
    assert method.regression_weight == 0.25 and method.matching_batch_size == 392
    assert method.levels.with_defaults() == {
        "kind": "karras", "count": 1000, "rho": 7.0, "sigma_min": None, "sigma_max": None, "min_index": 20,
        "max_index": 980,
    }  # fmt: skip
    assert list(distill.optimisers) == ["student", "fake"]
    assert distill.optimisers["fake"].learning_rate == 5e-5 and distill.optimisers["fake"].betas == (0.9, 0.999)
    assert method.phases[0].with_defaults() == {
        "updates": 5, "train": "both", "matching_scale": 1.0, "regression_scale": 1.0, "fake_updates": 1,
        "learning_rate_scale": 1.0, "fresh_optimiser": False, "max_index": None, "num_pairs": None, "decoder": None,
        "matching_batch_size": None, "regression_batch_size": None,
    }  # fmt: skip


def test_whole_numbers_and_written_defaults_give_the_same_spec():
    found = resolved(other={"distill": {"method": {"sigma": 80}, "schedule": {"warmup": 500}}})
    assert set(owners(found, "other").values()) == {"base", "other"}
    assert [rule for rule, owner in owners(found, "other").items() if owner == "other"] == ["evaluate"]


def test_spec_says_what_differs_from_the_defaults():
    child = {"distill": {"compute": {"dtype": "bfloat16", "tf32": False}, "processes": 2}, "pairs": {"compute": {}}}
    experiments = Experiments(resolved(child=child))
    optimiser = {"kind": "fused", "learning_rate": 5e-5, "weight_decay": 0.01, "betas": [0.9, 0.999]}
    optimiser["gradient_clip"] = 10.0
    assert experiments.spec("base", "distill") == {
        "method": {"name": "dmd", "phases": [{"updates": 5}]},
        "optimisers": {"student": optimiser, "fake": optimiser},
        "features": {"kind": "pixels", "size": 8},  # in which the monitor measures
        "device": "auto",
        "threads": 1,
    }
    assert experiments.spec("child", "distill") == experiments.spec("base", "distill") | {
        "compute": {"dtype": "bfloat16"},
        "processes": 2,
    }
    assert experiments.owner("child", "pairs") == "base" == experiments.owner("child", "pairs_manifest")
    assert experiments.spec("base", "pairs") == {"shard_size": 4, "device": "auto", "threads": 1}


def test_cadence_stands_beside_the_spec():
    child = {"distill": {"checkpoint_every": 7, "tensorboard": True}}
    experiments = Experiments(resolved(child=child))
    assert experiments.section("base", "distill").cadence() == {}
    assert experiments.section("child", "distill").cadence() == {"checkpoint_every": 7, "tensorboard": True}
    assert experiments.owner("child", "distill") == "base"


def test_spec_of_distill_gives_the_section_again():
    child = {"method": {"weighting": "sigma/alpha"}, "optimisers": {"student": {"learning_rate": 1e-3}}}
    child["optimisers"]["fake"] = {"learning_rate": 5.0e-5}  # the general default, which is not the student's
    section = resolved(child={"distill": child}).experiments["child"].distill
    assert section.optimisers["fake"].learning_rate == 5.0e-5
    assert Distill.model_validate(section.weight_spec()) == section


def test_lora_of_samples_stands_in_their_spec_without_its_path():
    teacher = {"from": "teacher", "solver": {"name": "heun"}}
    children = {"plain": {"sample": teacher}, "lora": {"sample": teacher | {"lora": {"file": "a.safetensors"}}}}
    found = Experiments(resolved(**children))
    assert "lora" not in found.spec("plain", "sample")
    assert found.spec("lora", "sample")["lora"] == {"scale": 1.0, "sha256": None}


def test_levels_name_their_kind_only_where_it_is_not_karras():
    levels = {"named": {"kind": "karras"}, "own": {"kind": "teacher", "max_index": 50}}
    children = {name: {"distill": {"method": {"levels": value}}} for name, value in levels.items()}
    found = Experiments(resolved(**children))
    specs = {name: found.spec(name, "distill")["method"] for name in ("base", "named", "own")}
    assert specs["named"] == specs["base"] and "levels" not in specs["base"]
    assert specs["own"]["levels"] == {"kind": "teacher", "max_index": 50}


BAD = sorted((Path(__file__).parent / "bad").glob("*.yaml"))


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_configuration_is_refused_with_these_words(path: Path, monkeypatch):
    """The words stand at the end of each file, in comments that begin with `#>`, one for each fault."""
    monkeypatch.chdir(path.parent)
    golden = [line.removeprefix("#> ") for line in path.read_text().splitlines() if line.startswith("#> ")]
    with pytest.raises(config.ConfigError) as caught:
        config.load(Path(path.name))
    assert str(caught.value).split("\n") == golden


def test_reference_of_moments_needs_no_dataset_and_its_spec_no_path():
    moments = {"moments": {"file": "m.npz"}, "protocol": {"quantise": 256}}
    moments["features"] = {"kind": "inception", "file": "i.pth"}
    child = {"reference": moments, "sample": {"batch_size": 500}}
    found = Experiments(resolved(child=child, trained={"reference": {"against": "training"}}))
    spec = found.spec("child", "reference")
    clean = {"reference": {**moments, "features": {**moments["features"], "resize": "clean"}}}
    other = Experiments(resolved(child={**child, **clean}))
    assert other.spec("child", "features")["features"] == {"kind": "inception", "sha256": None, "resize": "clean"}
    assert spec["moments"] == {"sha256": None}
    assert spec["features"] == {"kind": "inception", "sha256": None, "batch_size": 64, "resize": "tf"}
    assert found.spec("child", "features")["batch_size"] == 64
    assert found.spec("base", "features")["batch_size"] == found.section("base", "sample").batch_size
    assert "dataset" not in spec and "against" not in found.spec("base", "reference")
    assert found.spec("trained", "reference") == {**found.spec("base", "reference"), "against": "training"}
    alone = {name: section for name, section in BASE.items() if name != "dataset"}
    with pytest.raises(config.ConfigError, match="alone.reference: it needs a section dataset, or reference.moments"):
        config.resolve({"experiments": {"alone": alone}})
    config.resolve({"experiments": {"alone": {**alone, "reference": moments}}})


def test_files_of_unknown_digest_are_told_apart_by_their_paths():
    teachers = {name: {"teacher": {"kind": "edm", "file": f"inputs/{name}.pkl"}} for name in ("one", "other")}
    moments = {"moments": {"file": "m.npz"}}
    again = {"extends": "one", "distill": {"seed": 1}}
    far = {"extends": "one", "teacher": {"file": "inputs/other.pkl"}, "reference": {"moments": {"file": "n.npz"}}}
    teachers["one"]["reference"] = moments
    found = resolved(**teachers, again=again, far=far)
    assert owners(found, "again")["teacher"] == owners(found, "again")["reference"] == "one"
    assert set(owners(found, "far").values()) == {"far"}
    known = {"edm": {"url": "https://a.b/c", "file": "inputs/other.pkl", "sha256": "0" * 64}}
    known["copy"] = {"url": "https://a.b/d", "file": "inputs/one.pkl", "sha256": "0" * 64}
    written = {"base": copy.deepcopy(BASE), "one": {"extends": "base", **teachers["one"]}, "far": far}
    same = config.resolve({"experiments": written, "inputs": known})
    assert owners(same, "far")["teacher"] == "one"  # the same bytes under two names


def test_child_with_another_file_does_not_inherit_the_digest_of_its_parents():
    pinned = {"teacher": {"kind": "edm", "file": "a.pkl", "sha256": "a" * 64}}
    pinned["reference"] = {"moments": {"file": "m.npz", "sha256": "b" * 64}}
    other = {"extends": "pinned", "teacher": {"file": "b.pkl"}, "reference": {"moments": {"file": "n.npz"}}}
    again = {"extends": "pinned", "teacher": {"file": "a.pkl"}}
    found = resolved(pinned=pinned, other=other, again=again)
    assert set(owners(found, "other").values()) == {"other"}
    assert found.experiments["other"].teacher.with_defaults() == {"kind": "edm", "file": "b.pkl", "sha256": None}
    assert found.experiments["other"].reference.moments.with_defaults() == {"file": "n.npz", "sha256": None}
    assert owners(found, "again")["teacher"] == "pinned"
    assert found.experiments["again"].teacher.sha256 == "a" * 64
    assert "sha256" in fault(digits={"reference": DIGITS32}, child={"extends": "digits", **OTHER_DIGITS32})


@pytest.mark.parametrize("digest", [None, "a" * 64])
def test_child_with_another_folder_owns_its_teacher(digest):
    first = {"teacher": {"kind": "diffusers", "folder": "A", "sha256": digest}}
    found = resolved(
        first=first, second={"extends": "first", "teacher": {"folder": "B"}}, same={"extends": "first", "sample": {}}
    )
    assert owners(found, "second")["teacher"] == owners(found, "second")["distill"] == "second"
    assert owners(found, "same")["teacher"] == "first"


@pytest.mark.parametrize("file", ["./in/../inputs/a.pkl", "ABSOLUTE", "~/inputs/a.pkl"])
def test_file_is_that_of_its_input_however_it_is_spelt(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    file = str(tmp_path / "inputs" / "a.pkl") if file == "ABSOLUTE" else file
    written = {"base": {**copy.deepcopy(BASE), "teacher": {"kind": "edm", "file": file}}}
    entry = {"url": "https://a.b/c", "file": "inputs/a.pkl", "sha256": "0" * 64}
    found = config.resolve({"experiments": written, "inputs": {"edm": entry}})
    expected = {"kind": "edm", "file": "inputs/a.pkl", "sha256": "0" * 64}
    assert found.experiments["base"].teacher.with_defaults() == expected


@pytest.mark.parametrize(
    "file",
    [
        "a.pkl",
        "sitecustomize.py",
        "torch.py",
        "../inputs/a.pkl",
        "../a.py",
        "/etc/profile.d/a.sh",
        "~/a.py",
        "inputs",
        "inputs/../torch.py",
        "inputs/./../dmd/a.py",
        "results/a.pkl",
        "results/../inputs/../a.py",
        ".git/hooks/post-checkout",
        "inputs/.a.pkl.json",
        "inputs/.git/hooks/post-checkout",
        "dmd/__init__.py",
        "workflow/rules/common.smk",
        "config.yaml",
        "inputs/{a}.pkl",
        "inputs/a\nb.pkl",
        "inputs/\x1b]0;a\x07.pkl",
        "inputs/\udce9.pkl",
    ],
)
def test_files_are_downloaded_below_inputs_alone(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    entry = {"url": "https://a.b/c", "file": file, "sha256": None}
    with pytest.raises(config.ConfigError, match="inputs.a.file: ") as caught:
        config.resolve({"experiments": {}, "inputs": {"a": entry}})
    assert str(caught.value).isprintable()


def test_no_link_leads_a_download_out_of_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "there.pkl").touch()
    (tmp_path / "inputs").symlink_to("disk")  # the folder itself may be on another disk
    (tmp_path / "disk" / "out").symlink_to("..")
    (tmp_path / "disk" / "dangling.pkl").symlink_to("../torch.py")
    (tmp_path / "disk" / "linked.pkl").symlink_to(__file__)  # there already, so it is never written

    def missing(file: str) -> list[str]:
        entry = {"url": "https://a.b/c", "file": f"inputs/{file}", "sha256": None}
        return [*RuleLookups(config.resolve({"experiments": {}, "inputs": {"a": entry}})).downloads]

    assert missing("there.pkl") == missing("linked.pkl") == []
    assert missing("in/here.pkl") == ["inputs/in/here.pkl"]
    for name in ("out/torch.py", "dangling.pkl"):
        with pytest.raises(
            config.ConfigError, match=f"inputs: inputs/{name} leads through a link to .*/torch.py, outs"
        ):
            missing(name)


def test_child_drops_moments_for_the_images_of_its_dataset():
    moments = {"features": {"kind": "inception", "file": "i.pth"}, "protocol": {"quantise": 256}}
    parent = {"reference": {**moments, "moments": {"file": "m.npz"}}}
    images = {"extends": "parent", "reference": {"moments": None, "against": "training"}}
    found = resolved(parent=parent, images=images, direct={"reference": {**moments, "against": "training"}})
    assert found.experiments["images"].reference == found.experiments["direct"].reference
    assert owners(found, "images")["reference"] == "images"
    assert Experiments(found).upstream("images", "reference") == [("images", "images")]
    assert Experiments(found).upstream("parent", "reference") == []


def test_resources_are_in_no_spec():
    found = resolved(child={"resources": {"distill": {"memory_mb": 9000, "hours": 2.5}, "evaluate": {"hours": 1}}})
    assert {rule for rule, owner in owners(found, "child").items() if owner == "child"} == {"evaluate"}


def test_inception_score_belongs_to_inception_features():
    section = {"features": {"kind": "inception", "file": "i.pth"}, "protocol": {"quantise": 256}}
    found = Experiments(resolved(child={"reference": section}))
    assert found.spec("child", "inception_score") == {"experiment": "child"}
    with pytest.raises(config.ConfigError, match="an Inception Score needs kind inception, not pixels"):
        found.spec("base", "inception_score")


def test_adjacent_seed_ranges_do_not_overlap():
    resolved(child={"sample": {"first_seed": 2**31 - 16}})
    resolved(child={"sample": {"first_seed": 2**32 - 16}})


def test_whole_floats_become_integers_where_the_sections_want_those():
    phases = [{"updates": 400.0}]
    child = {
        "teacher": {"network": {"multipliers": [1.0, 2.0]}, "training": {"method": {"phases": phases}}},
        "reference": {"protocol": {"quantise": 17.0}},
        "distill": {"method": {"sigma": 80}, "optimisers": {"fake": {"learning_rate": 1}}},
    }
    found = resolved(child=child).experiments["child"]
    numbers = [*found.teacher.network.multipliers, found.teacher.training.method.phases[0].updates]
    numbers += [found.reference.protocol.quantise]
    assert numbers == [1, 2, 400, 17] and all(type(number) is int for number in numbers)
    rates = found.distill.method.sigma, found.distill.optimisers["fake"].learning_rate
    assert rates == (80, 1) and [type(number) for number in rates] == [float] * 2


@pytest.mark.parametrize("group", ["tables", "charts"])
def test_table_or_chart_of_an_experiment_without_scores_is_refused(group):
    row = {"label": "x", "experiments": ["start"], "points": [["start"]]}
    entry = {"rows": [{**row}]} if group == "tables" else {"kind": "calls", "series": [{**row}]}
    for part in (*entry.get("rows", ()), *entry.get("series", ())):
        del part["points" if group == "tables" else "experiments"]
    written = {"experiments": {"start": {"dataset": {"kind": "digits"}}}, group: {"demo": entry}}
    message = f'{group}.demo: experiment "start" .* has no section reference, sample, evaluate'
    with pytest.raises(config.ConfigError, match=message):
        config.resolve(written)


def test_circle_of_parents_is_shown():
    written = {"a": {"extends": "b"}, "b": {"extends": "a"}}
    with pytest.raises(config.ConfigError, match="a -> b -> a"):
        config.resolve({"experiments": written})


@pytest.mark.parametrize("name", ["tables", "logs", "Base", "a_b", "-a"])
def test_reserved_or_odd_name_is_refused(name):
    with pytest.raises(config.ConfigError):
        config.resolve({"experiments": {name: {}}})


@pytest.mark.parametrize(
    ("section", "owned"),
    [
        ({"teacher": {"training": {"seed": 1}}}, "teacher pairs pairs_manifest distill sample features evaluate"),
        ({"pairs": {"num_pairs": 32}}, "pairs_manifest distill sample features evaluate"),
        ({"distill": {"seed": 1}}, "distill sample features evaluate"),
        ({"sample": {"first_seed": 99}}, "sample features evaluate"),
        ({"sample": {"repetitions": 3}}, "evaluate"),
        ({"sample": {"from": "teacher", "solver": {"name": "euler"}}}, "sample features evaluate"),
        ({"reference": {"seed": 1}}, "reference features evaluate"),
        ({"reference": {"protocol": {"quantise": 16}}}, "reference features evaluate"),
        ({"reference": {"features": {"size": 4}}}, "reference distill sample features evaluate"),
        ({"distill": {"monitor": {"every": 7}}}, "distill sample features evaluate"),
        ({"sample": {"weights": "best"}}, "sample features evaluate"),
        ({"evaluate": {"seed": 1}}, "evaluate"),
        ({"distill": {"start": "other"}}, "distill sample features evaluate"),
    ],
)
def test_child_owns_artifacts_from_the_first_stage_it_changes(section, owned):
    found = owners(resolved(child=section, other={"teacher": {"training": {"seed": 7}}}), "child")
    assert {rule for rule, owner in found.items() if owner == "child"} == set(owned.split())


FLOW = {"method": {"name": "rectified-flow", "objective": "reflow", "phases": [{"updates": 5}]}}


def test_a_round_owns_what_follows_from_the_student_that_teaches_it():
    teacher = {"kind": "experiment", "name": "flow"}
    found = resolved(flow={"distill": FLOW}, child={"teacher": teacher, "distill": FLOW})
    owned = {rule for rule, owner in owners(found, "child").items() if owner == "child"}
    assert owned == set("teacher pairs pairs_manifest distill sample features evaluate".split())
    experiments = Experiments(found)
    assert experiments.upstream("child", "teacher") == [("distill", "flow")]
    assert experiments.spec("child", "teacher") == {"kind": "experiment", "weights": "ema"}


def test_a_round_of_each_seed_has_the_student_of_that_seed_as_its_teacher():
    teacher = {"kind": "experiment", "name": "flow"}
    flow, child = {"distill": FLOW | {"seeds": [0, 3]}}, {"distill": FLOW | {"seeds": [0, 3, 4]}}
    found = resolved(
        flow=flow, child=child | {"teacher": teacher}, last={"extends": "child", "distill": {"seeds": [3]}}
    )
    names = {name: getattr(found.experiments[name].teacher, "name", "") for name in found.experiments}
    assert names["child"] == names["child-seed4"] == names["last"] == "flow" and names["child-seed3"] == "flow-seed3"


@pytest.mark.parametrize("lacking", ["sample", "distill", "pairs", "reference"])
def test_parent_that_lacks_a_section_owns_nothing_that_needs_it(lacking):
    parent = {name: copy.deepcopy(section) for name, section in BASE.items() if name != lacking}
    written = {"parent": parent, "child": {"extends": "parent", lacking: copy.deepcopy(BASE[lacking])}}
    found = config.resolve({"experiments": written})
    needing = {
        "sample": {"reference", "sample", "features", "evaluate"},
        "distill": {"distill", "sample", "features", "evaluate"},
        "pairs": {"pairs", "pairs_manifest", "distill", "sample", "features", "evaluate"},
        "reference": {"reference", "distill", "sample", "features", "evaluate"},  # the monitor reads its features
    }[lacking]
    assert {rule for rule, owner in owners(found, "child").items() if owner == "child"} == needing
    experiments = Experiments(found)
    lacks = needing if lacking != "reference" else {"reference", "features", "evaluate"}
    assert {rule for rule in owners(found, "child") if not experiments.has("parent", rule)} == lacks


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
    experiments = Experiments(config.resolve({"experiments": written}))
    assert experiments.spec("one", "teacher") == {"kind": "edm", "sha256": "89abcdef"}
    for rule in ("teacher", "pairs", "pairs_manifest", "distill"):
        assert [experiments.owner(name, rule) for name in written] == ["one", "one", "other"]


def test_trained_teacher_needs_a_dataset():
    experiments = Experiments(config.resolve({"experiments": {"a": {"teacher": BASE["teacher"]}}}))
    with pytest.raises(config.ConfigError, match='"a" has no section "dataset"'):
        experiments.owner("a", "teacher")


def test_missing_section_is_named():
    experiments = Experiments(config.resolve({"experiments": {"start": {"dataset": {"kind": "digits"}}}}))
    with pytest.raises(config.ConfigError, match='"start" has no section "sample"'):
        experiments.owner("start", "evaluate")


def test_every_stage_takes_exactly_the_keys_of_its_spec():
    """Held against the signatures of the stages, so that neither side changes alone."""
    import importlib

    from dmd.jobs import command_line

    found = config.load(ROOT / "config.yaml")
    experiments = Experiments(found)
    modules = {"pairs_manifest": "manifest", "samples_manifest": "manifest"}
    rules = (
        "teacher",
        "reference",
        "pairs",
        "sample",
        "features",
        "evaluate",
        "pictures",
        "export_onnx",
        "distill",
        *modules,
    )
    sections = {"pairs": (Pairs,), "sample": (Sample,), "reference": (Reference,), "evaluate": (Evaluate,)}
    for experiment in ("digits", "toy2d"):
        for rule in rules:
            run = importlib.import_module(f"dmd.stages.{modules.get(rule, rule)}").run
            numbers = command_line.parameters(run)[1]
            spec = experiments.spec(experiment, rule, (0, 0))
            given = command_line.arguments(spec, numbers, sections.get(rule, ()))
            assert given.keys() <= numbers.keys()


def test_decoders_of_all_phases_are_upstream_of_a_distillation_of_latents():
    prompts = {"kind": "file", "file": "prompts.parquet"}
    texts = {"prompts": prompts, "sample": {"prompts": prompts}}
    texts["teacher"] = {"kind": "stable-diffusion", "folder": "sd", "tiny_autoencoder": {"folder": "tiny"}}
    distance = {"kind": "l2", "decoder": "tiny"}
    found = resolved(
        text=texts | {"distill": {"method": {"guidance": 3, "regression_distance": distance}}},
        both=texts | {"distill": {"method": {"regression_distance": distance, "phases": [{"updates": 1}, LAST]}}},
        full=texts | {"distill": {"method": {"regression_distance": distance, "phases": [LAST]}}},
    )
    upstream = {name: [rule for rule, _ in Experiments(found).upstream(name, "distill")] for name in found.parents}
    before = ["teacher", "pairs_manifest"]
    assert upstream["base"] == before and upstream["text"] == [*before, "tiny_autoencoder", "autoencoder"]
    unmonitored = resolved(text=texts | {"distill": {"method": {"regression_distance": distance}, "monitor": None}})
    found_rules = [rule for rule, _ in Experiments(unmonitored).upstream("text", "distill")]
    assert found_rules == [*before, "tiny_autoencoder"]
    assert upstream["both"] == [*before, "tiny_autoencoder", "autoencoder"]
    assert upstream["full"] == [*before, "autoencoder"]
    texts["teacher"] = {"kind": "stable-diffusion", "folder": "sd"}
    message = fault(text=texts | {"distill": {"method": {"regression_distance": distance}}})
    assert "decoder: tiny, but section teacher has no tiny_autoencoder" in message


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"method": {"sigma": float("nan")}},
            "experiments.child.distill.method.sigma: nan is not a finite number",
        ),
        ({"sigma": float("inf")}, "inf is not a finite number"),
        ({1: 2}, "the key 1 is no text"),
        ({"seed": datetime.date(2001, 1, 1)}, "is a date to YAML"),
    ],
)
def test_value_that_json_does_not_have_is_named(value: Any, message: str):
    assert message in fault(child={"distill": value})


def test_parent_that_is_no_name_is_named():
    for value in ({"a": 1}, 5, ["base"]):
        with pytest.raises(config.ConfigError, match="other.extends: .* is not the name of an experiment"):
            config.resolve({"experiments": {"other": {"extends": value}}})


def test_file_that_is_no_text_is_named(tmp_path: Path):
    (tmp_path / "config.yaml").write_bytes(b"a: \xff")
    with pytest.raises(config.ConfigError, match="config.yaml: 'utf-8' codec"):
        config.read_yaml(tmp_path / "config.yaml")


def test_storage_is_off_and_its_faults_are_named():
    def place(**entry: Any) -> Any:
        return config.resolve({"experiments": {"base": copy.deepcopy(BASE)}, "storage": entry}).storage

    assert config.resolve({"experiments": {}}).storage is None
    whole = {"prefix": "s3://bucket/a", "endpoint": None, "cache": ".cache/shards", "cache_gb": 200.0, "keep": True}
    assert place(prefix="s3://bucket/a", cache_gb=200).with_defaults() == whole
    for entry, words in [
        ({"prefix": "ftp://bucket/a"}, "storage.prefix"),
        ({"prefix": "https://me:secret@server/a"}, "storage.prefix"),
        ({"prefix": "https://server/a?sig=secret"}, "storage.prefix"),
        ({"prefix": "s3://bucket/a", "endpoint": "https://me:secret@server"}, "storage.endpoint"),
        ({"prefix": "http://server/a", "keep": False}, "storage.keep: false, but http://server/a is read-only"),
        ({"prefix": "http://server/a", "endpoint": "http://b"}, "storage.endpoint: http://b"),
        ({"prefix": "s3://bucket/a", "cache": "./results/cache"}, "storage.cache: ./results/cache is in results/"),
        ({"prefix": "s3://bucket/a", "cache": os.path.abspath("results/c")}, "results/c is in results/"),
        *(
            ({"prefix": "s3://bucket/a", "cache": each}, "storage.cache: .* holds the project")
            for each in (".", "..", "/")
        ),
        ({"prefix": "s3://bucket/a", "cache_gb": 0}, "storage.cache_gb"),
        ({"prefix": "s3://bucket/a", "folder": "b"}, 'storage: unknown key "folder"'),
    ]:
        with pytest.raises(config.ConfigError, match=words):
            place(**entry)


def test_storage_is_part_of_no_spec():
    written = {"experiments": {"base": copy.deepcopy(BASE)}}
    plain = Experiments(config.resolve(written))
    stored = Experiments(config.resolve({**written, "storage": {"prefix": "s3://bucket/a", "keep": False}}))
    for rule in ("pairs", "pairs_manifest", "distill"):
        assert stored.spec("base", rule, (0, 1)) == plain.spec("base", rule, (0, 1))
