"""The search for learning rates: where it goes on, and what it takes for a training that diverged."""

import json
from pathlib import Path

import pytest

from bench.derived_runs import ROOT
from bench.search import STEP, Search, beyond, diverged, write
from dmd.config import Experiments, load
from dmd.jobs import job_status
from dmd.jobs.experiment_progress import Results
from dmd.train.checkpoints import check_finite


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({0.3: 2.0, 1.0: 1.0, 3.0: 2.0}, None),
        ({0.3: 1.0, 1.0: 2.0, 3.0: 3.0}, 0.3 / STEP),
        ({0.3: 3.0, 1.0: 2.0, 3.0: 1.0}, 3.0 * STEP),
        ({0.3: 2.0, 1.0: 1.0, 3.0: None}, None),
        ({0.3: None, 1.0: None, 3.0: None}, 0.3 / STEP),
        ({0.3: None, 1.0: 1.0, 3.0: 2.0}, None),
        ({0.1: 1.0, 0.3: None, 1.0: None}, 0.1 / STEP),
    ],
)
def test_the_search_goes_on_beyond_a_best_scale_at_an_end(found, following):
    assert beyond(found) == following


def test_searched_are_the_students_of_the_table(tmp_path):
    found = Search(tmp_path, "1").students()
    assert {"digits", "digits-instaflow", "digits-cd"} <= set(found) and "digits-teacher" not in found


def test_the_search_stops_where_snakemake_does(tmp_path):
    """A training that diverged has no distance; one that was never begun must not look like it."""
    with pytest.raises(SystemExit, match="a job failed for another reason than divergence"):
        Search(tmp_path, "none").distances([("digits", 1.0)])


with pytest.raises(ValueError) as raised:
    check_finite({"loss/student": float("nan")}, 3, Path("checkpoints"), advice="it")
NOT_FINITE = str(raised.value)


@pytest.mark.parametrize(
    ("state", "message", "expected"),
    [
        ("failed", NOT_FINITE, True),
        ("failed", "results/digits/pairs/00000.tar is damaged", False),
        ("stopped", NOT_FINITE, False),
    ],
)
def test_only_a_training_whose_values_were_not_finite_diverged(tmp_path, state, message, expected):
    log = tmp_path / "digits" / "logs" / "distill.log"
    log.parent.mkdir(parents=True)
    log.touch()
    job_status.end(log, state, message)
    assert diverged(Results(tmp_path, Experiments(load(ROOT / "config.yaml"))), "digits") is expected


def test_the_file_has_the_best_scale_and_keeps_what_was_not_searched(tmp_path: Path):
    path = tmp_path / "search.json"
    write(
        path,
        {"a": {1.0: None, 3.0: 0.2, 0.3: 0.5}, "b": {1.0: None}},
        {"a": {"student": 1e-3}, "b": {}},
        others={"c": 1},
    )
    found = json.loads(path.read_text())
    assert found["a"] == {
        "learning_rates": {"student": 0.001},
        "distance": {"0.3": 0.5, "1": None, "3": 0.2},
        "best": "3",
    }
    assert found["b"]["best"] is None and found["c"] == 1
