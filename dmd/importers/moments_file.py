"""Published statistics of real data: mean and covariance of features in an .npz file."""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

KEYS = ("mu", "sigma")
MAX_BYTES = 1 << 30  # of one array: a covariance of about 11,000 features
DAMAGE = (  # errors for damaged zip files and numpy headers
    *(OSError, ValueError, EOFError, MemoryError, NotImplementedError, RuntimeError, SyntaxError),
    *(struct.error, zipfile.BadZipFile, zlib.error, tokenize.TokenError),
)
ASYMMETRY = 1e-6  # allowed rounding error, relative to the largest entry


def load(path: Path) -> tuple[Tensor, Tensor]:
    """Mean float64 (d,) and covariance float64 (d, d), exactly symmetric, from the arrays `mu` and `sigma`.

    Other arrays of the file are ignored. Pickled arrays are not read.

    Raises:
        ValueError: the file is missing or no .npz, or an array is missing, has another shape, is not real or not
            finite, or is no covariance.
    """
    mean, covariance = (torch.from_numpy(array) for array in _arrays(path))
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)) or not len(mean):
        raise ValueError(
            f"{path}: mu has shape {tuple(mean.shape)} and sigma {tuple(covariance.shape)}; expected (d,) and (d, d)"
        )
    for name, values in zip(KEYS, (mean, covariance), strict=True):
        if not torch.isfinite(values).all():
            raise ValueError(f"{path}: {name} holds values that are not finite")
    difference, largest = float((covariance - covariance.T).abs().max()), float(covariance.abs().max())
    if difference > ASYMMETRY * largest:
        raise ValueError(f"{path}: sigma is no covariance: it differs from its transpose by {difference:.3g}")
    if (lowest := float(covariance.diagonal().min())) < 0:
        raise ValueError(f"{path}: sigma is no covariance: it has a variance of {lowest:.3g}")
    return mean, (covariance + covariance.T) / 2


def _arrays(path: Path) -> list[np.ndarray]:
    if not path.is_file():
        raise ValueError(f"{path} is missing: a file with the mean (mu) and covariance (sigma) of real features")
    try:
        with zipfile.ZipFile(path) as archive:
            sizes = {entry.filename: entry.file_size for entry in archive.infolist()}
        if missing := [name for name in KEYS if f"{name}.npy" not in sizes]:
            raise ValueError(f"it has no array {missing[0]}; it has: {', '.join(sorted(sizes)) or 'nothing'}")
        if too_large := [name for name in KEYS if sizes[f"{name}.npy"] > MAX_BYTES]:
            raise ValueError(f"array {too_large[0]} has {sizes[f'{too_large[0]}.npy']} bytes")
        with np.load(path, allow_pickle=False) as content:
            arrays = [content[name] for name in KEYS]
        if odd := [name for name, array in zip(KEYS, arrays, strict=True) if not isinstance(array, np.ndarray)]:
            raise ValueError(f"{odd[0]} is no array")
        if kinds := [str(array.dtype) for array in arrays if array.dtype.kind != "f"]:
            raise ValueError(f"its values are {kinds[0]}, not real numbers")
    except DAMAGE as error:
        raise ValueError(f"{path} is no .npz of mu and sigma: {error}") from error
    return [array.astype(np.float64) for array in arrays]
