"""The search for learning rates: where it goes on."""

import pytest

from bench.search import STEP, Search, beyond


@pytest.mark.parametrize(
    ("found", "following"),
    [
        ({0.3: 2.0, 1.0: 1.0, 3.0: 2.0}, None),
        ({0.3: 1.0, 1.0: 2.0, 3.0: 3.0}, 0.3 / STEP),
        ({0.3: 3.0, 1.0: 2.0, 3.0: 1.0}, 3.0 * STEP),
        ({0.3: 2.0, 1.0: 1.0, 3.0: None}, None),
        ({0.3: None, 1.0: None, 3.0: None}, 0.3 / STEP),
        ({0.1: 1.0, 0.3: None, 1.0: None}, 0.1 / STEP),
    ],
)
def test_the_search_goes_on_beyond_a_best_scale_at_an_end(found, following):
    assert beyond(found) == following


def test_searched_are_the_students_of_the_table(tmp_path):
    found = Search(tmp_path, "1").students()
    assert {"digits", "digits-instaflow", "digits-cd"} <= set(found) and "digits-teacher" not in found


def test_the_search_stops_where_snakemake_does(tmp_path):
    """A failed training has no distance; one that was never begun must not look like it."""
    with pytest.raises(SystemExit, match="a job other than a training failed"):
        Search(tmp_path, "none").distances([("digits", 1.0)])
