"""Our scores against torch-fidelity's own functions on the same features, and against direct computations."""

import math

import numpy as np
import pytest
import torch
from scipy import linalg

from dmd import torchvision_operators
from dmd.metrics.frechet import moments_distance
from dmd.metrics.inception_score import inception_scores
from dmd.metrics.kernel import kernel_distance
from dmd.metrics.moments import Moments
from dmd.metrics.prdc import prdc

torchvision_operators.ensure()

from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc  # noqa: E402

SIZE = 96


def features(num: int, *, seed: int, shift: float = 0.0) -> torch.Tensor:
    """Correlated, skewed and not negative, as pooled activations are; float32 (num, 96)."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(SIZE, SIZE, generator=torch.Generator().manual_seed(99)) / SIZE**0.5
    return (torch.randn(num, SIZE, generator=generator) @ mixing + shift).relu()


def by_singular_values(one: torch.Tensor, other: torch.Tensor) -> float:
    """The Frechet distance of the Gaussians fitted to two sets of features, without a covariance: tr (S1 S2)^1/2 is
    the sum of the singular values of X1 X2', where S = X' X."""
    centred = [(each.double() - each.double().mean(0)) / math.sqrt(len(each) - 1) for each in (one, other)]
    cross = torch.linalg.svdvals(centred[0] @ centred[1].T).sum()
    offset = (one.double().mean(0) - other.double().mean(0)).square().sum()
    return float(offset + centred[0].square().sum() + centred[1].square().sum() - 2 * cross)


@pytest.mark.parametrize(("num", "num_other"), [(400, 300), (40, 300), (40, 30), (2, 300), (97, 96)])
def test_distance_equals_that_of_the_singular_values_also_with_fewer_samples_than_features(num, num_other):
    one, other = features(num, seed=0), features(num_other, seed=1, shift=0.3)
    found = moments_distance(Moments.of(one), Moments.of(other))
    assert found == pytest.approx(by_singular_values(one, other), rel=1e-6)


def test_distance_of_merged_shards_equals_that_of_all_features_at_once():
    one, other = features(400, seed=0), features(300, seed=1, shift=0.3)
    first, *others = (Moments.of(part) for part in one.split(37))
    merged = sum(others, first)
    assert moments_distance(merged, Moments.of(other)) == pytest.approx(by_singular_values(one, other), rel=1e-6)


def test_distance_equals_the_root_of_the_product_of_covariances():
    one, other = features(400, seed=0), features(300, seed=1, shift=0.3)
    first, second = (np.cov(each.double().numpy(), rowvar=False) for each in (one, other))
    offset = np.square(one.double().mean(0).numpy() - other.double().mean(0).numpy()).sum()
    expected = offset + np.trace(first) + np.trace(second) - 2 * np.trace(linalg.sqrtm(first @ second)).real
    assert moments_distance(Moments.of(one), Moments.of(other)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("num", "tolerance"), [(400, 1e-6), (40, 1e-5)])
def test_distance_equals_torch_fidelitys(num, tolerance):
    """Of fewer samples than features theirs is less exact: it takes roots of eigenvalues that are rounding errors."""
    one, other = features(num, seed=0), features(300, seed=1, shift=0.3)
    statistics = [metric_fid.fid_features_to_statistics(each.double()) for each in (one, other)]
    expected = metric_fid.fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    assert moments_distance(Moments.of(one), Moments.of(other)) == pytest.approx(expected, rel=tolerance)


def test_kernel_distance_equals_torch_fidelitys_of_one_subset():
    """Its subsets come from numpy's random state, ours from torch's: only the whole set is the same for both."""
    one, other = features(200, seed=0), features(200, seed=1, shift=0.1)
    settings = {"kid_subsets": 1, "kid_subset_size": 200, "rng_seed": 0, "verbose": False, "kid_kernel": "poly"}
    settings |= {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1.0}
    expected = metric_kid.kid_features_to_metric(one.double(), other.double(), **settings)
    assert kernel_distance(one, other) == pytest.approx(expected["kernel_inception_distance_mean"], rel=1e-9)


@pytest.mark.parametrize("in_parts", [True, False])
def test_precision_and_recall_equal_torch_fidelitys(in_parts):
    """Theirs counts a sample on the very rim of a ball as inside, ours (as the papers' code) does not."""
    generated, real = features(300, seed=0), features(250, seed=1, shift=0.2)
    settings = {"prc_neighborhood": 3, "prc_batch_size": 100, "save_cpu_ram": in_parts, "verbose": False}
    expected = metric_prc.prc_features_to_metric(generated.double(), real.double(), **settings)
    found = prdc(generated, real, neighbours=3)
    assert found["precision"] == pytest.approx(expected["precision"], abs=1e-7)
    assert found["recall"] == pytest.approx(expected["recall"], abs=1e-7)
    assert 0.05 < found["recall"] < 0.95


@pytest.mark.parametrize("num", [500, 203])
def test_inception_score_equals_torch_fidelitys_whatever_the_blocks(num):
    logits = torch.randn(num, 30, generator=torch.Generator().manual_seed(0)) * 3
    expected = metric_isc.isc_features_to_metric(logits, splits=10, shuffle=True, rng_seed=2020)
    for size in (num, 64):
        found = inception_scores(logits.split(size), num_samples=num, num_splits=10, seed=2020)
        assert np.mean(found) == pytest.approx(expected["inception_score_mean"], rel=1e-12)
        assert np.std(found) == pytest.approx(expected["inception_score_std"], rel=1e-9)
    assert 2 < expected["inception_score_mean"] < 30


def test_inception_score_lies_between_one_class_and_all_and_bears_certain_predictions():
    same = torch.zeros(40, 5)
    assert inception_scores([same], num_samples=40, num_splits=2, seed=0) == pytest.approx([1, 1])
    sure = torch.full((40, 5), -3000.0).scatter_(1, (torch.arange(40) % 4)[:, None], 3000.0)
    assert inception_scores([sure], num_samples=40, num_splits=1, seed=0) == pytest.approx([4])


def test_inception_score_refuses_too_few_samples_and_blocks_of_other_numbers():
    logits = torch.zeros(8, 5)
    with pytest.raises(ValueError, match="8 samples cannot be divided into 9 splits"):
        inception_scores([logits], num_samples=8, num_splits=9, seed=0)
    for num in (7, 9):
        with pytest.raises(ValueError, match=f"at least 8 samples, not of {num}"):
            inception_scores([logits], num_samples=num, num_splits=2, seed=0)
