"""A folder of PNG files of every kind a user may bring; the files of one class all show the same scene."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image

SCENES = {  # class -> grey levels of the upper and the lower half, per channel, and the kinds of its files
    "dusk": ([220, 120, 40], [30, 20, 60], ("wide", "palette", "turned", "tall")),
    "snow": ([90, 90, 90], [240, 240, 240], ("deep", "wide", "turned", "deep")),
}
PER_CLASS = 8
ORIENTATION, TURN_RIGHT = 0x0112, 6  # EXIF tag, and the value that says: turn by 90 degrees to the right to view


def write_photos(folder: Path) -> None:
    """Writes 8 files into a sub-folder per class, and labels.csv that says the same."""
    random = np.random.default_rng(0)
    rows = []
    for label, (upper, lower, kinds) in SCENES.items():
        (folder / label).mkdir(parents=True)
        for number in range(PER_CLASS):
            name = f"{label}/{number:02d}.png"
            shade = int(random.integers(-8, 9))
            write_photo(folder / name, upper, lower, kind=kinds[number % len(kinds)], shade=shade)
            rows.append((name, label))
    with open(folder / "labels.csv", "w", newline="") as stream:
        csv.writer(stream).writerows([("file", "label"), *rows])


def write_photo(path: Path, upper: list[int], lower: list[int], *, kind: str, shade: int = 0) -> None:
    """One file: wide or tall RGB, palette, RGB stored on its side with an EXIF tag, or (deep) 16-bit grey."""
    height, width = {"wide": (24, 40), "tall": (40, 24), "turned": (24, 40)}.get(kind, (24, 24))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[: height // 2] = np.clip(np.array(upper) + shade, 0, 255)
    pixels[height // 2 :] = np.clip(np.array(lower) + shade, 0, 255)
    if kind == "deep":
        Image.fromarray(pixels[:, :, 0].astype(np.uint16) * 257).save(path)
        return
    image, exif = Image.fromarray(pixels), Image.Exif()
    if kind == "palette":
        image = image.quantize(4)
    if kind == "turned":
        image, exif[ORIENTATION] = image.transpose(Image.Transpose.ROTATE_90), TURN_RIGHT
    image.save(path, exif=exif)
