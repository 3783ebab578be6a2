"""Published moments: what is read of an .npz, and what is refused."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dmd.importers import moments_file

MEAN, COVARIANCE = np.arange(3.0), np.diag([1.0, 2.0, 0.0]) + 0.0


def written(path: Path, **arrays: object) -> Path:
    np.savez(path, **({"mu": MEAN, "sigma": COVARIANCE} | arrays))
    return path


def test_moments_are_read_as_float64_and_exactly_symmetric(tmp_path):
    sigma = COVARIANCE.astype(np.float32)
    sigma[0, 1], sigma[1, 0] = 0.5, np.nextafter(np.float32(0.5), np.float32(1))
    path = written(tmp_path / "m.npz", mu=MEAN.astype(np.float32), sigma=sigma, images=np.zeros(2))
    mean, covariance = moments_file.load(path)
    assert mean.tolist() == [0, 1, 2] and mean.dtype == covariance.dtype == torch.float64
    assert torch.equal(covariance, covariance.T)
    assert float(covariance[0, 1]) == pytest.approx(0.5, rel=1e-6)


class Boom:
    def __reduce__(self):
        return (Path.touch, (Path("touched"),))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"mu": np.zeros(2)}, r"mu has shape \(2,\) and sigma \(3, 3\); expected"),
        ({"sigma": np.zeros((3, 2))}, r"sigma \(3, 2\)"),
        ({"mu": np.zeros(0), "sigma": np.zeros((0, 0))}, r"mu has shape \(0,\)"),
        ({"mu": np.array([0, np.nan, 0])}, "mu holds values that are not finite"),
        ({"sigma": np.diag([1, np.inf, 0])}, "sigma holds values that are not finite"),
        ({"sigma": np.triu(np.ones((3, 3)))}, "differs from its transpose by 1"),
        ({"sigma": np.diag([1, -0.5, 0])}, "a variance of -0.5"),
        ({"mu": np.zeros(3, np.int64)}, "int64, not real numbers"),
        ({"mu": np.array([Boom()] * 3)}, "allow_pickle=False"),
    ],
)
def test_what_is_no_mean_and_covariance_is_refused(tmp_path, monkeypatch, arrays, message):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "m.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        moments_file.load(path)
    assert str(path) in str(caught.value)
    assert not (tmp_path / "touched").exists()


def test_files_of_other_kinds_are_refused(tmp_path):
    path = tmp_path / "m.npz"
    with pytest.raises(ValueError, match="m.npz is missing"):
        moments_file.load(path)
    for content in (b"", b"PK", pickle.dumps({"mu": 1, "sigma": 2})):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="cannot be read as .npz of mu and sigma"):
            moments_file.load(path)
    np.savez(path, mu=MEAN)
    with pytest.raises(ValueError, match="no array sigma; it has: mu.npy"):
        moments_file.load(path)
    written(path)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        moments_file.load(path)


def test_members_that_are_no_arrays_and_zip_files_of_another_kind_are_refused(tmp_path):
    path, whole = tmp_path / "m.npz", written(tmp_path / "whole.npz").read_bytes()
    path.write_bytes(whole.replace(b"\x93NUMPY", b"\x92NUMPY", 1))
    with pytest.raises(ValueError, match="m.npz cannot be read as .npz of mu and sigma"):
        moments_file.load(path)
    entry = whole.rindex(b"PK\x01\x02")
    for place, value in ((6, 125), (8, 1), (8, 32), (10, 77)):  # version, encrypted, patched, compression
        content = bytearray(whole)
        content[entry + place] = value
        path.write_bytes(content)
        with pytest.raises(ValueError, match="m.npz cannot be read as .npz of mu and sigma"):
            moments_file.load(path)


def test_array_that_would_grow_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "m.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb, bomb.open("mu.npy", "w") as part:
        for _ in range(300):
            part.write(bytes(1 << 20))
    with zipfile.ZipFile(path, "a") as bomb:
        bomb.writestr("sigma.npy", b"")
    with pytest.raises(ValueError, match="array mu has 314572800 bytes, more than"):
        moments_file.load(path)


def test_an_array_that_claims_more_than_it_holds_is_refused(tmp_path):
    path = tmp_path / "m.npz"
    header = written(tmp_path / "whole.npz")
    with zipfile.ZipFile(header) as archive, zipfile.ZipFile(path, "w") as false:
        false.writestr("mu.npy", archive.read("mu.npy").replace(b"(3,)", b"(9,)"))
        false.writestr("sigma.npy", archive.read("sigma.npy"))
    with pytest.raises(ValueError, match="cannot be read as .npz"):
        moments_file.load(path)
