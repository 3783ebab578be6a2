"""Laws of the datasets: what a file becomes, who gets which label, how a seed splits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from dmd.data import dataset, image_file, image_folder

DIGITS = {"kind": "digits", "split_seed": 0, "num_training": 1000}
MIXTURE = {
    "kind": "gaussian-mixture",
    "means": [[-0.5, 0.0], [0.5, 0.25]],
    "stds": [0.1, 0.2],
    "weights": [1.0, 3.0],
    "num_training": 4000,
    "num_held_out": 1000,
    "seed": 0,
}


def folder_settings(place: Path, **changes: object) -> dict:
    settings = {
        "kind": "images",
        "folder": str(place),
        "labels": "none",
        "resolution": 8,
        "channels": 3,
        "resize": "box",
        "crop": "center",
        "split_seed": 0,
        "num_held_out": 0,
    }
    return settings | changes


def save(path: Path, value: object, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)  # type: ignore[arg-type]
    return path


def one(path: Path, **changes: object) -> np.ndarray:
    """The only image of a folder as uint8 levels (C, H, W)."""
    return dataset.load(folder_settings(path.parent, **changes), "training").values[0].numpy()


def test_digits_splits_are_disjoint_and_cover_all_scans():
    training, held_out = (dataset.load(DIGITS, split) for split in dataset.SPLITS)
    assert training.images.shape == (1000, 1, 8, 8) and held_out.images.shape == (797, 1, 8, 8)
    assert training.sha256 == held_out.sha256 and training.num_classes == 10
    assert training.images.min() == -1 and training.images.max() == 1
    together = torch.cat([training.images, held_out.images]).flatten(1)
    everything = dataset.load(DIGITS | {"num_training": 1797}, "training").images.flatten(1)
    assert torch.equal(together, everything)
    assert torch.bincount(torch.cat([training.labels, held_out.labels])).sum() == 1797


def test_digits_split_follows_its_seed():
    first, again = dataset.load(DIGITS, "training"), dataset.load(DIGITS, "training")
    other = dataset.load(DIGITS | {"split_seed": 1}, "training")
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images) and first.sha256 != other.sha256


def test_mixture_draws_have_the_modes_weights_means_and_stds():
    points = dataset.load(MIXTURE, "training")
    assert points.images.shape == (4000, 2, 1, 1) and points.num_classes == 0
    for mode, weight in enumerate((0.25, 0.75)):
        drawn = points.images[points.labels == mode].flatten(1)
        assert len(drawn) / 4000 == pytest.approx(weight, abs=0.03)
        assert drawn.mean(0).tolist() == pytest.approx(MIXTURE["means"][mode], abs=0.02)
        assert drawn.std(0).tolist() == pytest.approx([MIXTURE["stds"][mode]] * 2, rel=0.08)


def test_mixture_held_out_points_do_not_depend_on_the_number_of_training_points():
    few = dataset.load(MIXTURE | {"num_training": 10}, "held_out")
    assert torch.equal(few.images, dataset.load(MIXTURE, "held_out").images)


def test_batch_equals_the_same_rows_of_images(tmp_path):
    for index in range(4):
        save(tmp_path / f"{index}.png", (index * 60, 10, 255))
    loaded = dataset.load(folder_settings(tmp_path), "training")
    indices = torch.tensor([2, 0])
    assert loaded.values.dtype == torch.uint8
    assert torch.equal(loaded.batch(indices), loaded.images[indices])
    assert loaded.images[:, 2].max() == 1


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path):
    levels = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "grey.png")
    read = one(tmp_path / "grey.png", channels=1)[0]
    assert np.abs(read - levels / 257).max() <= 0.5 and len(np.unique(read)) == 64


@pytest.mark.parametrize("suffix", ["tif", "pgm"])
def test_sixteen_bit_grey_is_the_same_in_every_format(tmp_path, suffix):
    Image.fromarray(np.full((8, 8), 32896, np.uint16)).save(tmp_path / f"grey.{suffix}")
    assert (one(tmp_path / f"grey.{suffix}") == 128).all()


def test_palette_keeps_its_colours(tmp_path):
    image = Image.new("RGB", (8, 8), (200, 40, 10))
    image.quantize(4).save(tmp_path / "palette.png")
    assert one(tmp_path / "palette.png")[:, 3, 3].tolist() == pytest.approx([200, 40, 10], abs=2)


@pytest.mark.parametrize(("mode", "value"), [("RGBA", (255, 0, 0, 0)), ("LA", (0, 0))])
def test_transparency_is_laid_on_white(tmp_path, mode, value):
    assert (one(save(tmp_path / "clear.png", value, mode=mode)) == 255).all()


def test_transparent_palette_is_laid_on_white(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 200, 0, 0])
    image.save(tmp_path / "palette.png", transparency=1)
    assert (one(tmp_path / "palette.png") == 255).all()


def test_cmyk_becomes_rgb(tmp_path):
    read = one(save(tmp_path / "print.jpg", (0, 255, 255, 0), mode="CMYK"))
    assert read[0].min() > 240 and read[1:].max() < 15


def test_exif_rotation_is_applied(tmp_path):
    pixels = np.zeros((8, 8, 3), np.uint8)
    pixels[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 270 degrees to stand upright
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    read = one(tmp_path / "turned.png", channels=1)[0]
    assert (read[:, 4:] == 255).all() and (read[:, :4] == 0).all()


def test_centre_crop_keeps_the_middle_of_a_wide_image(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    assert (one(tmp_path / "wide.png") == 255).all()


def test_box_filter_averages_whole_blocks(tmp_path):
    levels = np.random.default_rng(0).integers(0, 256, (16, 16), np.uint8)
    Image.fromarray(levels).save(tmp_path / "noise.png")
    read = one(tmp_path / "noise.png", channels=1, resolution=4)[0]
    assert np.abs(read - levels.reshape(4, 4, 4, 4).mean((1, 3))).max() <= 1


def test_folder_labels_are_the_sorted_first_level_folders(tmp_path):
    save(tmp_path / "dog" / "deep" / "a.png", "black")
    save(tmp_path / "cat" / "b.png", "white")
    loaded = dataset.load(folder_settings(tmp_path, labels="folders"), "training")
    assert loaded.num_classes == 2
    white = loaded.values.amax((1, 2, 3)) == 255
    assert torch.equal(white, loaded.labels == 0) and white.sum() == 1


def test_csv_labels_that_are_numbers_sort_as_numbers(tmp_path):
    for name, label in (("a", 10), ("b", 9), ("c", 10)):
        save(tmp_path / f"{name}.png", label)
    table = tmp_path / "labels.csv"
    table.write_text("file,label\nc.png,10\na.png,10\nb.png,9\n")
    names = image_folder.names(tmp_path)
    assert image_folder.labels(tmp_path, names, str(table)) == ([1, 0, 1], 2)


def test_digest_follows_bytes_names_labels_and_settings_but_not_the_place(tmp_path):
    for place in ("here", "there"):
        save(tmp_path / place / "a.png", "black")
        save(tmp_path / place / "b.png", "white")

    def digest(place: str, **changes: object) -> str:
        return dataset.load(folder_settings(tmp_path / place, **changes), "training").sha256

    first = digest("here")
    assert first == digest("there")
    assert first != digest("here", resize="lanczos")
    save(tmp_path / "there" / "b.png", (255, 255, 254))
    changed = digest("there")
    (tmp_path / "there" / "b.png").rename(tmp_path / "there" / "c.png")
    assert len({first, changed, digest("there")}) == 3


def test_image_splits_are_disjoint_and_cover_the_folder(tmp_path):
    for level in range(7):
        save(tmp_path / f"{level}.png", level, mode="L")
    splits = [dataset.load(folder_settings(tmp_path, num_held_out=3, channels=1), s) for s in dataset.SPLITS]
    levels = [set(split.values[:, 0, 0, 0].tolist()) for split in splits]
    assert len(levels[0]) == 4 and len(levels[1]) == 3 and levels[0] | levels[1] == set(range(7))


def test_all_images_are_held_out_in_the_order_of_their_names(tmp_path):
    for level in range(5):
        save(tmp_path / f"{level}.png", level, mode="L")
    whole = dataset.load(folder_settings(tmp_path, num_held_out="all", channels=1), "held_out")
    assert whole.values[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(ValueError, match="num_held_out is all: no image"):
        dataset.load(folder_settings(tmp_path, num_held_out="all"), "training")


def test_files_of_other_kinds_and_hidden_files_are_passed_over(tmp_path):
    save(tmp_path / "a.png", "black")
    save(tmp_path / ".hidden" / "b.png", "black")
    (tmp_path / "README.txt").write_text("words")
    assert image_folder.names(tmp_path) == ["a.png"]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:60])


def test_truncated_file_is_named(tmp_path):
    save(tmp_path / "good.png", "black")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "half.png")
    truncate(tmp_path / "half.png")
    with pytest.raises(ValueError, match=r"half\.png cannot be read"):
        dataset.load(folder_settings(tmp_path), "training")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"crop": "none"}, r"wide\.png is 9 x 8 pixels"),
        ({"crop": "left"}, "dataset.crop 'left'"),
        ({"resize": "nearest"}, "dataset.resize 'nearest'"),
        ({"channels": 4}, "dataset.channels is 4"),
        ({"labels": "folders"}, r"wide\.png has no label"),
        ({"labels": "absent.csv"}, "absent.csv is not none"),
        ({"num_held_out": 1}, "num_held_out is 1"),
        ({"folder": "absent"}, "absent is not a folder"),
        ({"kind": "videos"}, "dataset.kind 'videos'"),
    ],
)
def test_wrong_setting_is_named(tmp_path, changes, message):
    save(tmp_path / "wide.png", "black", size=(9, 8))
    with pytest.raises(ValueError, match=message):
        dataset.load(folder_settings(tmp_path, **changes), "training")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("file,label\n", r"a\.png has no label"),
        ("file,label\na.png,\n", r"line 2: 'a\.png' has no label"),
        ("file,label\na.png,1\na.png,2\n", "line 3: 'a.png' is listed twice"),
        ("file,label\na.png,1\nz.png,2\n", "line 3: no image 'z.png'"),
        ("name,class\na.png,1\n", "not one file and one label"),
    ],
)
def test_wrong_csv_row_is_named(tmp_path, rows, message):
    save(tmp_path / "a.png", "black")
    table = tmp_path / "labels.csv"
    table.write_text(rows)
    with pytest.raises(ValueError, match=message):
        dataset.load(folder_settings(tmp_path, labels=str(table)), "training")


def test_empty_folder_and_empty_split_are_errors(tmp_path):
    with pytest.raises(ValueError, match="holds no images"):
        dataset.load(folder_settings(tmp_path), "training")
    save(tmp_path / "a.png", "black")
    with pytest.raises(ValueError, match="held_out split is empty"):
        dataset.load(folder_settings(tmp_path), "held_out")
    with pytest.raises(ValueError, match="split 'test'"):
        dataset.load(folder_settings(tmp_path), "test")


def test_floating_point_pixels_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(ValueError, match=r"float\.tif cannot be read as an image: it holds floating-point"):
        dataset.load(folder_settings(tmp_path), "training")


def test_file_that_pillow_would_give_to_a_program_is_no_image(tmp_path, monkeypatch):
    from PIL import EpsImagePlugin, Image

    Image.init()
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("a program was about to run"))
    lines = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"
    (tmp_path / "a.png").write_bytes(lines)
    with pytest.raises(ValueError, match="a.png cannot be read as an image"):
        image_file.read([tmp_path / "a.png"], resolution=8, channels=1, resize="box", crop="none")
