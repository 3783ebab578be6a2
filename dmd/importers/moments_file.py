"""Published statistics of real data: mean and covariance of features in an .npz file."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from dmd.provenance import outside_files

KEYS = ("mu", "sigma")
MAX_BYTES = 1 << 28  # of one array: a covariance of 5,792 features
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
    if not path.exists():
        raise ValueError(f"{path} is missing: a file with the mean (mu) and covariance (sigma) of real features")
    with outside_files.reading(path, ".npz of mu and sigma"), zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        if missing := [name for name in KEYS if f"{name}.npy" not in names]:
            raise ValueError(f"it has no array {missing[0]}; it has: {', '.join(sorted(names)) or 'nothing'}")
        return [_array(archive, name) for name in KEYS]


def _array(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    """One array, float64. No more is read of it than the archive claims."""
    part = archive.getinfo(f"{name}.npy")
    if part.file_size > MAX_BYTES:
        raise ValueError(f"array {name} has {part.file_size} bytes, more than {MAX_BYTES}")
    array = np.lib.format.read_array(io.BytesIO(archive.read(part)), allow_pickle=False)
    if array.dtype.kind != "f":
        raise ValueError(f"its values are {array.dtype}, not real numbers")
    return array.astype(np.float64)
