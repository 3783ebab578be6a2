"""Kernel distance against its definition, and its unbiasedness."""

import pytest
import torch

from dmd.metrics import kernel


def drawn(seed: int, num: int, size: int = 5) -> torch.Tensor:
    return torch.randn(num, size, generator=torch.Generator().manual_seed(seed))


def test_kernel_distance_equals_the_definition(monkeypatch):
    monkeypatch.setattr(kernel, "ROWS", 4)  # so that 11 features take several blocks
    monkeypatch.setattr(kernel, "COLUMNS", 3)
    first, second = drawn(0, 11), drawn(1, 9) + 0.5

    def mean(rows, columns, *, same: bool) -> float:
        values = [
            float((row.double() @ column.double() / 5 + 1) ** 3)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
            if not (same and i == j)
        ]
        return sum(values) / len(values)

    within = mean(first, first, same=True) + mean(second, second, same=True)
    expected = within - 2 * mean(first, second, same=False)
    assert kernel.kernel_distance(first, second) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_of_equal_distributions_is_zero_on_average():
    distances = [kernel.kernel_distance(drawn(2 * i, 60), drawn(2 * i + 1, 40)) for i in range(200)]
    values = torch.tensor(distances)
    assert values.min() < 0
    assert abs(values.mean()) < 4 * values.std() / 200**0.5


def test_kernel_distance_of_subsets_agrees_with_that_of_all():
    first, second = drawn(0, 300), drawn(1, 300) + 1
    subsets = kernel.subset_kernel_distances(first, second, size=100, seed=0)
    assert len(subsets) == 100
    assert float(subsets.mean()) == pytest.approx(kernel.kernel_distance(first, second), rel=0.05)


def test_kernel_distance_refuses_what_it_cannot_compare():
    with pytest.raises(ValueError, match="cannot be compared"):
        kernel.kernel_distance(drawn(0, 5), drawn(0, 5, size=4))
    with pytest.raises(ValueError, match="subsets of 6"):
        kernel.subset_kernel_distances(drawn(0, 5), drawn(1, 9), size=6, seed=0)
