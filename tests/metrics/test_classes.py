"""Class histograms."""

import pytest
import torch

from dmd.metrics.classes import accuracy, class_counts, total_variation


def test_class_counts_include_classes_that_do_not_occur():
    assert class_counts(torch.tensor([2, 0, 2]), num_classes=4).tolist() == [1, 0, 2, 0]


def test_class_counts_refuse_a_class_out_of_range():
    with pytest.raises(ValueError, match="are -1 to 2"):
        class_counts(torch.tensor([2, -1]), num_classes=4)


def test_total_variation_compares_shares():
    assert total_variation(torch.tensor([2, 2]), torch.tensor([50, 50])) == 0
    assert total_variation(torch.tensor([5, 0]), torch.tensor([0, 3])) == 1
    assert total_variation(torch.tensor([3, 1]), torch.tensor([1, 1])) == pytest.approx(0.25)


def test_total_variation_refuses_an_empty_histogram():
    with pytest.raises(ValueError, match="cannot be compared"):
        total_variation(torch.tensor([0, 0]), torch.tensor([1, 1]))


def test_accuracy_counts_labelled_samples_only():
    assert accuracy(torch.tensor([1, 2, 3]), torch.tensor([1, 0, -1])) == 0.5
    assert accuracy(torch.tensor([1, 2]), torch.tensor([-1, -1])) is None
