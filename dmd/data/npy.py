"""Arrays in numpy's .npy format 1.0, the members of shards: plain numbers in C order."""

import functools
import io
import math
import mmap

import numpy as np

from dmd.provenance import outside_files


def encoded(array: np.ndarray) -> bytes:
    """The content of a .npy file."""
    array = np.asarray(array, order="C")
    return b"".join((_header(array.shape, array.dtype), array.data))


@functools.lru_cache(maxsize=64)
def _header(shape: tuple[int, ...], dtype: np.dtype) -> bytes:
    stream = io.BytesIO()
    description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def array(data: mmap.mmap, start: int, size: int) -> np.ndarray:
    """A view of the array that `size` bytes of `data` from `start` on hold; ValueError if they hold none."""
    length = 10 + int.from_bytes(data[start + 8 : start + 10], "little")
    shape, dtype = _parse_header(data[start : start + length])
    count = math.prod(shape)
    if count < 0 or length + count * dtype.itemsize != size:
        raise ValueError(f"a .npy member of {size} bytes claims {count} values of {dtype}")
    return np.frombuffer(data, dtype, count, start + length).reshape(shape)


@functools.lru_cache(maxsize=64)
def _parse_header(content: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(content)
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError("a member is not in .npy format 1.0")
    try:
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    except Exception as error:  # numpy parses a header as a Python literal, which fails in many ways
        raise ValueError(f"a .npy header cannot be read: {outside_files.reason(error)}") from error
    if fortran_order or dtype.hasobject:
        raise ValueError("a .npy member is in Fortran order or holds objects")
    return shape, dtype
