"""The paper's text-to-image experiments as shipped: what a run would make, and that growth makes nothing again."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from dmd.config import Experiments, load, read_file, read_yaml
from tests.workflow.conftest import REPOSITORY, jobs, snakemake

FOLDERS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")


def put(path: Path) -> None:
    """An empty file in place of a large one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped configuration with empty files in place of those that have no address."""
    found = tmp_path_factory.mktemp("sd15")
    shutil.copy(REPOSITORY / "config.yaml", found / "config.yaml")
    shutil.copytree(REPOSITORY / "config", found / "config")
    config = read_file(found / "config.yaml")["experiments"]
    for name in ("sd15-cfg3", "sd15-cfg8"):
        for each in config[name]["prompts"]["files"]:
            put(found / each["file"])
    shared = config["sd15-cfg3"]
    for part in FOLDERS:
        put(found / shared["teacher"]["folder"] / part / "config.json")
        put(found / shared["teacher"]["folder"] / part / "model.safetensors")
    put(found / shared["teacher"]["tiny_autoencoder"]["folder"] / "diffusion_pytorch_model.safetensors")
    put(found / shared["dataset"]["folder"] / "0.jpg")
    put(found / shared["evaluate"]["clip"]["folder"] / "model.safetensors")
    put(found / shared["sample"]["prompts"]["file"])
    return found


@pytest.fixture(scope="module")
def experiments() -> Experiments:
    return Experiments(load(REPOSITORY / "config.yaml"))


@pytest.mark.parametrize(("experiment", "pairs"), [("sd15-cfg3", 250), ("sd15-cfg8", 1200)])
def test_dry_run_plans_every_job_at_once(folder, experiment, pairs):
    answer = snakemake(
        folder, "--dry-run", "--cores", "1", f"results/{experiment}/fid.json", f"results/{experiment}/clip.json"
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = jobs(answer.stdout)
    assert found["pairs"] == pairs and found["sample"] == found["features"] == 15
    once = ("teacher", "text_encoder", "prompts", "captions", "pairs_manifest", "distill", "reference", "evaluate")
    assert {found[rule] for rule in once} == {1} and sum(found.values()) < 2000


def test_teacher_rows_share_teacher_and_captions(folder):
    answer = snakemake(folder, "--dry-run", "--cores", "1", "results/sd15-cfg8-teacher/fid.json")
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert not {"pairs", "distill", "prompts"} & set(jobs(answer.stdout))
    for path in ("teacher/denoiser.safetensors", "teacher/text_encoder.safetensors", "captions/captions.parquet"):
        assert f"results/sd15-cfg3/{path}" in answer.stdout


def test_pairs_of_fewer_are_the_first_blocks_of_all(folder):
    """An experiment that was begun with 2.5 million pairs plans the same blocks, by name and by specification."""
    config = read_yaml(folder / "config.yaml")
    config["experiments"]["begun"] = {"extends": "sd15-cfg8", "pairs": {"num_pairs": 2500000}}
    config["experiments"]["begun"]["distill"] = {"method": {"phases": [{"updates": 21100}]}}
    begun = folder / "begun.yaml"
    begun.write_text(yaml.safe_dump(config, sort_keys=False))
    target = "results/begun/pairs/manifest.parquet"
    answer = snakemake(folder, "--dry-run", "--cores", "1", "--configfile", str(begun), "--", target)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    blocks = set(re.findall(r"results/(\S+?)/pairs/blocks/(\d{5}-\d{5}).parquet", answer.stdout))
    assert blocks == {("sd15-cfg8", f"{first:05d}-{first + 9:05d}") for first in range(0, 2500, 10)}


@pytest.mark.parametrize(("weight", "read", "left"), [(0.25, "pairs", "states"), (0.0, "states", "pairs")])
def test_a_pipeline_waits_for_the_data_that_its_student_read_and_no_other(folder, weight, read, left):
    """Its card tells of them; 12 million pairs would not be drawn for a card."""
    config = read_yaml(folder / "config.yaml")
    section = {"method": {"regression_weight": weight, "match_pairs": False, "phases": [{"updates": 100}]}}
    config["experiments"]["other"] = {
        "extends": "sd15-cfg8",
        "states": {"num_states": 1000, "shard_size": 500},
        "distill": section,
    }
    path = folder / "other.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    target = "results/other/export/pipeline/model_index.json"
    answer = snakemake(folder, "--dry-run", "--cores", "1", "-p", "--configfile", str(path), "--", target)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = jobs(answer.stdout)
    assert found[read] and left not in found and f"{left}_manifest" not in found
    (command,) = re.findall(r"python -m dmd.stages.export_pipeline .*", answer.stdout)
    flag = {"pairs": "--manifest", "states": "--states"}
    assert f"{flag[read]} results/" in command and f"{flag[left]} results/" not in command


FEW = {"dpmsolver-4": ("dpmsolver++", 4), "unipc-4": ("unipc", 4)}
FEW |= {f"ddim-{steps}": ("ddim", steps) for steps in (1, 2, 4)}


def test_few_steps_are_of_the_same_teacher_at_the_same_guidance_on_the_same_captions(experiments):
    for base, guidance, names in (("sd15-cfg3", 3.0, FEW), ("sd15-cfg8", 8.0, ("dpmsolver-4", "unipc-4"))):
        for name in (f"{base}-{short}" for short in names):
            spec = experiments.spec(name, "sample")
            assert (spec["solver"]["name"], spec["solver"]["steps"]) == FEW[name.removeprefix(f"{base}-")]
            assert spec["guidance"] == guidance and spec["num_samples"] == 30000
            owners = {rule: experiments.owner(name, rule) for rule in ("teacher", "captions", "reference")}
            assert owners == dict.fromkeys(owners, "sd15-cfg3") and experiments.owner(name, "sample") == name
    for steps in (1, 2, 4):
        spec = experiments.spec(f"sd15-lcm-lora-{steps}", "sample")
        assert spec["solver"] == {"name": "lcm", "steps": steps} and "guidance" not in spec
        assert spec["lora"]["sha256"] is None and experiments.owner(f"sd15-lcm-lora-{steps}", "teacher") == "sd15-cfg3"
    assert experiments.owner("instaflow", "teacher") == experiments.owner("instaflow", "autoencoder") == "instaflow"
    assert "guidance" not in experiments.spec("instaflow", "sample")


def test_tables_of_text_to_image_start_no_job(folder):
    tables = [f"results/tables/{name}.md" for name in ("table3", "table4")]
    answer = snakemake(folder, "--cores", "1", *tables)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert set(jobs(answer.stdout + answer.stderr)) == {"tables"}
    first, second = ((folder / table).read_text() for table in tables)
    assert "| GigaGAN | COCO-30k | 9.09 | - | 1 | 0.130 |" in first and "GigaGAN: better than DMD" in first
    assert "| DMD | COCO-30k | 11.5 | - | 1 | 0.0900 |" in first
    assert "| DMD | COCO-30k | 14.9 | - | 1 | 0.320 |" in second


def test_student_of_four_calls_is_made_from_text_states_alone_and_exported(folder):
    target = "results/sd15-dmd2-4/export/pipeline/model_index.json"
    answer = snakemake(folder, "--dry-run", "--cores", "1", "-p", "--", target)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    found = jobs(answer.stdout)
    assert found["states"] == 250 and {"distill", "export_pipeline"} <= set(found)
    assert not {"pairs", "images"} & set(found)
    (command,) = re.findall(r"python -m dmd.stages.export_pipeline .*", answer.stdout)
    assert "--states results/sd15-dmd2-4/states/manifest.parquet" in command and "--manifest" not in command
