"""What rules ask of a configuration: inputs, parameters and resources of a job, as Snakemake asks for them."""

import copy
import inspect
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from snakemake.iocontainers import InputFiles, Wildcards

from dmd import config
from dmd.config import resources, rule_lookups
from dmd.config.methods.rectified_flow import RectifiedFlow
from dmd.config.rule_lookups import RuleLookups
from dmd.config.rule_table import RULES
from dmd.config.table_lookups import TableLookups
from dmd.provenance.files import canonical_json
from tests.config.test_experiments import BASE

TEACHER = "results/base/teacher/denoiser.safetensors"
IMAGES = {"kind": "images", "folder": "photos", "labels": "folders", "resolution": 8, "num_held_out": 6}


def provided(given: dict[str, Any] | None = None, **children: dict[str, Any]) -> RuleLookups:
    """That of `base` and children of it; `given` are other keys of the configuration."""
    named = {name: {"extends": "base", **section} for name, section in children.items()}
    return RuleLookups(config.resolve({"experiments": {"base": copy.deepcopy(BASE), **named}, **(given or {})}))


def job(experiment: str = "base", **others: str) -> Wildcards:
    """Wildcards of a job."""
    return Wildcards(fromdict={"experiment": experiment, **others})


BLOCK = {"first": "00000", "last": "00002"}


def test_spec_of_a_job_is_canonical_json_and_names_its_block():
    found = provided()
    assert found.spec("distill")(job()) == canonical_json(found.experiments.spec("base", "distill"))
    assert found.spec("pairs")(job(**BLOCK)) == canonical_json(found.experiments.spec("base", "pairs", (0, 2)))


def test_artifact_of_another_is_refused_with_its_own_path():
    found = provided(child={"sample": {"num_samples": 16}})
    assert found.owned("pairs")(job(**BLOCK)) == found.owned("sample")(job("child")) == []
    with pytest.raises(SystemExit) as caught:
        found.owned("pairs")(job("child", **BLOCK))
    message = 'error: "child" shares this artifact with "base": ask for results/base/pairs/blocks/00000-00002.parquet'
    assert caught.value.code == message


@pytest.mark.parametrize("rule", ["pairs", "sample", "features"])
@pytest.mark.parametrize("block", [("99999", "00000"), ("00001", "00000"), ("00000", "99999"), ("00001", "00002")])
def test_block_that_no_experiment_has_is_refused_with_the_range_there_is(rule: str, block: tuple[str, str]):
    found = provided()
    first, last = block
    with pytest.raises(SystemExit) as caught:
        found.owned(rule)(job(first=first, last=last))
    assert f"{first}-{last}" in str(caught.value.code) and "there is no such block of shards" in str(caught.value.code)
    every = found.experiments.blocks("base", rule)
    assert f"go from {every[0][0]:05d}-{every[0][1]:05d} to {every[-1][0]:05d}-{every[-1][1]:05d}" in caught.value.code
    for number in every:
        assert found.owned(rule)(job(first=f"{number[0]:05d}", last=f"{number[1]:05d}")) == []


def test_block_that_only_a_child_has_belongs_to_the_parent_that_owns_its_shards():
    found = provided(child={"pairs": {"num_pairs": 2 * BASE["pairs"]["num_pairs"]}})
    more = found.experiments.blocks("child", "pairs")
    assert found.experiments.owner("child", "pairs") == "base" and more[-1] not in found.experiments.blocks(
        "base", "pairs"
    )
    for first, last in more:
        assert found.owned("pairs")(job(first=f"{first:05d}", last=f"{last:05d}")) == []


def test_unknown_experiment_ends_with_one_message():
    with pytest.raises(SystemExit) as caught:
        provided().owned("pairs")(job("bas"))
    assert str(caught.value.code).startswith('error: unknown experiment "bas" (did you mean "base"?)')


def test_rule_reads_what_its_ancestor_owns_and_nothing_that_it_does_not_need():
    taught = {"sample": {"from": "teacher", "solver": {"name": "heun", "steps": 3}}}
    found = provided(child={"sample": {"num_samples": 16}}, taught=taught)
    assert found.reads("distill", "teacher")(job("child")) == TEACHER
    assert found.reads("distill", "images")(job("child")) == []
    assert found.reads("sample", "distill", "teacher")(job("child")) == "results/base/distill/generator.safetensors"
    assert found.reads("sample", "distill", "teacher")(job("taught")) == TEACHER
    assert found.reads("pictures", "distill", number=1)(job("child")) == "results/base/distill/log.parquet"


def test_rule_reads_the_block_of_its_job_or_all_blocks():
    found = provided()
    assert found.reads("features", "sample")(job(**BLOCK)) == "results/base/samples/blocks/00000-00002.parquet"
    blocks = [f"results/base/pairs/blocks/{block}.parquet" for block in ("00000-00002", "00003-00003")]
    assert found.reads("pairs_manifest", "pairs")(job()) == blocks


def test_start_is_the_teacher_of_another_experiment():
    found = provided(other={"teacher": {"training": {"ema_decay": 0.5}}}, child={"distill": {"start": "other"}})
    assert found.start(job("child")) == "results/other/teacher/denoiser.safetensors" and found.start(job()) == []
    assert found.reads("distill", "teacher")(job("child")) == TEACHER


def test_student_is_the_file_that_a_teacher_of_another_experiment_is_made_from():
    flow = {"distill": {"method": {"name": "rectified-flow", "objective": "reflow", "phases": [{"updates": 5}]}}}
    found = provided(flow=flow, child={"teacher": {"kind": "experiment", "name": "flow"}})
    assert found.student(job("child")) == "results/flow/distill/generator.safetensors" and found.student(job()) == []
    assert found.reads("pairs", "teacher")(job("child", **BLOCK)) == "results/child/teacher/denoiser.safetensors"


MOMENTS = {"moments": {"file": "inputs/m.npz", "sha256": "a" * 64}, "features": {"kind": "pixels"}}


def test_file_that_is_missing_is_an_input_that_a_run_downloads_or_asks_for(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = provided(child={"reference": MOMENTS})
    assert found.files("reference", "reference.moments")(job("child")) == ["inputs/m.npz"]
    assert list(found.missing) == ["inputs/m.npz"] and found.downloads == {}
    entry = {"url": "https://example.org/m.npz", "file": "inputs/m.npz", "sha256": "a" * 64, "size": 3}
    found = provided({"inputs": {"moments": entry}}, child={"reference": MOMENTS})
    assert found.files("reference", "reference.moments")(job("child")) == ["inputs/m.npz"]
    assert found.files("reference", "reference.moments")(job()) == []
    expected = {"url": entry["url"], "sha256": entry["sha256"], "size": 3}
    assert found.fetch_spec(Wildcards(fromdict={"file": "inputs/m.npz"})) == canonical_json(expected)
    Path("inputs").mkdir()
    Path("inputs/m.npz").touch()
    assert provided({"inputs": {"moments": entry}}, child={"reference": MOMENTS}).downloads == {}
    assert provided(child={"reference": MOMENTS}).files("reference", "reference.moments")(job("child")) == []


def test_all_files_of_an_experiment_that_cannot_be_used_are_named_at_once(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("photos", "a.parquet", "b.parquet"):
        os.mkfifo(name)
    Path("inputs").mkdir()
    Path("inputs/m.npz").symlink_to("nowhere")
    files = [{"file": name, "sha256": None} for name in ("a.parquet", "b.parquet")]
    prompts = {"kind": "laion", "threshold": 6.0, "files": files}
    sections = {"dataset": IMAGES, "reference": MOMENTS, "prompts": prompts}
    found = RuleLookups(config.resolve({"experiments": {"child": sections}}))
    with pytest.raises(SystemExit) as caught:
        found.files("images", "dataset")(job("child"))
    assert [line.partition(" is ")[0] for line in str(caught.value).splitlines()] == [
        "error: child.dataset.folder: photos",
        "error: child.reference.moments.file: inputs/m.npz",
        "error: child.prompts.files[0].file: a.parquet",
        "error: child.prompts.files[1].file: b.parquet",
    ]


def test_sections_that_rules_name_are_all_looked_through():
    rules = "".join(path.read_text() for path in Path(__file__).parents[2].glob("workflow/rules/*.smk"))
    named = re.findall(r"provider\.files\(([^)]*)\)", rules)
    assert {key for words in named for key in re.findall(r'"([\w.]+)"', words)[1:]} == {
        *rule_lookups.SECTIONS,
        *rule_lookups.MONITOR,
    }
    assert {key for _, key in rule_lookups.MONITOR.values()} <= set(rule_lookups.SECTIONS)


def source(look_up: Any, experiment: str = "child") -> str:
    """The flag and paths that a look-up gives a job."""
    assert "output" in inspect.signature(look_up).parameters  # so that another path alone reruns nothing
    return look_up(job(experiment), output=[])


def test_folder_is_given_by_its_name_and_weights_that_it_lacks_are_missing(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    saved = Path("my model")
    (saved / "unet").mkdir(parents=True)
    teacher = {"teacher": {"kind": "diffusers", "folder": str(saved)}}
    for name in ("unet/config.json", ".hidden.json", "readme.md"):
        (saved / name).touch()
    weights = "my model/unet/diffusion_pytorch_model.safetensors"
    assert provided(child=teacher).files("teacher", "teacher")(job("child")) == [weights]
    Path(weights).touch()
    found = provided(child=teacher)
    assert found.files("teacher", "teacher")(job("child")) == found.files("teacher", "teacher")(job()) == []
    assert source(found.source("teacher")) == "--source 'my model'" and source(found.source("teacher"), "base") == ""
    assert source(found.source("evaluate.clip", "--clip-network"), "base") == ""
    assert found.watched("teacher", "teacher")(job("child")) and not found.watched("teacher", "teacher")(job())


def test_dataset_of_images_is_no_input_and_must_be_a_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = provided(child={"dataset": IMAGES})
    assert found.files("images", "dataset")(job("child")) == ["photos"] and list(found.missing) == ["photos"]
    Path("photos").touch()
    with pytest.raises(SystemExit, match="child.dataset.folder: photos is not a folder: it is a file"):
        provided(child={"dataset": IMAGES}).files("images", "dataset")(job("child"))
    rule_lookups._list.cache_clear()
    Path("photos").unlink()
    Path("photos/a").mkdir(parents=True)
    Path("photos/a/new.png").touch()
    found = provided(child={"dataset": IMAGES})
    assert found.files("images", "dataset")(job("child")) == found.files("images", "dataset")(job()) == []
    assert found.watched("images", "dataset")(job("child")) and not found.watched("images", "dataset")(job())
    assert found.trained_on(job("child")) == "results/child/teacher/denoiser.safetensors"
    assert found.trained_on(job()) == []
    glyphs = {"kind": "glyphs", "file": "f.ttf", "captions": "c.csv", "resolution": 8, "num_held_out": 6}
    assert provided(child={"dataset": glyphs}).trained_on(job("child")) == found.trained_on(job("child"))


@pytest.mark.parametrize(("weights", "spec"), [("ema", {}), ("best", {"weights": "best"}), ("raw", None)])
def test_adapters_are_exported_with_the_weights_that_are_sampled(weights: str, spec: dict[str, str] | None):
    distill = {"adapter": {}, "monitor": {"best": "distance"}}
    found = provided(child={"distill": distill, "sample": {"weights": weights}}).experiments
    if spec is None:
        with pytest.raises(config.ConfigError, match=r"child.sample.weights: raw, but .* has averaged adapters only"):
            found.spec("child", "export_lora")
    else:
        assert found.spec("child", "export_lora") == spec


def test_files_that_an_artifact_was_made_from_may_go_until_it_is_made_anew(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos/a").mkdir(parents=True)
    Path("photos/a/new.png").touch()
    kept: dict[str, list[str]] = {}
    written = config.resolve({"experiments": {"base": copy.deepcopy(BASE), "child": {"dataset": IMAGES}}})
    artifact = Path("results/child/images/manifest.parquet")

    def looked_up() -> tuple[list[str], str, list[str]]:
        rule_lookups._list.cache_clear()
        found = RuleLookups(written, kept.get)
        answer = found.files("images", "dataset")(job("child")), found.watched("images", "dataset")(job("child"))
        return *answer, list(found.gone)

    before = looked_up()
    spec, version = (getattr(RuleLookups(written), key)("images")(job("child")) for key in ("spec", "version"))
    kept[str(artifact)] = [repr(each) for each in (before[1], spec, version)]
    Path("photos").rename("away")
    assert looked_up() == (["photos"], "", [])  # no artifact
    artifact.parent.mkdir(parents=True)
    artifact.touch()
    assert looked_up() == ([], before[1], [str(artifact)])
    for spoiled in ([repr(before[1]), "'{}'", repr(version)], [repr(before[1]), repr(spec), "-1"], []):
        kept[str(artifact)] = spoiled
        assert looked_up() == (["photos"], "", [])
    Path("away").rename("photos")
    assert looked_up() == before


def test_versions_change_with_the_specs_of_all_rules_upstream_and_with_no_others():
    """So what a failed job was to make anew, and all that is made from it, is made by the next run."""

    def versions(**sections) -> dict[str, str]:
        found = provided(child=sections)
        rules = ("images", "teacher", "pairs", "distill", "sample", "features", "evaluate")
        return {rule: found.version(rule)(job("child")) for rule in rules if found.experiments.has("child", rule)}

    before = versions()
    changed = versions(distill={"seed": 7})
    assert {rule for rule in before if before[rule] != changed[rule]} == {"sample", "features", "evaluate"}
    assert before["evaluate"].split()[0] == str(RULES["evaluate"].version)
    assert versions(distill={"checkpoint_every": 7}) == before


def test_version_of_a_method_is_that_of_its_trainings_and_of_what_is_made_from_them():
    flow = {"distill": {"method": {"name": "rectified-flow", "objective": "reflow", "phases": [{"updates": 5}]}}}

    def versions() -> dict[str, str]:
        found = provided(flow=flow, child={"teacher": {"kind": "experiment", "name": "flow"}})
        made = {rule: found.version(rule)(job("flow")) for rule in ("teacher", "distill", "sample", "features")}
        return made | {"its student as a teacher": found.version("teacher")(job("child"))}

    before = versions()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RectifiedFlow, "version", 100)
        after = versions()
    assert after["distill"].split()[:2] == [str(RULES["distill"].version), "100"]
    assert {rule for rule in before if before[rule] != after[rule]} == {*before} - {"teacher"}


def test_parameters_that_rerun_nothing_take_the_output():
    """Snakemake compares a parameter with that of the last run unless it depends on input or output."""
    storage = {"prefix": "s3://bucket/folder", "keep": False}
    found = provided({"storage": storage}, child={"distill": {"checkpoint_every": 7}})
    for look_up in (found.cadence("distill"), found.cadence("teacher"), found.storage):
        assert "output" in inspect.signature(look_up).parameters
    assert found.cadence("distill")(job("child"), output=[]) == '{"checkpoint_every":7}'
    assert found.cadence("teacher")(job("child"), output=[]) == '{"cadence":{}}'
    assert '"prefix":"s3://bucket/folder"' in found.storage(job(), output=[])
    assert provided().storage(job(), output=[]) == "{}"


def test_import_of_a_teacher_tries_the_schedulers_of_all_that_share_it():
    """Its parameter depends on the output, so that another solver does not import the teacher again."""
    few = {"from": "teacher", "solver": {"name": "dpmsolver++", "steps": 2}}
    imported = {"teacher": {"kind": "diffusers", "folder": "model"}}
    pairs = {"pairs": {"solver": {"name": "unipc", "steps": 5}}, "distill": {"method": {"sigma": None}}}
    found = provided(child=imported | pairs, own={"teacher": {"kind": "diffusers", "folder": "another"}})
    shared = {"base": copy.deepcopy(BASE) | imported, "few": {"extends": "base", "sample": few}}
    other = RuleLookups(config.resolve({"experiments": shared}))
    assert "output" in inspect.signature(found.solvers).parameters
    expected = {"child.pairs.solver": {"name": "unipc", "steps": 5, "spacing": None}}
    assert json.loads(found.solvers(job("child"), output=[])) == {"solvers": expected}
    assert found.solvers(job("own"), output=[]) == found.solvers(job(), output=[]) == "{}"
    assert other.solvers(job("base"), output=[]) == "{}", "few shares the teacher, and tries its own solver"


def test_import_of_a_teacher_tries_the_scheduler_of_a_student():
    method = {"name": "dmd2", "calls": 4, "times": {"kind": "lcm"}, "phases": [{"updates": 1}]}
    imported = {"teacher": {"kind": "diffusers", "folder": "model"}, "distill": {"method": method}}
    found = provided(child=imported, own={"distill": {"method": {**method, "times": {"kind": "karras"}}}})
    times = {"kind": "lcm", "original_inference_steps": None}
    expected = {"calls": {"child.distill.method": {"calls": 4, "times": times}}}
    assert json.loads(found.solvers(job("child"), output=[])) == expected
    assert found.solvers(job("own"), output=[]) == "{}", "its teacher is trained here, and has no scheduler"


def test_flag_is_given_where_the_input_is_a_file():
    inputs = InputFiles(toclone=["a b.txt"])
    inputs._set_name("text_encoder", 0)
    inputs._set_name("prompts", 1, end=1)
    assert rule_lookups.flag("text_encoder")(job(), inputs) == "--text-encoder 'a b.txt'"
    assert rule_lookups.flag("prompts")(job(), inputs) == rule_lookups.flag("other")(job(), inputs) == ""


def test_one_block_is_its_path_and_several_are_one_word():
    assert rule_lookups.braced(job(), ["r/a/1.parquet"]) == "r/a/1.parquet"
    assert rule_lookups.braced(job(), ["r/a b/1.parquet", "r/a b/2.parquet"]) == "'r/a b'/{1,2}.parquet"


def asked(section: dict[str, Any], rule: str, attempt: int = 1) -> dict[str, Any]:
    """What a job asks for, without what it does not."""
    found = provided(child=section)
    fields = resources.Resources.__dataclass_fields__
    values = {name: found.resource(name)(job("child"), attempt=attempt, rulename=rule) for name in fields}
    return {name: value for name, value in values.items() if value is not None}


def test_job_asks_for_what_its_rule_says_and_more_memory_with_each_attempt():
    expected = {"threads": 1, "gpu": 0, "mem_mb": 2000, "runtime": 60}
    assert asked({"threads": 3}, "evaluate") == expected
    assert [asked({}, "evaluate", attempt)["mem_mb"] for attempt in (1, 2, 3)] == [2000, 3000, 4000]
    assert asked({"threads": 3}, "pairs") == {"threads": 3, "gpu": 1, "mem_mb": 2000, "runtime": 240}
    assert asked({"threads": 3}, "export_onnx") == {"threads": 3, "gpu": 0, "mem_mb": 8000, "runtime": 60}
    assert asked({"device": "cpu"}, "pairs")["gpu"] == 0
    own = {"pairs": {"memory_mb": 300, "hours": 0.5}}
    assert asked({"resources": own}, "pairs") == {"threads": 1, "gpu": 1, "mem_mb": 300, "runtime": 30}


def test_each_process_of_a_training_asks_for_memory_threads_and_a_gpu():
    teacher = {"teacher": {"training": {"processes": 2}}, "threads": 3}
    assert asked(teacher, "teacher") == {"threads": 6, "gpu": 2, "mem_mb": 8000, "runtime": 720}
    distill = {"distill": {"processes": 4}, "threads": 3}
    expected = {"threads": 12, "gpu": 4, "mem_mb": 16000, "runtime": 1440, "nodes": 1}
    assert asked(distill, "distill") == expected


def test_distillation_on_several_machines_asks_for_each_of_them():
    distill = {"distill": {"processes": 4}, "threads": 3, "resources": {"distill": {"nodes": 2}}}
    common = {"threads": 6, "mem_mb": 8000, "runtime": 1440, "nodes": 2, "tasks": 2, "mpi": "srun", "tasks_per_gpu": 0}
    assert asked(distill, "distill") == common | {"gres": "gpu:2"}
    assert asked({**distill, "device": "cpu"}, "distill") == common


ROWS = [{"label": "a", "experiments": ["base", "child"]}, {"label": "b", "experiments": ["other"], "run": False}]


def tables(**given: Any) -> TableLookups:
    """Those of a configuration of `base`, `child` of the same teacher, and `other`."""
    children = {"child": {"distill": {"seed": 1}}, "other": {"teacher": {"training": {"ema_decay": 0.5}}}}
    named = {name: {"extends": "base", **section} for name, section in children.items()}
    found = config.resolve({"experiments": {"base": copy.deepcopy(BASE), **named}, **given})
    return TableLookups(found, config.Experiments(found), {"table1": {"rows": []}})


def test_table_reads_scores_of_rows_that_run_and_shows_others_that_are_there(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found, table = tables(tables={"demo": {"rows": ROWS}}), Wildcards(fromdict={"table": "demo"})
    assert found.scores("fid")(table) == ["results/base/fid.json", "results/child/fid.json"]
    assert found.scores("clip")(table) == found.existing("fid")(table) == found.latencies(table) == []
    for path in (Path("results/other/fid.json"), Path("results/child/latency.json")):
        path.parent.mkdir(parents=True)
        path.touch()
    assert found.existing("fid")(table) == ["results/other/fid.json"]
    assert found.latencies(table) == ["results/child/latency.json"]
    assert found.not_inputs(table) == ["results/child/latency.json", "results/other/fid.json"]


def test_rows_of_a_table_name_the_owners_of_their_teachers():
    found = tables(tables={"demo": {"rows": ROWS, "paper": "table1"}})
    rows = [{"label": "a", "experiments": ["base", "child"], "teacher": "base"}]
    rows += [{"label": "b", "experiments": ["other"], "teacher": "other"}]
    expected = {"title": "", "rows": rows, "paper": {"rows": []}}
    assert found.table_spec(Wildcards(fromdict={"table": "demo"})) == canonical_json(expected)
    with pytest.raises(config.ConfigError, match='tables.demo.paper: unknown table "tabel1" .did you mean "table1"'):
        tables(tables={"demo": {"rows": ROWS, "paper": "tabel1"}})


def test_group_is_a_table_its_charts_and_pictures_of_rows_that_run():
    series = [{"label": "all", "points": [["base"], ["child"]]}]
    charts = {"demo-pairs": {"kind": "pairs", "series": series}, "other": {"kind": "calls", "series": series}}
    found = tables(tables={"demo": {"rows": ROWS}}, charts=charts)
    assert found.target_files("demo")(None) == [
        "results/tables/demo.md",
        "results/tables/demo-pairs.png",
        "results/base/pictures/grid.png",
    ]
    with pytest.raises(SystemExit, match='the configuration has no table "dmo"'):
        found.target_files("dmo")(None)
    chart = Wildcards(fromdict={"chart": "demo-pairs"})
    assert found.chart_inputs(chart) == ["results/base/fid.json", "results/child/fid.json"]
    assert '"x":[16,16]' in found.chart_spec(chart)
    with pytest.raises(SystemExit, match='no "dmeo-pairs" below charts .did you mean "demo-pairs"'):
        found.chart_spec(Wildcards(fromdict={"chart": "dmeo-pairs"}))


def test_message_about_a_configuration_shows_no_secret_and_no_control_character():
    @rule_lookups.exits_on_config_error
    def fail() -> None:
        raise config.ConfigError(
            "inputs.x.url: https://user:secret@host/x?token=secret \x1b[2J is no file\nanother fault"
        )

    with pytest.raises(SystemExit) as ended:
        fail()
    assert str(ended.value) == ("error: inputs.x.url: https://***@host/x?*** \\x1b[2J is no file\nanother fault")
