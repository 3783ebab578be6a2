"""The list of missing files: every path that the configuration names, and what is known of it."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from dmd import config
from dmd.config import ConfigError
from dmd.config.missing_files import listed, missing_files
from dmd.config.model_folders import lacking
from dmd.config.section_base import Section
from dmd.config.sections import DiffusersTeacher, IdxDataset, StableDiffusionTeacher
from tests.config.test_experiments import BASE

REPOSITORY = Path(__file__).resolve().parents[2]
DIGEST = "ab" * 32
CHILD = {
    "extends": "base",
    "dataset": {"kind": "images", "folder": "photos", "labels": "classes.csv", "resolution": 8, "num_held_out": 6},
    "reference": {
        "features": {"kind": "inception", "file": "inputs/net.pth", "sha256": DIGEST[:8]},
        "protocol": {"quantise": 256},
    },
    "teacher": {"kind": "diffusers", "folder": "clip"},
}
PAGE = {"page": "https://example.org/clip", "folder": "clip", "sha256": None, "size": 5_500_000_000}


def found(inputs: dict | None = None, **experiments: dict):
    written = {"experiments": {"base": copy.deepcopy(BASE), "child": CHILD, **experiments}, "inputs": inputs or {}}
    return missing_files(config.resolve(written))


def test_every_path_that_does_not_exist_is_found_with_its_keys(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    missing = found(grandchild={"extends": "child"})
    assert {path: each.keys[0] for path, each in missing.items()} == {
        "photos": "child.dataset.folder",
        "classes.csv": "child.dataset.labels",
        "inputs/net.pth": "child.reference.features.file",
        "clip": "child.teacher.folder",
    }
    assert missing["clip"].keys == ("child.teacher.folder", "grandchild.teacher.folder")
    Path("inputs").mkdir()
    for name in ("photos", "classes.csv", "inputs/net.pth"):
        Path(name).touch()
    assert list(found()) == ["clip"]
    Path("clip").mkdir()
    for name in ("config.json", "diffusion_pytorch_model.safetensors"):
        Path("clip", name).touch()
    assert found() == {} and listed([]) == ""


def test_list_says_what_it_is_where_it_comes_from_and_how_to_check_it(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    about = {"about": "a network", "licence": "MIT", "url": "https://example.org/net.pth", "size": 3_000_000}
    missing = found({"clip": PAGE, "net": {"file": "inputs/net.pth", "sha256": DIGEST, **about}})
    assert [path for path, each in missing.items() if each.is_downloaded] == ["inputs/net.pth"]
    assert listed([missing["inputs/net.pth"], missing["clip"]]).splitlines() == [
        "Missing, to be put there before a run (1):",
        "  clip",
        "      size: 5,500 MB; licence: not stated, ask its owner",
        "      from: https://example.org/clip",
        "      check: no sha256 is known",
        "      named by: child.teacher.folder",
        "Missing, downloaded by a run (1):",
        "  inputs/net.pth: a network",
        "      size: 3 MB; licence: MIT",
        "      from: https://example.org/net.pth",
        f"      check: its sha256 is {DIGEST[:8]}...",
        "      named by: child.reference.features.file",
    ]
    assert "from: not stated, see section inputs" in listed([missing["photos"]])


@pytest.mark.parametrize("key", ["labels", "captions"])
def test_a_table_that_a_run_downloads_is_known_however_its_path_is_written(tmp_path: Path, monkeypatch, key: str):
    monkeypatch.chdir(tmp_path)
    own = {**CHILD["dataset"], "labels": "none", key: "./a/../inputs/table.csv"}
    table = {"file": "inputs/table.csv", "sha256": None, "url": "https://example.org/table.csv"}
    missing = found({"table": table}, own={"extends": "child", "dataset": own})
    assert missing["inputs/table.csv"].is_downloaded


def test_files_of_a_folder_that_a_run_downloads_are_missing_one_by_one(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = IdxDataset(kind="idx", folder="inputs/clothes").files()
    url = {"url": "https://example.org/a.gz", "sha256": DIGEST}
    inputs = {f"i{number}": {"file": path, **url} for number, path in enumerate(files.values())}
    idx = {"extends": "base", "dataset": {"kind": "idx", "folder": "inputs/clothes"}}
    missing = {path: each for path, each in found(inputs, idx=idx).items() if each.keys[0].startswith("idx.")}
    assert {path: each.keys[0] for path, each in missing.items()} == {
        path: f"idx.dataset.{key}" for key, path in files.items()
    }
    assert all(each.is_downloaded and each.sha256 == DIGEST for each in missing.values())
    Path("inputs/clothes").mkdir(parents=True)
    Path(files["held_out_labels"]).touch()
    assert len([path for path in found(inputs, idx=idx) if path in files.values()]) == 3


STABLE = ["unet/config.json", "unet/diffusion_pytorch_model.safetensors", "scheduler/scheduler_config.json"]
STABLE += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "text_encoder/config.json"]
STABLE += ["text_encoder/model.safetensors", "tokenizer/vocab.json", "tokenizer/merges.txt"]
TEACHERS: dict[str, Any] = {"stable-diffusion": StableDiffusionTeacher, "diffusers": DiffusersTeacher}
INDEX = {"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors", "c": "part-1.safetensors"}}
FOLDERS = {  # kind of teacher, names that are there -> names that are missing
    "empty": ("stable-diffusion", (), STABLE),
    "whole": ("stable-diffusion", STABLE, []),
    "tokenizer in one file": ("stable-diffusion", (*STABLE[:-2], "tokenizer/tokenizer.json"), []),
    "variant": ("stable-diffusion", (STABLE[0], "unet/diffusion_pytorch_model.fp16.safetensors", *STABLE[2:]), []),
    "no merges": ("stable-diffusion", STABLE[:-1], STABLE[-1:]),
    "pickled weights": ("stable-diffusion", (*STABLE[:6], "text_encoder/model.bin", *STABLE[7:]), STABLE[6:7]),
    "empty pipeline on pixels": ("diffusers", (), STABLE[:2]),
    "network alone": ("diffusers", ("config.json",), ["diffusion_pytorch_model.safetensors"]),
    "parts": (
        "diffusers",
        (STABLE[0], "unet/diffusion_pytorch_model.safetensors.index.json", "unet/part-2.safetensors"),
        ["unet/part-1.safetensors"],
    ),
    "parts of a variant": (
        "diffusers",
        (STABLE[0], "unet/diffusion_pytorch_model.safetensors.index.fp16.json", "unet/part-1.safetensors"),
        ["unet/part-2.safetensors"],
    ),
}


@pytest.mark.parametrize("name", FOLDERS)
def test_parts_that_a_folder_of_a_model_lacks_are_known_by_name(tmp_path: Path, name: str):
    kind, there, missing = FOLDERS[name]
    for each in there:
        path = tmp_path / each
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(INDEX if ".index." in each else {}))
    teacher: Section = TEACHERS[kind](kind=kind, folder=str(tmp_path))
    assert sorted(lacking(teacher)) == sorted(str(tmp_path / each) for each in missing)


def test_parts_that_a_folder_lacks_are_listed_with_what_is_known_of_the_folder(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("clip/unet").mkdir(parents=True)
    Path("clip/unet/config.json").touch()
    parts = [each for path, each in found({"clip": PAGE}).items() if path.startswith("clip")]
    assert [(each.keys, each.folder, each.is_downloaded) for each in parts] == [
        (("child.teacher.folder",), "clip", False)
    ]
    assert [*parts[0].lines()][:3] == [
        "clip/unet/diffusion_pytorch_model.safetensors: a part of clip",
        "    size: 5,500 MB for the whole folder; licence: not stated, ask its owner",
        "    from: https://example.org/clip",
    ]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"weight_map": 3}', '{"weight_map": {"a": "../x", "b": 4}}', "[" * 9999]
)
def test_index_that_cannot_be_used_is_left_to_the_stage(tmp_path: Path, monkeypatch, content: str):
    monkeypatch.chdir(tmp_path)
    Path("clip").mkdir()
    Path("clip/config.json").touch()
    Path("clip/diffusion_pytorch_model.safetensors.index.json").write_text(content)
    assert not [path for path in found() if path.startswith("clip")]


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"file": None}, "inputs.net: lacks one of the keys file and folder"),
        ({"folder": "net"}, "inputs.net.folder: stands beside file"),
        ({"file": None, "folder": "net", "url": "https://x.org"}, "inputs.net.url: https://x.org is one file, which"),
        ({"file": None, "folder": "net", "sha256": DIGEST}, "inputs.net.sha256: stands in the sections that name"),
        ({"file": "clip"}, "inputs.net.file: clip is also the path of inputs.clip"),
    ],
)
def test_an_entry_that_contradicts_itself_is_refused(entry: dict, message: str):
    with pytest.raises(ConfigError) as caught:
        found({"clip": PAGE, "net": {"file": "inputs/net.pth", "sha256": None, **entry}})
    assert message in str(caught.value)


def test_all_that_the_published_experiments_name_is_described():
    """Each file and folder below inputs/ has an entry with what it is, its licence and where it comes from."""
    loaded = config.load(REPOSITORY / "config.yaml")
    entries = {entry.path: entry for entry in loaded.inputs.values()}
    named = {path for path in missing_files(loaded) if path.startswith("inputs/")}
    assert named <= entries.keys()
    found = [entry for path, entry in entries.items() if path.startswith("inputs/")]  # the workflow makes the others
    assert all(entry.about and entry.licence and (entry.url or entry.page) for entry in found)
