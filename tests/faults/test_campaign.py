"""The campaign sees what it is there to see: missing and differing artifacts, and a chain that is taken back."""

import shutil
from pathlib import Path

import pytest

from tests.faults import __main__ as campaign
from tests.faults import chain
from tests.faults.kinds import KINDS

MADE = {
    "teacher": ["teacher/denoiser.safetensors", "teacher/.denoiser.safetensors.json"],
    "reference": ["reference/reference.safetensors"],
    "pairs": ["pairs/00000.tar", "pairs/.00000.tar.json", "pairs/blocks/00000-00001.parquet"],
    "manifest": ["pairs/manifest.parquet", "pairs/.manifest.parquet.json"],
    "distill": ["distill/generator.safetensors"],
    "sample": ["samples/00000.tar"],
    "features": ["features/00000-00003.safetensors"],
    "evaluate": ["fid.json", ".fid.json.json"],
}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A folder with a file of each kind that the chain makes, and a log."""
    for name in [*sum(MADE.values(), []), "logs/teacher.log"]:
        path = tmp_path / "whole/results" / chain.NAME / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    return tmp_path / "whole"


def left(folder: Path) -> set[str]:
    return {name.removeprefix(f"{chain.NAME}/") for name in chain.digests(folder)}


@pytest.mark.parametrize("stage", chain.STAGES)
def test_chain_is_taken_back_to_a_stage_and_what_follows_it(whole: Path, stage: str):
    names = list(MADE)
    gone = {stage, *names[names.index("features" if stage == "reference" else stage) :]}
    gone -= {"reference"} - {stage}
    assert left(whole) == set(sum(MADE.values(), []))
    chain.forget(whole, stage)
    assert left(whole) == set(sum((MADE[name] for name in names if name not in gone), []))


def test_missing_is_lost_and_differing_is_wrong(whole: Path, tmp_path: Path):
    wanted = chain.digests(whole)
    for change, outcome in ((Path.unlink, "lost"), (lambda path: path.write_text("other"), "wrong")):
        shutil.copytree(whole, tmp_path / outcome)
        assert campaign._compared(tmp_path / outcome, wanted, "survived") == ("survived", "")
        change(tmp_path / outcome / "results" / chain.NAME / "samples/00000.tar")
        found, why = campaign._compared(tmp_path / outcome, wanted, "survived")
        assert found == outcome and "samples/00000.tar" in why
    (whole / "results" / chain.NAME / "pairs" / ".tmp-00001.tar").touch()
    assert campaign._compared(whole, wanted, "survived")[0] == "wrong"  # what is left over counts, too


def test_every_fault_has_a_name_of_its_own():
    assert len({kind.name for kind in KINDS}) == len(KINDS) == 12 and all(kind.name for kind in KINDS)
