"""Files made of a Stable Diffusion folder: each by its rule, shared by children, known to verify and prune."""

import shutil
from pathlib import Path

import pytest

from dmd import config, verify
from dmd.config import Experiments
from dmd.models import loading
from tests.stable_diffusion_files import make_stable_diffusion, make_tiny_autoencoder
from tests.workflow.conftest import jobs, make, snakemake, write_config
from workflow.scripts.prune import unowned

TEACHER = {"kind": "stable-diffusion", "folder": "inputs/sd", "tiny_autoencoder": {"folder": "inputs/tiny"}}
CONFIG = {
    "experiments": {
        "text": {"device": "cpu", "teacher": TEACHER},
        "tinier": {"extends": "text", "teacher": {"tiny_autoencoder": {"folder": "inputs/tinier"}}},
        "pixels": {"teacher": {"kind": "diffusers", "folder": "inputs/sd"}},
        "latent": {"extends": "pixels", "teacher": {"latent": True}},
    },
}
PARTS = ("text_encoder", "autoencoder", "tiny_autoencoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("run")
    write_config(place, CONFIG)
    make_stable_diffusion(place / "inputs/sd")
    make_tiny_autoencoder(place / "inputs/tiny")
    return place


def test_each_file_of_a_teacher_has_its_owner():
    found = Experiments(config.resolve(CONFIG))
    owners = {rule: found.owner("tinier", rule) for rule in ("teacher", *PARTS)}
    assert owners == {"teacher": "text", "text_encoder": "text", "autoencoder": "text", "tiny_autoencoder": "tinier"}
    had = {name: [rule for rule in PARTS if found.has(name, rule)] for name in ("text", "pixels", "latent")}
    assert had == {"text": list(PARTS), "pixels": [], "latent": ["autoencoder"]}
    assert found.owner("latent", "teacher") == "latent"
    assert found.spec("text", "teacher") == {"kind": "stable-diffusion"}
    assert found.spec("pixels", "teacher") == {"kind": "diffusers"}


def test_rules_make_what_the_stages_need_and_the_folder_may_go(folder, monkeypatch):
    names = [f"results/text/teacher/{name}.safetensors" for name in ("denoiser", *PARTS)]
    expected = {"teacher": 1, "text_encoder": 1, "autoencoder": 1, "tiny_autoencoder": 1}
    assert jobs(make(folder, "--cores", "1", *names)) == expected
    assert jobs(make(folder, "--dry-run", *names)) == {}
    answer = snakemake(folder, "--dry-run", "results/tinier/teacher/autoencoder.safetensors")
    assert answer.returncode != 0 and "ask for results/text/teacher/autoencoder" in answer.stdout + answer.stderr
    answer = snakemake(folder, "--dry-run", "results/pixels/teacher/text_encoder.safetensors")
    assert answer.returncode != 0 and "pixels.teacher: kind diffusers has no text encoder" in answer.stderr
    shutil.move(folder / "inputs", folder / "away")
    denoiser, text, codec, tiny = (folder / name for name in names)
    states = loading.load_text(text).encode(["a cat"]).states
    assert states.shape[1:] == loading.load_empty(denoiser).shape
    assert loading.load_codec(codec).channels == loading.load_codec(tiny).channels == 4
    monkeypatch.chdir(folder)
    loaded = config.load(folder / "config.yaml")
    assert unowned(Path("results"), loaded) == []
    text.write_bytes(text.read_bytes()[:-1])
    assert list(verify.run(folder=Path("results"), delete=False)) == [text.relative_to(folder)]
    shutil.move(folder / "away", folder / "inputs")


def test_a_folder_without_weights_is_listed_before_any_job(folder):
    (folder / "inputs/tinier").mkdir()
    target = "results/tinier/teacher/tiny_autoencoder.safetensors"
    names = ("config.json", "diffusion_pytorch_model.safetensors")
    assert jobs(make(folder, "--dry-run", target))["missing"] == len(names)
    answer = snakemake(folder, "--cores", "1", target)
    assert answer.returncode == 1 and "error: files are missing\n" in answer.stderr
    for name in names:
        assert f"  inputs/tinier/{name}: a part of inputs/tinier\n" in answer.stderr
    assert "named by: tinier.teacher.tiny_autoencoder.folder" in answer.stderr
