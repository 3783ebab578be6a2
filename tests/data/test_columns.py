"""Columns are those that pyarrow makes of the same values."""

import numpy as np
import pyarrow as pa
import pytest

from dmd.data.columns import numbers, texts


@pytest.mark.parametrize("values", [[], [0], [-1, 2**62, 7]])
def test_numbers_are_pyarrows(values):
    assert numbers(values).equals(pa.array(values, pa.int64()))
    assert numbers(np.array(values, np.int64)[::-1]).equals(pa.array(values[::-1], pa.int64()))


def test_numbers_of_a_log_keep_what_is_no_number():
    values = [1.5, float("inf"), float("nan")]
    found = numbers(values, np.float64)
    assert found.type == pa.float64() and found.null_count == 0
    np.testing.assert_array_equal(np.array(found.to_pylist()), values)


def test_a_number_beyond_64_bits_is_refused():
    with pytest.raises(OverflowError):
        numbers([2**63])


@pytest.mark.parametrize("values", [[], [""], ["a", "", "köln \U0001f600", "x" * 70_000]])
def test_texts_are_pyarrows(values):
    found = texts(values)
    found.validate(full=True)
    assert found.equals(pa.array(values, pa.string()))
