"""Plan and prune, on the small experiment that was run."""

import copy
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from dmd.config import Experiments, load
from dmd.config.inheritance import resolve
from dmd.config.reading import read_file
from dmd.provenance import record, tensor_files
from tests.stable_diffusion_files import LENGTH, WIDTH, make_stable_diffusion
from tests.workflow.conftest import REPOSITORY, SMALL, called, edited, jobs, make, snakemake, write_config
from workflow.scripts import plan, prune
from workflow.scripts.rates import Job, network_calls, rate_owner

SCRIPTS = REPOSITORY / "workflow" / "scripts"


def script(program: ModuleType, folder: Path, *words: str) -> str:
    answer = called(program.main, folder, *words)
    answer.check_returncode()
    return answer.stdout


def test_plan_counts_jobs_and_calls(tmp_path: Path):
    write_config(tmp_path, SMALL)
    (tmp_path / "photos").mkdir()
    rows = {line.split()[0]: line.split() for line in script(plan, tmp_path, "small").splitlines()}
    assert rows["pairs"][1:3] == ["2", "560"]  # 16 pairs, Heun with 18 steps: 35 calls
    assert rows["sample"][1:3] == ["1", "32"]
    assert rows["all"][1:3] == ["10", "592"]
    assert rows["memory"][2] == "small" and float(rows["memory"][-3]) > 0  # GiB of distill


def test_plan_with_nothing_there_is_whole_and_lists_all_that_is_missing(tmp_path: Path):
    """A run says the same before its first job."""
    shutil.copy(REPOSITORY / "config.yaml", tmp_path)
    shutil.copytree(REPOSITORY / "config", tmp_path / "config")
    answer = script(plan, tmp_path, "sd15-cfg3")
    assert re.search(r"^all +293 ", answer, re.M)
    asked, downloaded = answer.partition("Missing, to be put there before a run (6):")[2].split("Missing, downloaded")
    paths = ["captions_val2014.json", "clip-vit-g-14", "laion-aesthetics-6.25plus.parquet"]
    paths += ["stable-diffusion-v1-5", "taesd", "val2014"]
    assert sorted(re.findall("^  inputs/([^:]+): ", asked, re.M)) == paths
    assert len(re.findall("^  inputs/", downloaded, re.M)) == 2
    run = snakemake(tmp_path, "--cores", "1", "results/sd15-cfg3/fid.json")
    assert run.returncode == 1 and not (tmp_path / "results/sd15-cfg3").exists()
    listed = run.stderr.partition("error: files are missing\n")[2]
    assert listed.strip() == answer[answer.index("Missing,") : answer.index("memory of")].strip()


def test_first_outputs_of_jobs_are_read_whatever_their_paths():
    text = """
rule fetch:
    output: inputs/a b, c.pkl (update)
    jobid: 3

localrule distill:
    input: results/a/teacher/denoiser.safetensors
    output: results/a/distill/generator.safetensors, results/a/distill/log.parquet
    jobid: 1
"""
    expected = [("fetch", "inputs/a b, c.pkl"), ("distill", "results/a/distill/generator.safetensors")]
    assert plan.first_outputs(text) == expected


def test_plan_that_fails_says_what_the_dry_run_says_and_no_more(tmp_path: Path):
    write_config(tmp_path, SMALL)
    (tmp_path / "photos").touch()
    with pytest.raises(subprocess.CalledProcessError) as caught:
        script(plan, tmp_path, "small")
    assert caught.value.stderr.strip() == "error: small.dataset.folder: photos is not a folder: it is a file"


def test_export_needs_the_generator_alone_and_lies_with_it(tmp_path: Path):
    config = {**SMALL, "experiments": {**SMALL["experiments"], "longer": {"extends": "small", "sample": {}}}}
    config["experiments"]["longer"]["sample"]["num_samples"] = 64
    write_config(tmp_path, config)
    (tmp_path / "photos").mkdir()
    planned = jobs(make(tmp_path, "-n", "results/small/export/generator.onnx"))
    assert planned == {"images": 1, "teacher": 1, "pairs": 2, "pairs_manifest": 1, "distill": 1, "export_onnx": 1}
    answer = snakemake(tmp_path, "-n", "results/longer/export/generator.onnx")
    assert answer.returncode != 0 and "ask for results/small/export/generator.onnx" in answer.stdout + answer.stderr


def test_plan_knows_the_size_of_images_from_the_dataset_or_the_teacher_and_pools_rates_by_it(tmp_path, monkeypatch):
    whole = read_file(REPOSITORY / "config.yaml")["experiments"]
    names = ("cifar10-cond", "imagenet64", "imagenet64-no-matching")
    without = {name: {key: value for key, value in whole[name].items() if key != "dataset"} for name in names}
    monkeypatch.chdir(tmp_path)
    experiments, bare = Experiments(load(REPOSITORY / "config.yaml")), Experiments(resolve({"experiments": without}))
    path = Path("results", bare.path("imagenet64", "teacher"))
    path.parent.mkdir(parents=True)
    job, size = Job("pairs", "imagenet64-no-matching", (0, 1)), 1000 * 512 * (2 * (1 + 97) + 2)
    assert (plan.disk(experiments, job), plan.disk(bare, job)) == (size, None)
    tensor_files.write(path, {"x": torch.zeros(1)}, {"shape": [3, 64, 64]})
    assert plan.disk(bare, job) == size
    names = ("imagenet64-no-matching", "cifar10-uncond-teacher", "cifar10-cond-teacher", "digits-seed1", "toy2d-start")
    found = ["imagenet64", "cifar10-uncond", "cifar10-cond", "digits", "toy2d-start"]
    assert [rate_owner(experiments, name) for name in names] == found


def test_plan_knows_the_size_of_text_from_the_folder_of_a_teacher(tmp_path: Path):
    made = make_stable_diffusion(tmp_path / "sd", resolution=8)
    assert plan.saved_sizes(made) == (4 * 8 * 8, LENGTH * WIDTH)
    (made / "unet" / "config.json").write_text("[]")
    assert plan.saved_sizes(made) is None and plan.saved_sizes(tmp_path / "none") is None


def test_network_calls_of_a_student_are_those_that_are_sampled():
    found = Experiments(load(REPOSITORY / "config.yaml"))
    calls = {"digits": 1, "digits-cd": 1, "digits-cd-2": 2, "digits-pd": 1, "digits-pd-8": 8, "digits-teacher": 35}
    jobs_of = {name: Job("sample", name, (0, 1)) for name in calls}
    assert {name: network_calls(found, job) for name, job in jobs_of.items()} == {
        name: 2 * 1000 * number for name, number in calls.items()
    }


def test_rows_of_tables_make_the_calls_that_their_labels_say():
    configuration = load(REPOSITORY / "config.yaml")
    found = Experiments(configuration)
    rows = [
        (row.label, name) for table in configuration.tables.values() for row in table.rows for name in row.experiments
    ]
    labelled = [(int(said[1]), label, name) for label, name in rows if (said := re.search(r"(\d+) calls?\b", label))]
    assert len(labelled) > 20
    for number, label, name in labelled:
        job = Job("sample", name, (0, 0))
        assert network_calls(found, job) == number * found.num_items(name, "sample", (0, 0)), label


def test_resources_of_an_experiment_replace_those_of_rules(tmp_path: Path):
    write_config(tmp_path, edited({"experiments/small/resources": {"distill": {"memory_mb": 9000, "hours": 2.5}}}))
    (tmp_path / "photos").mkdir()
    answer = make(tmp_path, "--dry-run", "results/small/distill/generator.safetensors")
    asked = {rule: line for rule, line in re.findall(r"^rule (\w+):.*?^    resources: (.*?)$", answer, re.M | re.S)}
    assert "mem_mb=9000," in asked["distill"] and "runtime=150" in asked["distill"]
    assert "mem_mb=2000," in asked["pairs"] and "runtime=240" in asked["pairs"]


def test_each_process_of_a_teacher_asks_for_its_own_threads_and_memory(tmp_path: Path):
    """As those of a distillation do."""
    found = {}
    for processes in (1, 2):
        numbers = {"teacher/training/processes": processes, "distill/processes": processes, "threads": 1}
        write_config(tmp_path, edited({f"experiments/small/{key}": value for key, value in numbers.items()}))
        (tmp_path / "photos").mkdir(exist_ok=True)
        answer = make(tmp_path, "--dry-run", "--cores", "8", "results/small/distill/generator.safetensors")
        for rule in ("teacher", "distill"):
            (job,) = re.findall(rf"^rule {rule}:.*?^    resources: .*?$", answer, re.M | re.S)
            threads = re.search(r"threads: (\d+)", job)
            memory = re.search(r"mem_mb=(\d+),", job)
            found[rule, processes] = (int(threads[1]) if threads else 1, int(memory[1]) if memory else 0)
    for rule in ("teacher", "distill"):
        assert found[rule, 1] == (1, 4000) and found[rule, 2] == (2, 8000)


def test_manifest_names_each_block_in_twelve_bytes(tmp_path: Path):
    """A job's command is one word to the kernel, which takes no longer one than 128 KiB: ten thousand blocks."""
    config = copy.deepcopy(SMALL)
    config["experiments"]["larger"] = {"extends": "small", "pairs": {"num_pairs": 800}}
    write_config(tmp_path, config)
    (tmp_path / "photos").mkdir()
    answer = make(tmp_path, "--dry-run", "-p", "results/larger/pairs/manifest.parquet")
    (job,) = re.findall(r"^rule pairs_manifest:.*?^Shell command: (.*?)$", answer, re.M | re.S)
    words = job.split("--blocks ")[1].split(" --output ")[0]
    assert len(words) < 12 * 100 + 100
    expanded = subprocess.run(["bash", "-c", f"printf '%s\n' {words}"], capture_output=True, text=True, check=True)
    assert expanded.stdout.split() == [
        f"results/small/pairs/blocks/{first:05}-{first + 1:05}.parquet" for first in range(0, 200, 2)
    ]


def test_plan_of_a_finished_experiment_is_empty(finished: Path):
    assert script(plan, finished, "small") == "There is nothing to do.\n"


def test_plan_learns_its_rates_from_finished_jobs(finished: Path):
    row = next(line for line in script(plan, finished, "small-seed1").splitlines() if line.startswith("all"))
    assert ">=" not in row and float(row.split()[3]) >= 0


def test_prune_keeps_a_whole_result(finished: Path):
    assert script(prune, finished).startswith("0 files")


def test_prune_keeps_files_of_trainings_and_logs_of_a_cluster(tmp_path: Path):
    glyphs = {"kind": "glyphs", "file": "f.ttf", "captions": "c.csv", "resolution": 16, "num_held_out": 1}
    tower = {"width": 8, "layers": 1, "heads": 1}
    training = {"method": {"name": "contrastive", "batch_size": 4, "phases": [{"updates": 1}]}}
    text = {"text": tower, "image": tower, "embedding": 8, "training": training}
    drawn = {"dataset": glyphs, "pipeline": {"text": text}}
    write_config(tmp_path, edited({"experiments/drawn": drawn}))
    trainings = ["small/teacher", "small/distill", "drawn/pipeline/text"]
    names = ("tensorboard/events.out", "checkpoints/00000020.safetensors", "grids/00000010.png")
    kept = [f"{training}/{name}" for training in trainings for name in names]
    kept.append("logs/slurm/rule_pairs/small/7.log")
    for name in (*kept, "gone/distill/tensorboard/events.out"):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert script(prune, tmp_path).splitlines()[:-1] == ["results/gone/distill/tensorboard/events.out"]


def test_prune_keeps_what_a_child_adds_to_its_parent(tmp_path: Path):
    whole = SMALL["experiments"]["small"]
    parent = {name: section for name, section in whole.items() if name not in ("distill", "sample")}
    child = {"extends": "small", **{name: whole[name] for name in ("distill", "sample")}}
    write_config(tmp_path, {"experiments": {"small": parent, "child": child}})
    kept = ["child/reference/reference.safetensors", "child/samples/00000.tar", "small/pairs/00000.tar"]
    bogus = "child/samples/blocks/00000-00000.parquet"  # one job makes both shards: 00000-00001
    for name in (*kept, bogus):
        path = tmp_path / "results" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert script(prune, tmp_path).splitlines()[:-1] == [f"results/{bogus}"]


def test_prune_refuses_while_a_stage_writes(tmp_path: Path):
    write_config(tmp_path, SMALL)
    output = tmp_path / "results/gone/teacher/denoiser.safetensors"
    with record.exclusive(output):
        temporary = output.with_name(f".tmp-{output.name}")
        temporary.write_text("half of it")
        with pytest.raises(subprocess.CalledProcessError) as caught:
            script(prune, tmp_path, "--delete")
        assert caught.value.stderr.startswith("error: a stage holds results/gone/teacher/") and temporary.exists()
    script(prune, tmp_path, "--delete")
    assert not temporary.exists()


def test_plan_ends_quietly_when_its_reader_does(finished: Path):
    line = f"exec 3>&1; {{ {sys.executable} {SCRIPTS / 'plan.py'} small; echo $? >&3; }} | true"
    answer = subprocess.run(["bash", "-c", line], cwd=finished, capture_output=True, text=True)
    assert (answer.stdout, answer.stderr) == ("0\n", "")


def test_prune_removes_what_no_experiment_owns_and_only_that(finished: Path):
    before = {path for path in (finished / "results").rglob("*") if path.is_file()}
    stray = [
        finished / "results" / name
        for name in ("gone/fid.json", "small/pairs/00099.tar", "small/pairs/.00099.tar.json")
    ]
    for path in stray:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    assert script(prune, finished).splitlines()[:3] == sorted(str(path.relative_to(finished)) for path in stray)
    assert all(path.exists() for path in stray)
    script(prune, finished, "--delete")
    assert {path for path in (finished / "results").rglob("*") if path.is_file()} == before


def test_included_experiments_are_planned_wherever_the_configuration_is_named(tmp_path: Path):
    """Those of the file that the Snakefile names, and those of --configfile, whose own values go over both."""
    (tmp_path / "photos").mkdir()
    write_config(tmp_path, {**SMALL, "include": ["more.yaml"]})
    (tmp_path / "more.yaml").write_text("experiments: {more: {extends: small, distill: {seeds: [4, 5]}}}\n")
    other = tmp_path / "other"
    other.mkdir()
    (other / "over.yaml").write_text("include: [most.yaml]\nexperiments: {small: {sample: {repetitions: 2}}}\n")
    (other / "most.yaml").write_text("experiments: {most: {extends: more}}\n")
    target = "results/more-seed5/fid.json"
    answer = snakemake(tmp_path, "--dry-run", target)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert jobs(answer.stdout)["sample"] == 1
    over = ["--configfile", str(other / "over.yaml"), "--", target, "results/most/fid.json"]
    answer = snakemake(tmp_path, "--dry-run", *over)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    assert jobs(answer.stdout)["sample"] == 4  # two repetitions of more-seed5, and of more, whose samples are most's


def test_key_that_stands_twice_is_refused_before_any_job(tmp_path: Path):
    write_config(tmp_path, SMALL)
    with open(tmp_path / "config.yaml", "a") as stream:
        stream.write("storage: null\nstorage: null\n")
    answer = snakemake(tmp_path, "--dry-run")
    assert (
        answer.returncode != 0 and 'config.yaml: the key "storage" stands twice in a mapping: in line' in answer.stderr
    )
