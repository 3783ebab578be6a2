"""Makes table columns from Python values. pyarrow's own functions import pandas, which takes 0.25 s."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa


def numbers(values: Sequence[float] | np.ndarray, dtype: type[np.generic] = np.int64) -> pa.Array:
    """A column of numbers (rows,) of one numpy dtype; OverflowError if they do not fit in it."""
    array = np.ascontiguousarray(values, dtype)
    return pa.Array.from_buffers(pa.from_numpy_dtype(array.dtype), len(array), [None, pa.py_buffer(array)])


def texts(values: Sequence[str]) -> pa.Array:
    """A column of strings (rows,)."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    return pa.Array.from_buffers(pa.string(), len(encoded), [None, *map(pa.py_buffer, (ends, b"".join(encoded)))])
