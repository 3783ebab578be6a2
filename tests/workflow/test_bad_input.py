"""What a user or a file gets wrong ends with one clear message and nothing half-written."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.workflow.conftest import REPOSITORY, SMALL, copy_run, edited, snakemake, write_config
from tests.workflow.photos import write_photo
from tests.workflow.test_damage import alter, truncate

IMAGES, TEACHER = "images/manifest.parquet", "teacher/denoiser.safetensors"
GENERATOR = "distill/generator.safetensors"
DIVERGING = {"training": {"optimisers": {"student": {"learning_rate": 1e30, "gradient_clip": 1e30}}}}
EXPERIMENTS: dict[str, dict[str, Any]] = {
    "empty": {"extends": "small", "dataset": {"folder": "empty"}},
    "cut": {"extends": "small", "dataset": {"folder": "cut"}},
    "oblong": {"extends": "small", "dataset": {"crop": "none"}},
    "unlabelled": {"extends": "small", "dataset": {"folder": "unlabelled"}},
    "diverging": {"extends": "small", "teacher": DIVERGING},
    "diverging-distill": {
        "extends": "small",
        "distill": {"optimisers": {"student": {"learning_rate": 1e30}}, "schedule": {"warmup": 0}},
    },
    "flipped-shard": SMALL["experiments"]["small"],
    "cut-shard": SMALL["experiments"]["small"],
}
REFUSED = {  # experiment -> what is asked of it, and parts of the message
    "empty": (IMAGES, ("empty holds no images",)),
    "cut": (IMAGES, ("cut/dusk/00.png cannot be read as an image",)),
    "oblong": (IMAGES, (".png is 40 x 24 pixels: not square", "dataset.crop is none")),
    "unlabelled": (IMAGES, ("unlabelled/loose.png has no label",)),
    "diverging": (TEACHER, ("not finite at update", "lower teacher.training.optimisers.student.learning_rate")),
    "diverging-distill": (GENERATOR, ("not finite at update", "checkpoint")),
    "flipped-shard": (GENERATOR, ("flipped-shard/pairs/00001.tar is damaged", "make verify")),
    "cut-shard": (GENERATOR, ("cut-shard/pairs/00001.tar has ", "truncated?", "make verify")),
}


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({"distill/method/sigmas": 80.0}, 'small.distill.method: unknown key "sigmas" (did you mean "sigma"?)'),
        (
            {"distill/optimisers/student/learning_rate": "5e-5"},
            "'5e-5' is a string to YAML, not a number; write 5.0e-05",
        ),
        ({"distill/method/sigma": 40.0}, "small.distill.method.sigma: 40.0 differs from pairs.solver.sigma_max 80.0"),
        ({"extends": "small-seed1"}, "extends goes in a circle: small -> small-seed1 -> small"),
    ],
)
def test_configuration_is_refused_before_any_work(tmp_path: Path, edits: dict[str, Any], message: str):
    write_config(tmp_path, edited({f"experiments/small/{place}": value for place, value in edits.items()}))
    answer = snakemake(tmp_path, "--cores", "1", "results/small/fid.json")
    lines = answer.stderr.splitlines()
    assert answer.returncode != 0 and "Traceback" not in answer.stderr
    assert sum("error: " in line for line in lines) == 1 and sum(message in line for line in lines) == 1
    assert not (tmp_path / "results").exists()


UNFOLDING = ["a0: &a0 {x: 1}"]  # in full 9^9 values
UNFOLDING += [f"a{i + 1}: &a{i + 1} {{{', '.join(f'k{key}: *a{i}' for key in range(9))}}}" for i in range(9)]
TEMPLATE = '__use_yte__: true\n__definitions__: [\'open("ran", "w")\']\na: \'?open("ran", "w")\'\n'
REFUSED_YAML = {  # text -> message
    "experiments: {}\nexperiments: {}\n": 'the key "experiments" stands twice in a mapping: in line 1 and in line 2',
    "\n".join(UNFOLDING): "more than 1000000 values",
    TEMPLATE: "templates, whose Python code would run, are not supported",
}


def refused_by_configuration(folder: Path, *words: str) -> str:
    """What a run says that a part of the configuration ends at once; it has begun nothing."""
    answer = snakemake(folder, "--cores", "1", *words, "--", "results/small/fid.json", seconds=60)
    assert answer.returncode != 0 and "Traceback" not in answer.stderr
    assert not (folder / "ran").exists() and not (folder / "results").exists()
    head, _, told = answer.stderr.partition("error: the configuration cannot be used\n")
    assert "error" not in head and len(told.splitlines()) == 1
    return told


@pytest.mark.parametrize("text", REFUSED_YAML, ids=["twice", "unfolding", "template"])
def test_yaml_is_checked_before_snakemake_unfolds_it(tmp_path: Path, text: str):
    (tmp_path / "config.yaml").write_text(text)
    assert REFUSED_YAML[text] in refused_by_configuration(tmp_path)


@pytest.mark.parametrize("text", REFUSED_YAML, ids=["twice", "unfolding", "template"])
@pytest.mark.parametrize("flag", ["--configfile", "--configfiles"])
def test_files_of_the_command_line_are_checked_before_snakemake_reads_them(tmp_path: Path, text: str, flag: str):
    write_config(tmp_path, SMALL)
    (tmp_path / "good.yaml").write_text("tables: {}\n")
    (tmp_path / "bad.yaml").write_text(text)
    profile = ["--workflow-profile", str(REPOSITORY / "profiles" / "slurm")] if flag == "--configfiles" else []
    told = refused_by_configuration(tmp_path, *profile, flag, "good.yaml", "bad.yaml")
    assert told.startswith("bad.yaml: ") and REFUSED_YAML[text] in told


def test_values_of_the_command_line_are_checked_before_snakemake_reads_them(tmp_path: Path):
    write_config(tmp_path, SMALL)
    value = ", ".join(UNFOLDING)
    assert REFUSED_YAML["\n".join(UNFOLDING)] in refused_by_configuration(tmp_path, "--config", f"more={{{value}}}")
    told = refused_by_configuration(tmp_path, "-C", "more=1", "more=2")
    assert told == '--config: the key "more" stands twice\n'


def test_named_pipe_as_a_configuration_is_told_and_not_waited_for(tmp_path: Path):
    write_config(tmp_path, SMALL)
    os.mkfifo(tmp_path / "pipe.yaml")
    told = refused_by_configuration(tmp_path, "--configfile", "pipe.yaml")
    assert told == "pipe.yaml is a named pipe, not a file\n"


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("smal/fid.json", 'error: unknown experiment "smal" (did you mean "small"?)'),
        ("tables/dmo.md", 'error: the configuration has no "dmo" below tables (did you mean "demo"?)'),
        ("tables/nonsense.png", 'error: the configuration has no "nonsense" below charts; charts are: none'),
        *(
            (
                f"small-seed1/{artifact}",
                f'error: "small-seed1" shares this artifact with "small": ask for results/small/{artifact}',
            )
            for artifact in ("pairs/manifest.parquet", "pairs/blocks/00000-00001.parquet")
        ),
        (
            "small/pairs/blocks/99999-00000.parquet",
            "error: results/small/pairs/blocks/99999-00000.parquet: there is no such block of shards",
        ),
    ],
)
def test_target_is_refused_with_one_message(finished: Path, target: str, message: str):
    before = set((finished / "results").rglob("*"))
    answer = snakemake(finished, "--cores", "1", f"results/{target}")
    errors = [line for line in (answer.stdout + answer.stderr).splitlines() if "rror" in line]
    assert answer.returncode != 0 and len(errors) == 1 and errors[0].startswith(message)
    assert set((finished / "results").rglob("*")) == before


def test_published_table_is_refused_by_name(tmp_path: Path):
    write_config(tmp_path, SMALL | {"tables": {"demo": SMALL["tables"]["demo"] | {"paper": "tabel2"}}})
    answer = snakemake(tmp_path, "--dry-run")
    assert answer.returncode != 0 and "Traceback" not in answer.stderr
    assert 'error: tables.demo.paper: unknown table "tabel2" (did you mean "table2"?)' in answer.stderr


def test_configuration_without_tables_makes_all_but_the_targets_that_need_them(tmp_path: Path):
    write_config(tmp_path, {"experiments": SMALL["experiments"]})
    (tmp_path / "photos").mkdir()
    assert snakemake(tmp_path, "--dry-run", "results/small/fid.json").returncode == 0
    for target, table in (("all", "demo"), ("table2", "demo")):
        answer = snakemake(tmp_path, "--dry-run", target)
        output = answer.stdout + answer.stderr
        assert answer.returncode != 0 and output.count("rror") == 1, output
        assert f'error: the configuration has no table "{table}"' in output


@pytest.fixture(scope="module")
def refused(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A copy of `finished` in which every experiment of REFUSED was asked for, and all that Snakemake said."""
    folder = tmp_path_factory.mktemp("refused")
    copy_run(finished, folder)
    write_config(folder, {**SMALL, "experiments": SMALL["experiments"] | EXPERIMENTS})
    (folder / "empty").mkdir()
    shutil.copytree(folder / "photos", folder / "cut")
    truncate(folder / "cut/dusk/00.png")
    shutil.copytree(folder / "photos", folder / "unlabelled")
    write_photo(folder / "unlabelled/loose.png", [0, 0, 0], [9, 9, 9], kind="wide")
    for name, damage in (("flipped-shard", alter), ("cut-shard", truncate)):
        copied = folder / "results" / name
        shutil.copytree(folder / "results/small", copied, ignore=shutil.ignore_patterns("distill", "logs"))
        damage(copied / "pairs/00001.tar")
    targets = [f"results/{name}/{artifact}" for name, (artifact, _) in REFUSED.items()]
    answer = snakemake(folder, "--cores", "2", "--keep-going", *targets)
    assert answer.returncode != 0
    return folder, answer.stdout + answer.stderr


@pytest.mark.parametrize("name", REFUSED)
def test_bad_input_ends_its_stage_with_one_message(refused: tuple[Path, str], name: str):
    folder, output = refused
    artifact, parts = REFUSED[name]
    log = folder / "results" / name / "logs" / f"{Path(artifact).parent}.log"
    errors = [line for line in log.read_text().splitlines() if " error: " in line]
    assert len(errors) == 1 and all(part in errors[0] for part in parts), errors
    assert output.count(errors[0]) == 1 and "Traceback" not in output
    assert not [path for path in (folder / "results" / name / Path(artifact).parent).glob("*") if path.is_file()]
    assert not list((folder / "results").rglob(".tmp-*"))


@pytest.fixture
def full(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """Settings for a process whose results may take no more than 80 KiB: a full disk, or where that needs
    permissions a limit on the size of files."""
    results = tmp_path / "results"
    results.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=80k", "tmpfs", str(results)]
    if shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0:
        yield {}
        subprocess.run(["umount", str(results)], check=True)
    else:
        yield {"preexec_fn": limit_files}


def limit_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, 1 << 16))


def test_full_disk_ends_a_stage_with_one_message(finished: Path, tmp_path: Path, full: dict[str, Any]):
    write_config(tmp_path, SMALL)
    shutil.copytree(finished / "photos", tmp_path / "photos")
    answer = snakemake(tmp_path, "--cores", "1", f"results/small/{TEACHER}", **full)
    errors = [line for line in answer.stderr.splitlines() if " error: " in line]
    assert answer.returncode != 0 and len(errors) == 1
    wanted = "File too large" if full else "no space left while writing results/small/teacher/"
    assert wanted in errors[0]
    assert not [path for path in (tmp_path / "results/small/teacher").glob("*") if path.is_file()]
