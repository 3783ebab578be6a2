"""`verify` finds damage of every kind, and a plain run makes the damaged artifact again and what came from it."""

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.workflow.conftest import digests, jobs, make, verify

AFTER_SAMPLE = ["features", "evaluate", "tables"]
AFTER_GENERATOR = ["sample", *AFTER_SAMPLE, "pictures"]
AFTER_PAIRS = ["pairs_manifest", "distill", *AFTER_GENERATOR]
REMADE = {
    "teacher/denoiser.safetensors": ["teacher", "pairs", "pairs", *AFTER_PAIRS],
    "reference/reference.safetensors": ["reference", *AFTER_SAMPLE],
    "pairs/00002.tar": ["pairs", *AFTER_PAIRS],
    "pairs/blocks/00002-00003.parquet": ["pairs", *AFTER_PAIRS],
    "pairs/manifest.parquet": AFTER_PAIRS,
    "distill/generator.safetensors": ["distill", *AFTER_GENERATOR],
    "distill/log.parquet": ["distill", *AFTER_GENERATOR],  # the job makes the generator again, too
    "samples/00001.tar": ["sample", *AFTER_SAMPLE],
    "samples/blocks/00000-00001.parquet": ["sample", *AFTER_SAMPLE],
    "features/00000-00001.safetensors": AFTER_SAMPLE,
    "fid.json": ["evaluate", "tables"],
    "pictures/grid.png": ["pictures"],
    "../tables/demo.md": ["tables"],
}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE: dict[str, Callable[[Path], None]] = {"truncated": truncate, "altered": alter, "missing": Path.unlink}


def test_verify_finds_nothing_in_a_finished_tree(finished: Path):
    answer = verify(finished)
    assert answer.returncode == 0 and "\n0 bad, 0 made from them\n" in answer.stdout


@pytest.mark.parametrize("name", REMADE)
def test_damage_is_found_and_remade_with_all_that_came_from_it(finished: Path, broken: Path, name: str):
    path = Path("results/small", name)
    shown = Path("results/tables/demo.md") if name.startswith("..") else path
    for reason, damage in DAMAGE.items():
        shutil.copy2(finished / path, broken / path)
        damage(broken / path)
        found = verify(broken)
        assert found.returncode == 1 and "\n1 bad, " in found.stdout
        assert any(line.startswith(f"{shown}: ") and reason in line for line in found.stdout.splitlines())
    assert verify(broken, "--delete").returncode == 1
    assert verify(broken).returncode == 0
    assert jobs(make(broken, "--dry-run")) == Counter(REMADE[name])


def test_remade_results_are_the_ones_before_the_damage(finished: Path, broken: Path):
    alter(broken / "results/small/pairs/00002.tar")
    assert verify(broken, "--delete").returncode == 1
    assert jobs(make(broken, "--cores", "2")) == Counter(REMADE["pairs/00002.tar"])
    assert digests(broken) == digests(finished)
