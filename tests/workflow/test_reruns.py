"""Which jobs an edit of one key reruns: those that read it, and all that was made from them."""

from collections import Counter

import pytest

AFTER_SAMPLE = ["features", "evaluate", "tables"]
AFTER_DISTILL = ["sample", *AFTER_SAMPLE]
AFTER_PAIRS = ["pairs_manifest", "distill", *AFTER_DISTILL]
SMALL = "experiments/small"


@pytest.mark.parametrize(
    ("place", "value", "jobs"),
    [
        (f"{SMALL}/teacher/training/method/phases", [{"updates": 4}], ["teacher", "pairs", "pairs", *AFTER_PAIRS]),
        (f"{SMALL}/reference/floor_draws", 3, ["reference", *AFTER_SAMPLE]),
        (f"{SMALL}/pairs/solver/steps", 3, ["pairs", "pairs", *AFTER_PAIRS]),
        (f"{SMALL}/pairs/num_pairs", 32, ["pairs", "pairs", *AFTER_PAIRS]),
        (f"{SMALL}/distill/method/regression_weight", 0.5, ["distill", *AFTER_DISTILL]),
        (f"{SMALL}/distill/checkpoint_every", 7, []),
        (f"{SMALL}/distill/grid_every", 7, []),
        (f"{SMALL}/distill/log_every", 7, []),
        (f"{SMALL}/distill/tensorboard", True, []),
        (f"{SMALL}/resources", {"teacher": {"memory_mb": 9000}, "distill": {"hours": 2}}, []),
        (f"{SMALL}/sample/first_seed", 7, ["sample", *AFTER_SAMPLE]),
        (f"{SMALL}/sample/repetitions", 2, ["sample", *AFTER_SAMPLE]),
        (f"{SMALL}/evaluate/neighbours", 4, ["evaluate", "tables"]),
        ("tables/demo/title", "Another", ["tables"]),
    ],
)
def test_edit_reruns_what_reads_the_key_and_nothing_else(planned, place, value, jobs):
    assert planned({place: value}) == Counter(jobs)


def test_nothing_reruns_without_an_edit(planned):
    assert planned({}) == Counter()


def test_default_written_out_reruns_nothing(planned):
    assert planned({f"{SMALL}/distill/method/alpha_factor": False, f"{SMALL}/distill/method/sigma": 80}) == Counter()


def test_seed_shares_teacher_reference_and_pairs(planned):
    jobs = ["distill", "sample", "features", "evaluate"]
    assert planned({}, "results/small-seed1/fid.json") == Counter(jobs)
