"""The table of rules says what the rules do, defaults stand once, and the tracked schema is the generated one."""

import ast
import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from dmd.config import RULES, experiment, read_yaml, schema, training
from dmd.config.experiment import Experiment
from dmd.config.rule_table import ARTIFACTS, VERSIONS, is_artifact
from dmd.config.sections import Evaluate, InceptionScore, Latency, Pairs, Reference, Sample
from dmd.jobs import command_line

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "workflow" / "rules"
GOLDEN = Path(__file__).parent / "defaults.json"
FILLED = {  # stage -> sections whose defaults its command line fills in
    "pairs": (Pairs,),
    "sample": (Sample,),
    "reference": (Reference,),
    "evaluate": (Evaluate,),
    "inception_score": (InceptionScore,),
    "latency": (Latency, Sample),
}


HEAD = re.compile(r"^(?:rule|use rule (\w+) as) (\w+)(?: with)?:\n", re.M)


def rules() -> dict[str, tuple[str, str | None]]:
    """Text of each rule of workflow/rules/, and the rule that it inherits from, whose text follows its own."""
    parts = HEAD.split("\n".join(path.read_text() for path in sorted(FOLDER.glob("*.smk"))))[1:]
    texts = {name: (text, parent) for parent, name, text in zip(parts[::3], parts[1::3], parts[2::3], strict=True)}
    return {name: (text + texts[parent][0] if parent else text, parent) for name, (text, parent) in texts.items()}


def test_every_rule_has_a_row():
    """Except rule missing, which never runs."""
    assert set(rules()) == {*RULES, "missing"}


def test_snakefile_uses_every_rule_of_an_experiment():
    (names,) = re.findall(r"^use rule (.*?) from stages with:", (ROOT / "Snakefile").read_text(), re.M | re.S)
    assert sorted(re.findall(r"\w+", names)) == sorted(name for name, row in RULES.items() if row.section)


@pytest.mark.parametrize("name", RULES)
def test_row_says_what_the_rule_does(name: str):
    (text, parent), row = rules()[name], RULES[name]
    assert re.search(rf"python -m dmd\.stages\.{row.stage} ", text), "stage"
    if name in ("tables", "charts"):
        assert f"version=tables.{name.removesuffix('s')}_version," in text
    else:
        given = re.findall(r'version=(RULES\["\w+"\].version|provider.version\("\w+"\))', text)
        own = f'RULES["{name}"].version' if row.section is None else f'provider.version("{name}")'
        assert own in given and len(given) == (1 if parent is None else 2)
    if row.section is not None:
        assert re.search(r'^        job="([a-z_]+)(-\{first\}-\{last\})?",$', text, re.M).groups() == (
            name,
            "-{first}-{last}" if row.blocks else None,
        )
    block = re.search(r"^    output:\n(.*?)^    \w+:", text, re.M | re.S)[1]
    if "expand(" in block:
        block = re.sub(r"expand\(.*?\)", "", block)
    written = [each.removeprefix("results/{experiment}/") for each in re.findall(r'"(results/[^"]+)"', block)]
    files = [re.sub(r":05d", "", file) for file in row.files]
    if name in ("export_pipeline", "pipeline", "pipeline_clip"):
        assert written == files[:1]
    elif name in ARTIFACTS:
        assert sorted(written) == sorted(files)
    assert row.blocks == ("{first}" in block)
    assert ('"{experiment}"' in block or "{experiment}" in block) == (row.section is not None)


def test_rules_of_one_stage_have_one_version():
    assert {row.stage: row.version for row in RULES.values()} == VERSIONS
    assert all(VERSIONS[row.stage] == row.version for row in RULES.values())


def test_every_stage_can_be_run():
    for stage in VERSIONS:
        assert (ROOT / "dmd" / "stages" / f"{stage}.py").is_file(), stage


@pytest.mark.parametrize(
    ("path", "known"),
    [
        ("a/pairs/00001.tar", True),
        ("a/pairs/blocks/00000-00001.parquet", True),
        ("a/export/pipeline/vae/config.json", True),
        ("a/log.parquet", False),
        ("tables/demo.md", True),
        ("tables/demo/demo.md", False),
    ],
)
def test_artifacts_are_known_by_their_places(path: str, known: bool):
    assert is_artifact(Path(path)) == known


@pytest.mark.parametrize("stage", FILLED)
def test_defaults_of_a_signature_are_those_of_the_section(stage: str):
    numbers = command_line.parameters(importlib.import_module(f"dmd.stages.{stage}").run)[1]
    fields = {
        field.alias or name: field for each in reversed(FILLED[stage]) for name, field in each.model_fields.items()
    }
    for name, parameter in numbers.items():
        if name in fields and parameter.default not in (inspect.Parameter.empty, None):
            assert parameter.default == fields[name].get_default(), name


@pytest.mark.parametrize("stage", FILLED)
def test_stage_fills_in_the_defaults_of_its_sections(stage: str):
    last = ast.parse((ROOT / "dmd" / "stages" / f"{stage}.py").read_text()).body[-1]
    call = ast.unparse(last.body[0])
    assert call == f"job.main(run, {', '.join(each.__name__ for each in FILLED[stage])})"


def test_filled_numbers_are_whole():
    from dmd.stages import pairs, sample

    numbers = command_line.parameters(pairs.run)[1]
    spec = {"shard_size": 4, "solver": {"name": "heun", "steps": 3}, "first": 0, "last": 0}
    found = command_line.arguments(spec, numbers, (Pairs,))
    assert found["solver"] == {"name": "heun", "steps": 3, "sigma_min": None, "sigma_max": None, "rho": 7.0}
    assert found["compute"] == {"dtype": "float32", "tf32": False, "channels_last": False, "compile": False}
    assert (found["batch_size"], found["labels"], found["first_seed"]) == (64, "random", 2**31)
    spec = {"num_samples": 4, "shard_size": 4, "lora": {"sha256": None, "scale": 0.5}, "first": 0, "last": 0}
    found = command_line.arguments(spec, command_line.parameters(sample.run)[1], (Sample,))
    assert found["lora"] == {"sha256": None, "scale": 0.5} and found["solver"] == {"name": "student"}


def models(annotation: Any) -> set[type[BaseModel]]:
    """All sections that an annotation is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}.union(*(models(field.annotation) for field in annotation.model_fields.values()))
    return set().union(*map(models, typing.get_args(annotation)))


def defaults() -> dict[str, dict[str, Any]]:
    """Every default of every section of an experiment, but those that reach no spec."""
    resources = {experiment.Resources, experiment.JobResources, experiment.DistillResources}
    chosen = models(Experiment) - {Experiment, *resources}
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(chosen, key=lambda model: model.__name__):
        optional = {name: field for name, field in each.model_fields.items() if not field.is_required()}
        values = {name: field.get_default() for name, field in optional.items() if name not in training.CADENCE}
        found[each.__name__] = {name: json.loads(as_json(value)) for name, value in sorted(values.items())}
    return found


def as_json(value: Any) -> str:
    return json.dumps(value, default=lambda each: each.model_dump(mode="json"), sort_keys=True)


def test_a_changed_default_raises_the_version_of_its_stage():
    advice = (
        "a spec leaves defaults out: raise the version of the stages that read this section in "
        "dmd/config/rule_table.py or, for a method, its own `version` in dmd/config/methods"
    )
    golden = json.loads(GOLDEN.read_text())
    assert golden == {"versions": VERSIONS, "defaults": defaults()}, f"{advice}, then write {GOLDEN.name} anew"


def test_every_rule_of_an_experiment_may_ask_for_resources():
    assert set(experiment.Resources.model_fields) == set(ARTIFACTS)


def test_slurm_profile_sends_every_rule_that_asks_for_a_gpu_to_the_gpu_partition():
    profile = yaml.safe_load((ROOT / "profiles/slurm/config.yaml").read_text())["set-resources"]
    partitions = {name: values.get("slurm_partition") for name, values in profile.items()}
    assert partitions == {name: "gpu" for name, rule in RULES.items() if rule.computed or rule.gpu}


def test_tracked_schema_is_the_generated_one():
    assert schema.PATH.read_text() == schema.text(), "run python -m dmd.config.schema"


@pytest.mark.parametrize("name", ["config.yaml", *read_yaml(ROOT / "config.yaml")["include"]])
def test_shipped_file_names_the_schema_and_follows_it(name: str):
    import jsonschema
    import yaml

    path = ROOT / name
    first = path.read_text().splitlines()[0]
    assert (path.parent / first.removeprefix("# yaml-language-server: $schema=")).resolve() == schema.PATH
    validator = jsonschema.Draft202012Validator(schema.schema())
    assert [error.message for error in validator.iter_errors(yaml.safe_load(path.read_text()))] == []


@pytest.mark.parametrize(
    ("place", "value", "fits"),
    [
        (("distill", "method", "wieghting"), "eq8", False),
        (("distill", "seeds"), [0, 1], True),
        (("distill", "seeds"), [0, 0], False),
        (("sample", "solver", "steps"), 3, True),
        (("sample", "solver", "stpes"), 3, False),
        (("extend",), "other", False),
    ],
)
def test_schema_takes_parts_of_an_experiment_and_no_unknown_key(place: tuple[str, ...], value: Any, fits: bool):
    import jsonschema

    for key in reversed(place):
        value = {key: value}
    validator = jsonschema.Draft202012Validator(schema.schema())
    assert validator.is_valid({"experiments": {"child": {"extends": "base", **value}}}) == fits
