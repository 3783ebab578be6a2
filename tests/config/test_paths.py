"""Every key of the configuration that takes a path takes any path; the keys are found in the sections themselves."""

import inspect
import json
import os
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import AfterValidator, BaseModel
from snakemake.iocontainers import Wildcards

from dmd import config
from dmd.config import rule_lookups
from dmd.config.experiment import Experiment, File
from dmd.config.rule_lookups import RuleLookups
from dmd.config.section_base import own_path
from tests.config.test_source_files import ODD
from tests.idx_files import NAMES

EXPERIMENT = "one"
OTHER = {"num_samples": 4, "shard_size": 4}
LPIPS = {"method": {"name": "dmd", "regression_distance": {"kind": "lpips"}, "phases": [{"updates": 5}]}}
PHOTOS = {"kind": "images", "folder": "photos", "resolution": 8, "num_held_out": 6}
GLYPHS = {"kind": "glyphs", "resolution": 8, "num_held_out": 6}
TABLES = ("ImageDataset.labels", "ImageDataset.captions", "GlyphDataset.captions")  # files of suffix .csv
KEYS: dict[str, tuple[dict[str, Any], str]] = {  # section.key -> sections that have it, and the place of the section
    "ImageDataset.folder": ({"dataset": PHOTOS}, "dataset"),
    "ImageDataset.labels": ({"dataset": PHOTOS}, "dataset"),
    "IdxDataset.folder": ({"dataset": {"kind": "idx", "folder": "idx"}}, "dataset"),
    "FileTeacher.file": ({"teacher": {"kind": "file"}}, "teacher"),
    "ImageDataset.captions": ({"dataset": PHOTOS}, "dataset"),
    "GlyphDataset.file": ({"dataset": {**GLYPHS, "captions": "captions.csv"}}, "dataset"),
    "GlyphDataset.captions": ({"dataset": {**GLYPHS, "file": "font.ttf"}}, "dataset"),
    "EdmTeacher.file": ({"teacher": {"kind": "edm"}}, "teacher"),
    "OpenaiTeacher.file": ({"teacher": {"kind": "openai"}}, "teacher"),
    "DiffusersTeacher.folder": ({"teacher": {"kind": "diffusers"}}, "teacher"),
    "StableDiffusionTeacher.folder": ({"teacher": {"kind": "stable-diffusion"}}, "teacher"),
    "TinyAutoencoder.folder": (
        {"teacher": {"kind": "stable-diffusion", "folder": "sd", "tiny_autoencoder": {}}},
        "teacher.tiny_autoencoder",
    ),
    "ClassifierFeatures.file": (
        {"dataset": PHOTOS, "reference": {"features": {"kind": "digits32", "sha256": "a" * 64}}},
        "reference.features",
    ),
    "InceptionFeatures.file": (
        {"dataset": PHOTOS, "reference": {"features": {"kind": "inception"}, "protocol": {"quantise": 256}}},
        "reference.features",
    ),
    "Moments.file": ({"reference": {"features": {"kind": "pixels"}, "moments": {}}}, "reference.moments"),
    "PromptFile.file": ({"prompts": {"kind": "file"}}, "prompts"),
    "CocoPrompts.file": ({"sample": {**OTHER, "prompts": {"kind": "coco"}}}, "sample.prompts"),
    "PinnedFile.file": ({"prompts": {"kind": "laion", "threshold": 6.0, "files": [{}]}}, "prompts.files.0"),
    "Lora.file": ({"sample": {**OTHER, "from": "teacher", "solver": {"name": "heun"}, "lora": {}}}, "sample.lora"),
    "Clip.folder": (
        {"sample": {**OTHER, "prompts": {"kind": "coco", "file": "coco.json"}}, "evaluate": {"clip": {}}},
        "evaluate.clip",
    ),
    "LpipsDistance.file": ({"distill": LPIPS}, "distill.method.regression_distance"),
}
WRITTEN = {"Input.file", "Input.folder", "Storage.cache", "File.include"}  # keys of no experiment


def takers(model: type[BaseModel], seen: set[type[BaseModel]]) -> Iterator[str]:
    """`Section.key` of each key of a section, and of the sections in it, that takes a path."""
    if model in seen:
        return
    seen.add(model)
    for name, field in model.model_fields.items():
        if any(isinstance(each, AfterValidator) and each.func is own_path for each in parts(field)):
            yield f"{model.__name__}.{name}"
        for part in parts(field):
            if inspect.isclass(part) and issubclass(part, BaseModel):
                yield from takers(part, seen)


def parts(annotation: Any) -> Iterator[Any]:
    """All types and validators that an annotation, or a field, is made of."""
    if hasattr(annotation, "annotation"):
        yield from parts(annotation.annotation)
    for each in (*typing.get_args(annotation), *getattr(annotation, "metadata", ())):
        yield from parts(each)
    yield annotation


def test_every_key_that_takes_a_path_is_tried():
    seen: set[type[BaseModel]] = set()
    found = {*takers(File, seen), *takers(Experiment, seen)}
    assert found == {*KEYS, *WRITTEN}
    named = {f"{model.__name__}.{name}" for model in seen for name in model.model_fields if name in ("file", "folder")}
    assert named <= found  # none of them is plain text


def written(key: str, path: str) -> dict[str, Any]:
    """A configuration with `path` at a key."""
    sections, place = KEYS[key]
    whole = json.loads(json.dumps({EXPERIMENT: sections}))
    section: Any = whole[EXPERIMENT]
    for part in place.split("."):
        section = section[int(part) if part.isdecimal() else part]
    section[key.split(".")[1]] = path
    return {"experiments": whole}


NETWORK = ("config.json", "model.safetensors", "diffusion_pytorch_model.safetensors")
FILES = ("1.png", *NETWORK, *(f"{name}/{file}" for name in ("unet", "vae", "text_encoder") for file in NETWORK))
FILES += ("scheduler/scheduler_config.json", "tokenizer/tokenizer.json", *NAMES.values())


def put(path: Path) -> None:
    """What any key takes that is no file: a folder of images, weights and more."""
    for name in FILES:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()


@pytest.mark.parametrize("key", KEYS)
def test_any_path_reaches_the_stage_as_it_is(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    home = tmp_path / "home"
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("HOME", str(home))
    for each in ("photos", "sd"):
        put(Path(each))
    for each in ("coco.json", "captions.csv", "font.ttf"):
        Path(each).touch()
    place = KEYS[key][1].removesuffix(".files.0").removesuffix(".regression_distance")
    names = [name for name in ODD if name.isprintable() or "\n" in name]
    for given in [*names, *(f"{before}/{name}" for name in names for before in ("~", "..", "a/../b"))]:
        given += ".csv" if key in TABLES else ""
        path = os.path.expanduser(given)
        Path("a").mkdir(exist_ok=True)
        if key.endswith("folder"):
            put(Path(path))
        else:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        found = RuleLookups(config.resolve(written(key, given)))
        job = Wildcards(fromdict={"experiment": EXPERIMENT})
        assert found.files("teacher", place)(job) == []
        assert bool(found.watched("teacher", place)(job)) == (
            key != "ClassifierFeatures.file"
        )  # pinned: its digest stands for it
        if place == "dataset" and key != "ImageDataset.folder":
            given_to_stage = json.loads(found.spec("images")(job))["dataset"][key.split(".")[1]]
            assert os.path.samefile(given_to_stage, path)
            continue
        if key == "IdxDataset.folder":
            assert os.path.samefile(json.loads(found.spec("images")(job))["dataset"]["folder"], path)
            continue
        flag, *paths = shlex.split(found.source(place)(job, output=[]))
        assert flag == "--source" and not paths[0].startswith("-")
        assert os.path.samefile(paths[0], path)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("bad", ["a\udce9", "a\0b"])
def test_path_that_no_log_can_show_is_refused_in_one_line(key: str, bad: str):
    bad += ".csv" if key in TABLES else ""
    with pytest.raises(
        config.ConfigError, match="null character|unable to parse raw data as a unicode string"
    ) as caught:
        config.resolve(written(key, bad))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("key", KEYS)
def test_missing_or_strange_file_is_named_before_work(key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for each in ("photos", "sd"):
        put(Path(each))
    for each in ("coco.json", "captions.csv", "font.ttf"):
        Path(each).touch()
    place = KEYS[key][1].removesuffix(".files.0").removesuffix(".regression_distance")
    suffix = ".csv" if key in TABLES else ""
    os.mkfifo(f"pipe{suffix}")
    Path(f"link{suffix}").symlink_to("nowhere")
    for name, reason in (("a{b}", "missing"), ("pipe", "a named pipe"), ("link", "a link to nowhere")):
        rule_lookups._list.cache_clear()
        found = RuleLookups(config.resolve(written(key, name + suffix)))
        job = Wildcards(fromdict={"experiment": EXPERIMENT})
        with pytest.raises(SystemExit, match=rf"^error: {EXPERIMENT}\.\S+: {re.escape(name)}{suffix} is .*{reason}"):
            found.files("teacher", place)(job)
    found = RuleLookups(config.resolve(written(key, absent := f"absent{suffix}")))
    lacking = [f"{absent}/{name}" for name in NAMES.values()] if key == "IdxDataset.folder" else [absent]
    assert found.files("teacher", place)(job) == lacking and list(found.missing) == lacking


@pytest.mark.parametrize("time", [0, 4_000_000_000])
@pytest.mark.parametrize("key", KEYS)
def test_change_behind_a_link_is_watched_whatever_the_time(
    key: str, time: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    for each in ("photos", "sd", "away", "away/deep"):
        put(Path(each))
    for each in ("coco.json", "captions.csv", "font.ttf"):
        Path(each).touch()
    place = KEYS[key][1].removesuffix(".files.0").removesuffix(".regression_distance")
    name = "link.csv" if key in TABLES else "link"
    Path(name).symlink_to("away" if key.endswith("folder") else "away/deep/1.png")

    def look() -> tuple[list[str], str]:
        rule_lookups._list.cache_clear()
        found = RuleLookups(config.resolve(written(key, name)))
        job = Wildcards(fromdict={"experiment": EXPERIMENT})
        return found.files("teacher", place)(job), found.watched("teacher", place)(job)

    before = look()
    for file in ("deep/1.png", "deep/model.safetensors", NAMES["training_labels"]):
        os.utime(Path("away", file), (time, time))
    after = look()
    assert before[0] == after[0] == []  # no input of Snakemake's, whose time would decide
    assert (before[1] != after[1]) == (key != "ClassifierFeatures.file")  # the whole sha256 of which is given


def test_included_file_and_cache_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    names = [name for name in ODD if name.isprintable() or "\n" in name]
    for number, name in enumerate(names):
        content = {"experiments": {f"e{number}": {"dataset": {"kind": "digits"}}}}
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content))
    included = [f"{before}{name}.yaml" for name, before in zip(names, ["", "~/", "./", "a/../"] * 5, strict=False)]
    Path("a").mkdir()
    Path("config.yaml").write_text(yaml.safe_dump({"include": included, "experiments": {}}))
    assert len(config.load(Path("config.yaml")).experiments) == len(names)
    for name in names:
        storage = {"prefix": "s3://bucket/a", "cache": f"~/{name}"}
        found = config.resolve({"experiments": {}, "storage": storage}).storage
        assert found is not None and found.cache == str(tmp_path / name)
