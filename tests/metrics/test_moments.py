"""Sums of features: merging shards is adding."""

import pytest
import torch

from dmd.metrics.moments import Moments


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 5 + torch.randn(5000, 7, generator=generator) @ torch.randn(7, 7, generator=generator)


def test_moments_of_merged_shards_equal_one_shot(features):
    merged = sum((Moments.of(part) for part in features[1:].split(317)), Moments.of(features[:1]))
    whole = Moments.of(features)
    assert merged.count == whole.count
    torch.testing.assert_close(merged.mean, whole.mean, rtol=1e-9, atol=0)
    torch.testing.assert_close(merged.covariance, whole.covariance, rtol=1e-9, atol=1e-12)


def test_moments_equal_the_textbook_mean_and_covariance(features):
    moments = Moments.of(features)
    torch.testing.assert_close(moments.mean, features.double().mean(0))
    torch.testing.assert_close(moments.covariance, torch.cov(features.double().T))


def test_moments_refuse_features_that_are_not_finite(features):
    features[3, 2] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        Moments.of(features)


def test_moments_of_different_sizes_do_not_add(features):
    with pytest.raises(ValueError, match="7 and of 3 features"):
        Moments.of(features) + Moments.of(features[:, :3])


def test_covariance_of_one_feature_is_refused(features):
    with pytest.raises(ValueError, match="1 features is undefined"):
        _ = Moments.of(features[:1]).covariance
