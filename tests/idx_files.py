"""Small IDX files for tests."""

import gzip
from pathlib import Path

import numpy as np

NAMES = {
    "training_images": "train-images-idx3-ubyte.gz",
    "training_labels": "train-labels-idx1-ubyte.gz",
    "held_out_images": "t10k-images-idx3-ubyte.gz",
    "held_out_labels": "t10k-labels-idx1-ubyte.gz",
}


def idx(values: np.ndarray, kind: int = 0x08) -> bytes:
    """The content of an IDX file of uint8 values."""
    sizes = b"".join(size.to_bytes(4, "big") for size in values.shape)
    return bytes([0, 0, kind, values.ndim]) + sizes + values.tobytes()


def write_folder(folder: Path, num: int = 12, num_held_out: int = 6, side: int = 8, num_classes: int = 3) -> Path:
    """A folder with four gzipped files: classes are brightnesses, with noise."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("training", num), ("held_out", num_held_out)):
        labels = (np.arange(count) % num_classes).astype(np.uint8)
        images = random.integers(0, 60, (count, side, side)) + labels[:, None, None] * 90
        for kind, values in (("images", images.astype(np.uint8)), ("labels", labels)):
            (folder / NAMES[f"{split}_{kind}"]).write_bytes(gzip.compress(idx(values), mtime=0))
    return folder
