"""One image file as square 8-bit pixels.

Conversion: EXIF rotation is applied; transparency (RGBA, LA, palettes) is composited on white; grey levels of more than
8 bits are scaled to 8 bits by the range that the file names, not clipped; CMYK and YCbCr become RGB; of an animation
the first frame is taken. Then the image is cropped (`center`: the largest central square; `none`: it must be square)
and resized by a Pillow filter. Colour profiles are not applied.
"""

from __future__ import annotations

import hashlib
import io
import re
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin, UnidentifiedImageError

from dmd.provenance import outside_files

FILTERS = {
    "lanczos": Image.Resampling.LANCZOS,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
}
# For some formats that are not listed Pillow starts another program.
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 2**27  # of one image; a small file can hold more than the memory does
ORIENTATION = 0x0112  # EXIF tag
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SAMPLE_FORMATS = {2: "signed integers", 3: "floating-point values"}  # of TIFF; 1 = unsigned integers
_AVIF_EXIF = re.compile(rb"(infe.{8})Exif", re.DOTALL)  # the entry in the list of a file's parts
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # Pillow refuses valid files with 1 MB of metadata


def read(paths: Sequence[Path], *, resolution: int, channels: int, resize: str, crop: str) -> np.ndarray:
    """Pixels of image files, uint8 (N, channels, resolution, resolution).

    Raises:
        ValueError: unknown setting, or a file (named) that is damaged, has more than `MAX_PIXELS` pixels, is not square
            under crop `none`, or whose range of values or colour space is unknown.
    """
    if resize not in FILTERS:
        raise ValueError(f"dataset.resize {resize!r} is none of {', '.join(FILTERS)}")
    if crop not in ("center", "none"):
        raise ValueError(f"dataset.crop {crop!r} is neither center nor none")
    if channels not in (1, 3):
        raise ValueError(f"dataset.channels is {channels}, not 1 or 3")
    pixels = np.empty((len(paths), channels, resolution, resolution), np.uint8)
    for index, path in enumerate(paths):
        image = _square(_load(path), path, crop).convert("L" if channels == 1 else "RGB")
        if image.size != (resolution, resolution):
            image = image.resize((resolution, resolution), FILTERS[resize])
        pixels[index] = np.asarray(image).reshape(resolution, resolution, channels).transpose(2, 0, 1)
    return pixels


def sha256(path: Path) -> bytes:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").digest()


def _load(path: Path) -> Image.Image:
    """The upright image, grey or RGB of 8 bits; ValueError, with the path, whatever is wrong with the file."""
    with outside_files.reading(path, "an image"):
        with _opened(path) as opened:
            width, height = opened.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{width} x {height} pixels are more than {MAX_PIXELS}")
            highest, inverted = _grey_range(opened)
            _scale_transparent_level(opened)
            opened.load()  # once: after a fault of the pixels, a second call returns those before it
            turn = _turn(opened)
            image = opened if turn is None else opened.transpose(turn)
            return _without_alpha(image if highest is None else _scaled(image, highest, inverted))


def _opened(path: Path) -> ImageFile.ImageFile:
    """The image, not yet decoded; an AVIF file without its EXIF data where these cannot be read."""
    try:
        return Image.open(path, formats=FORMATS)
    except Exception as error:
        content = path.read_bytes()
        other = _AVIF_EXIF.sub(rb"\1skip", content) if content[4:8] == b"ftyp" else content
        if other != content:
            return Image.open(io.BytesIO(other), formats=FORMATS)
        if isinstance(error, UnidentifiedImageError):
            raise ValueError(f"Pillow knows it as none of {', '.join(FORMATS)}") from error
        raise


def _scale_transparent_level(image: ImageFile.ImageFile) -> None:
    """Gives the transparent level of a grey PNG of 2 or 4 bits the range of its pixels, which Pillow scales to 8."""
    clear, mode = image.info.get("transparency"), image.tile[0].args if image.tile else None
    if image.format == "PNG" and isinstance(clear, int) and mode in ("L", "L;2", "L;4"):
        highest = {"L": 255, "L;2": 3, "L;4": 15}[mode]
        image.info["transparency"] = (clear & highest) * 255 // highest  # only the low bits count


def _grey_range(image: ImageFile.ImageFile) -> tuple[int | None, bool]:
    """The highest level of grey samples of more than 8 bits, and whether it is black; None if Pillow scales them.

    Raises:
        ValueError: the file does not say what its values mean.
    """
    inverted = False
    highest = 65535 if image.mode.startswith("I") else None  # PNG has 16 bits, and Pillow scales PGM to them
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tags = image.tag_v2
        bits = tags.get(TiffImagePlugin.BITSPERSAMPLE, (1,))
        for number in tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,)):
            if number != 1:
                raise ValueError(f"it holds {SAMPLE_FORMATS.get(number, 'values')}, whose range is unknown")
        if bits[0] > 16:
            raise ValueError(f"it holds integers of {bits[0]} bits, whose range is unknown")
        if image.mode == "RGBA" and TiffImagePlugin.EXTRASAMPLES not in tags:
            raise ValueError("it has a fourth channel, and no tag ExtraSamples that says what this is")
        highest = None if highest is None else 2 ** bits[0] - 1
        inverted = tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0
    if image.mode == "F":
        raise ValueError("it holds floating-point values, whose range is unknown")
    if image.mode in ("LAB", "HSV"):
        raise ValueError(f"its colour space {image.mode} is not supported: save it as RGB")
    if (
        image.mode == "RGB"
        and image.format == "PNG"
        and image.tile[0].args == "RGB;16B"
        and "transparency" in image.info
    ):
        raise ValueError(
            "its transparent colour has 16 bits, which Pillow does not read: save it with an alpha channel"
        )
    if image.mode == "CMYK" and image.format == "JPEG" and "adobe" not in image.info:
        raise ValueError("it is CMYK without Adobe's marker, which says whether 0 is ink or paper: save it as RGB")
    return highest, inverted


def _turn(image: Image.Image) -> Image.Transpose | None:
    """What turns the image upright, from its EXIF data; None if nothing, or if these cannot be read."""
    try:
        orientation = image.getexif().get(ORIENTATION)
    except Exception:
        orientation = None
    if orientation is None and image.format != "AVIF":  # whose orientation is elsewhere, and copied there
        orientation = _orientation(image.info.get("exif", b""))
    return TURNS.get(orientation or 1)


def _orientation(exif: bytes) -> int:
    """The orientation in EXIF data of which Pillow reads nothing behind the first broken entry; 1 if there is none."""
    try:
        data = exif.removeprefix(b"Exif\0\0")
        order = {b"II": "<", b"MM": ">"}[data[:2]]
        (start,) = struct.unpack_from(f"{order}I", data, 4)
        (num,) = struct.unpack_from(f"{order}H", data, start)
        for place in range(start + 2, start + 2 + 12 * num, 12):
            tag, kind, count, value = struct.unpack_from(f"{order}HHIH", data, place)
            if (tag, kind, count) == (ORIENTATION, 3, 1):
                return value
    except (struct.error, KeyError):
        pass
    return 1


def _scaled(image: Image.Image, highest: int, inverted: bool) -> Image.Image:
    """Grey levels 0 .. `highest` as 8 bits; the level that a PNG file calls transparent becomes white."""
    levels = np.rint(np.arange(highest + 1) * (255 / highest)).astype(np.uint8)
    if inverted:
        levels = levels[::-1]
    if isinstance(clear := image.info.get("transparency"), int) and 0 <= clear <= highest:
        levels[clear] = 255
    return Image.fromarray(levels[np.asarray(image)])


def _without_alpha(image: Image.Image) -> Image.Image:
    """The image on white, as L or RGB."""
    if image.has_transparency_data:
        image = image.convert("LA") if image.mode == "La" else image  # there is no way from La to RGBA
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("L" if image.mode in ("1", "L") else "RGB")


def _square(image: Image.Image, path: Path, crop: str) -> Image.Image:
    width, height = image.size
    if width == height:
        return image
    if crop == "none":
        raise ValueError(f"{path} is {width} x {height} pixels: not square, and dataset.crop is none")
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))
