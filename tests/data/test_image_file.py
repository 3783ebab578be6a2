"""What an image file becomes: its range of values is asked of the file, and what cannot be known is refused by name."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dmd.config import source_files
from dmd.data import image_file
from tests.image_files import EXTRA_SAMPLES, SAMPLE_FORMAT, packed, write_png, write_tiff

ORIENTATION, TURN_RIGHT = 0x0112, 6


def read(path: Path, channels: int = 1) -> np.ndarray:
    """Levels (C, 8, 8)."""
    return image_file.read([path], resolution=8, channels=channels, resize="box", crop="center")[0]


def ramp(highest: int) -> list[int]:
    """A row of levels that holds both ends."""
    return [0, highest, highest // 2, highest // 3, 1, highest - 1, highest // 5, highest // 7]


def expected(levels: list[int], highest: int) -> list[int]:
    return [round(level * 255 / highest) for level in levels]


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_grey_tiff_has_the_range_of_its_bits_and_its_photometric_meaning(tmp_path, bits, photometric, deflate):
    levels = ramp(2**bits - 1)
    data = (struct.pack("<8H", *levels) if bits == 16 else packed(levels, bits)) * 8
    write_tiff(tmp_path / "a.tif", data, bits=[bits], photometric=photometric, deflate=deflate)
    found = read(tmp_path / "a.tif")[0]
    white = expected(levels, 2**bits - 1)
    assert (found == (white if photometric else [255 - level for level in white])).all()


def test_twelve_bits_are_not_read_as_sixteen(tmp_path):
    levels = ramp(4095)
    write_tiff(tmp_path / "a.tif", packed(levels, 12) * 8, bits=[12])
    assert (read(tmp_path / "a.tif")[0] == expected(levels, 4095)).all()


@pytest.mark.parametrize("highest", [1, 15, 100, 255, 1000, 4095, 65535])
@pytest.mark.parametrize("plain", [False, True])
def test_pgm_has_the_range_of_its_maximum(tmp_path, highest, plain):
    levels = [min(level, highest) for level in ramp(highest)] * 8
    binary = bytes(levels) if highest < 256 else struct.pack(">64H", *levels)
    body = " ".join(map(str, levels)).encode() if plain else binary
    (tmp_path / "a.pgm").write_bytes(b"P%d 8 8 %d\n" % (2 if plain else 5, highest) + body)
    difference = read(tmp_path / "a.pgm")[0] - np.reshape(expected(levels, highest), (8, 8))
    assert np.abs(difference).max() <= (1 if highest > 255 else 0)  # Pillow rounds to 16 bits first


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("chunks", [[], [(b"sBIT", b"\x01")]])
def test_grey_png_has_the_range_of_its_depth_whatever_bits_are_significant(tmp_path, depth, chunks):
    levels = ramp(2**depth - 1)
    write_png(tmp_path / "a.png", (b"\0" + packed(levels, depth)) * 8, depth=depth, colour=0, chunks=chunks)
    assert (read(tmp_path / "a.png")[0] == expected(levels, 2**depth - 1)).all()


@pytest.mark.parametrize(("colour", "order"), [("png", ">"), ("tiff", "<"), ("tiff", ">")])
def test_sixteen_bits_per_channel_keep_their_range(tmp_path, colour, order):
    levels = ramp(65535)
    row = struct.pack(f"{order}24H", *(level for level in levels for _ in range(3)))
    if colour == "png":
        path = write_png(tmp_path / "a.png", (b"\0" + row) * 8, depth=16, colour=2)
    else:
        path = write_tiff(tmp_path / "a.tif", row * 8, bits=[16] * 3, photometric=2, order=order)
    assert np.abs(read(path, 3) - np.array(expected(levels, 65535))).max() <= 1  # Pillow takes the high bytes


def test_transparent_level_of_sixteen_bit_grey_is_white(tmp_path):
    levels = [0, 300, 20000, 65535] * 2
    chunks = [(b"tRNS", struct.pack(">H", 300))]
    write_png(tmp_path / "a.png", (b"\0" + struct.pack(">8H", *levels)) * 8, depth=16, colour=0, chunks=chunks)
    assert read(tmp_path / "a.png")[0, 0, :4].tolist() == [0, 255, 78, 255]


@pytest.mark.parametrize(
    ("depth", "more"), [(1, 0), *((depth, more) for depth in (2, 4, 8) for more in (0, 256, 2**15))]
)
def test_transparent_level_of_a_grey_png_is_white_and_only_its_low_bits_count(tmp_path, depth, more):
    levels = ramp(2**depth - 1)
    for clear in {*levels}:
        chunks = [(b"tRNS", struct.pack(">H", clear | more))]
        row = b"\0" + packed(levels, depth)
        write_png(tmp_path / "a.png", row * 8, depth=depth, colour=0, chunks=chunks)
        shown = expected([2**depth - 1 if level == clear else level for level in levels], 2**depth - 1)
        assert read(tmp_path / "a.png")[0, 0].tolist() == shown


@pytest.mark.parametrize(
    ("data", "bits", "photometric", "extra", "grey"),
    [
        ([100, 128], 2, 1, 0, 100),  # unspecified
        ([100, 128], 2, 1, 1, 100 + 127),  # premultiplied alpha, on white
        ([100, 128], 2, 1, 2, 177),  # alpha, on white
        ([100, 100, 100, 128], 4, 2, 0, 100),
        ([100, 100, 100, 128], 4, 2, 1, 100 + 127),
        ([100, 100, 100, 128], 4, 2, 2, 177),
    ],
)
def test_extra_samples_mean_what_the_file_says(tmp_path, data, bits, photometric, extra, grey):
    more = {EXTRA_SAMPLES: [extra]}
    write_tiff(tmp_path / "a.tif", bytes(data * 64), bits=[8] * bits, photometric=photometric, more=more)
    assert np.abs(read(tmp_path / "a.tif").astype(int) - grey).max() <= 1


REFUSED = {  # what a TIFF file holds: bytes of a pixel, its fields, the message
    "signed-8": (b"\x01", {"bits": [8], "more": {SAMPLE_FORMAT: [2]}}, "signed integers, whose range is unknown"),
    "signed-16": (b"\x01\x00", {"bits": [16], "more": {SAMPLE_FORMAT: [2]}}, "signed integers"),
    "signed-32": (bytes(4), {"bits": [32], "more": {SAMPLE_FORMAT: [2]}}, "signed integers"),
    "integers-32": (bytes(4), {"bits": [32]}, "integers of 32 bits, whose range is unknown"),
    "float-32": (bytes(4), {"bits": [32], "more": {SAMPLE_FORMAT: [3]}}, "floating-point values"),
    "float-64": (bytes(8), {"bits": [64], "more": {SAMPLE_FORMAT: [3]}}, "none of AVIF"),
    "float-16": (bytes(2), {"bits": [16], "more": {SAMPLE_FORMAT: [3]}}, "none of AVIF"),
    "bits-10": (bytes(2), {"bits": [10]}, "none of AVIF"),
    "bits-14": (bytes(2), {"bits": [14]}, "none of AVIF"),
    "lab": (bytes(3), {"bits": [8] * 3, "photometric": 8}, "colour space LAB is not supported"),
    "sensor": (bytes(2), {"bits": [16], "photometric": 32803}, "none of AVIF"),
    "two-samples": (bytes(2), {"bits": [8] * 2}, "none of AVIF"),
    "four-samples": (bytes(4), {"bits": [8] * 4, "photometric": 2}, "no tag ExtraSamples"),
    "six-samples": (bytes(6), {"bits": [8] * 6, "photometric": 2}, "none of AVIF"),
    "12-bit white is 0": (bytes(2), {"bits": [12], "photometric": 0}, "none of AVIF"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tiff_of_unknown_meaning_is_refused_by_name(tmp_path, name):
    pixel, fields, message = REFUSED[name]
    with pytest.raises(ValueError, match=rf"a\.tif cannot be read as an image: .*{message}"):
        read(write_tiff(tmp_path / "a.tif", pixel * 64, **fields))


def test_other_files_of_unknown_meaning_are_refused_by_name(tmp_path):
    (tmp_path / "a.ppm").write_bytes(b"Pf 8 8 -1.0\n" + bytes(256))
    with pytest.raises(ValueError, match="a.ppm cannot be read as an image: it holds floating-point values"):
        read(tmp_path / "a.ppm")
    row = b"\0" + bytes(48)
    write_png(tmp_path / "a.png", row * 8, depth=16, colour=2, chunks=[(b"tRNS", bytes(6))])
    with pytest.raises(ValueError, match="a.png cannot be read .*transparent colour has 16 bits"):
        read(tmp_path / "a.png")


@pytest.mark.parametrize("marked", [True, False])
def test_cmyk_jpeg_is_read_if_adobes_marker_says_what_it_means(tmp_path, marked):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.jpg")
    content = (tmp_path / "a.jpg").read_bytes()
    if marked:
        found = read(tmp_path / "a.jpg", 3)
        assert found[0].min() > 240 and found[1:].max() < 15
        return
    start = content.index(b"Adobe") - 4
    (tmp_path / "a.jpg").write_bytes(content[:start] + content[start + 2 + content[start + 3] :])
    with pytest.raises(ValueError, match="CMYK without Adobe's marker"):
        read(tmp_path / "a.jpg", 3)


@pytest.mark.parametrize("suffix", ["jfif", "jpe", "avif", "apng", "pnm", "JPG"])
def test_every_suffix_is_read(tmp_path, suffix):
    assert f".{suffix.lower()}" in source_files.IMAGES
    kind = {"apng": "png", "pnm": "ppm", "avif": "avif"}.get(suffix, "jpeg")
    Image.new("RGB", (8, 8), (200, 40, 10)).save(tmp_path / f"a.{suffix}", kind)
    assert np.abs(read(tmp_path / f"a.{suffix}", 3)[:, 0, 0].astype(int) - [200, 40, 10]).max() <= 4


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_first_frame_of_an_animation_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), level) for level in ("white", "black", "black")]
    frames[0].save(tmp_path / "a.img", kind, save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.img").min() >= 250


@pytest.mark.parametrize("chunk", ["tEXt", "zTXt", "iTXt"])
def test_metadata_of_megabytes_are_no_fault(tmp_path, chunk):
    text = {
        "tEXt": b"a\0" + b"x" * 2**22,
        "zTXt": b"a\0\0" + zlib.compress(b"x" * 2**22),
        "iTXt": b"a\0\1\0\0\0" + zlib.compress(b"x" * 2**22),
    }[chunk]
    chunks = [(chunk.encode(), text)] * 2
    assert (read(write_png(tmp_path / "a.png", (b"\0" + b"\7" * 8) * 8, depth=8, colour=0, chunks=chunks)) == 7).all()


def photo(kind: str, exif: bytes) -> bytes:
    """An image whose left half is white, with EXIF data."""
    image, content = Image.new("RGB", (8, 8)), io.BytesIO()
    image.paste((255, 255, 255), (0, 0, 4, 8))
    image.save(content, kind, exif=exif)
    return content.getvalue()


def exif(*entries: tuple[int, int, int, int], next_ifd: int = 0) -> bytes:
    """EXIF data of entries (tag, type, count, value), with the orientation last."""
    every = [*entries, (ORIENTATION, 3, 1, TURN_RIGHT)]
    table = b"".join(struct.pack("<HHII", *entry) for entry in every)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(every)) + table + struct.pack("<I", next_ifd)


BROKEN_EXIF = {  # EXIF data, and whether the orientation can be read in spite of the fault
    "empty": (b"Exif\0\0", False),
    "two bytes": (b"Exif\0\0II", False),
    "no tiff": (b"Exif\0\0" + b"z" * 40, False),
    "far table": (b"Exif\0\0II*\0\xff\xff\xff\xff", False),
    "text of a gigabyte": (exif((0x010F, 2, 2**30, 8)), True),
    "value beyond the end": (exif((0x011A, 5, 1, 2**31)), True),
    "rational of zero": (exif((0x011A, 5, 1, 8)), True),
    "unknown type": (exif((0x010F, 99, 1, 0)), True),
    "float as count of bytes": (exif((0x0128, 12, 1, 8)), True),
    "table of the camera is missing": (exif((0x8769, 4, 1, 2**31)), True),
    "table of the camera is itself": (exif((0x8769, 4, 1, 8)), True),
    "tables in a circle": (exif(next_ifd=8), True),
    "wrong type": (b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, ORIENTATION, 2, 1, 54), False),
    "orientation 9": (b"Exif\0\0II*\0" + struct.pack("<IHHHIII", 8, 1, ORIENTATION, 3, 1, 9, 0), False),
}


@pytest.mark.parametrize("kind", ["PNG", "GIF", "TIFF"])
def test_picture_whose_pixels_are_damaged_in_the_middle_is_refused(tmp_path, kind):
    pixels = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    options = {"compression": "tiff_adobe_deflate"} if kind == "TIFF" else {}
    Image.fromarray(pixels).save(tmp_path / "a.img", kind, **options)
    content = bytearray((tmp_path / "a.img").read_bytes())
    middle = len(content) // 2
    content[middle : middle + 8] = bytes(255 - each for each in content[middle : middle + 8])
    (tmp_path / "a.img").write_bytes(content)
    with pytest.raises(ValueError, match="a.img cannot be read as an image"):
        read(tmp_path / "a.img")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("name", BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_picture_with_broken_exif_is_read_and_its_orientation_where_it_can_be(tmp_path, kind, name):
    data, turned = BROKEN_EXIF[name]
    (tmp_path / "a.img").write_bytes(photo(kind, data))
    found = read(tmp_path / "a.img")[0] > 128
    plain = np.zeros((8, 8), bool)
    plain[:, :4] = True
    assert (found == (plain.T if turned else plain)).mean() > 0.95


@pytest.mark.parametrize("name", BROKEN_EXIF)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_avif_with_broken_exif_is_read_and_not_turned_since_its_orientation_is_elsewhere(tmp_path, name):
    broken = BROKEN_EXIF[name][0].removeprefix(b"Exif\0\0").ljust(22, b"\0")
    text = b"Exif\0\0II*\0" + struct.pack("<IHHHII", 8, 1, 0x010F, 2, len(broken), 26) + bytes(4) + b"x" * len(broken)
    content = photo("AVIF", text)  # Pillow writes no broken EXIF data
    start = content.index(b"II*\0")
    (tmp_path / "a.avif").write_bytes(content[:start] + broken + content[start + len(broken) :])
    white = read(tmp_path / "a.avif")[0] > 128
    assert white[:, :4].all() and not white[:, 4:].any()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_that_of_pillow(tmp_path, orientation):
    from PIL import ImageOps

    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    tag = Image.Exif()
    tag[ORIENTATION] = orientation
    for kind in ("PNG", "TIFF"):
        Image.fromarray(pixels).save(tmp_path / "a.img", kind, exif=tag)
        with Image.open(tmp_path / "a.img") as image:
            upright = np.asarray(ImageOps.exif_transpose(image))
        assert (read(tmp_path / "a.img", 3) == upright.transpose(2, 0, 1)).all()


BOMBS = {
    "grey 16": {"depth": 16, "colour": 0, "size": (13000, 13000)},
    "grey 1": {"depth": 1, "colour": 0, "size": (2**31 - 1, 2**31 - 1)},
    "rgb": {"depth": 8, "colour": 2, "size": (11600, 11600)},
    "wide": {"depth": 8, "colour": 0, "size": (2**27 + 1, 1)},
}


@pytest.mark.parametrize("name", BOMBS)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_image_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path, name):
    write_png(tmp_path / "bomb.png", b"", **BOMBS[name])  # nothing to decode: only the head is looked at
    with pytest.raises(
        ValueError, match=r"bomb\.png cannot be read as an image: .*(more than 134217728|exceeds limit)"
    ):
        read(tmp_path / "bomb.png")


def test_texts_that_unfold_to_gigabytes_are_refused(tmp_path):
    chunks = [(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**24)))] * 9
    write_png(tmp_path / "a.png", (b"\0" + bytes(8)) * 8, depth=8, colour=0, chunks=chunks)
    with pytest.raises(ValueError, match="a.png cannot be read as an image: Too much memory used in text chunks"):
        read(tmp_path / "a.png")


def test_largest_image_needs_little_more_memory_than_its_pixels(tmp_path):
    side = 6000  # 36 million pixels of two bytes
    write_png(tmp_path / "a.png", bytes((1 + 2 * side) * side), depth=16, colour=0, size=(side, side))
    code = "import sys; from pathlib import Path; from dmd.data import image_file as f; import resource as r\n"
    code += "top = lambda: r.getrusage(r.RUSAGE_SELF).ru_maxrss // 1024\nbefore = top()\n"
    code += "f.read([Path(sys.argv[1])], resolution=8, channels=1, resize='box', crop='center'); print(top() - before)"
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a.png")], capture_output=True, text=True, check=True
    )
    assert int(found.stdout) < 10 * side * side / 2**20
