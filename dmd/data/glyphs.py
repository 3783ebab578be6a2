"""Pictures of characters, drawn by Pillow from a font: colour fonts with bitmaps, and fonts of outlines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dmd.provenance import outside_files

STRIKES = (109, 136, 128, 160, 96, 72, 64, 48, 32, 20)  # usual sizes of bitmaps in colour fonts; 109 is Noto's
MOST_SIDE = 1 << 13  # pixels of a glyph before it is resized
MARGIN = 16  # a glyph has a margin of one part in so many of its longer side
NONE = "\U0010ffff"  # a code point that is no character, for which a font draws what it draws for missing ones


def draw(file: Path, characters: Sequence[str], *, resolution: int) -> np.ndarray:
    """Each character in the middle of a white square.

    Args:
        file: a font that FreeType reads. Glyphs are drawn at the size of its bitmaps, or at `resolution` or more if it
            has outlines, and then resized (Lanczos).
        resolution: side of a picture, in pixels.

    Returns:
        uint8 (N, 3, resolution, resolution).

    Raises:
        ValueError: the file is no such font, or has no glyph of a character, which the message names.
    """
    with outside_files.reading(file, "a font"):
        font = _font(file, resolution)
        missing = np.asarray(_picture(font, NONE))
    pictures = np.empty((len(characters), 3, resolution, resolution), np.uint8)
    for number, character in enumerate(characters):
        with outside_files.told(file, "a font"):
            picture = _picture(font, character)
        if picture.getextrema() == ((255, 255),) * 3 or np.array_equal(np.asarray(picture), missing):
            raise ValueError(f"{file} has no glyph of U+{ord(character):04X}")
        pictures[number] = np.asarray(_resized(picture, resolution)).transpose(2, 0, 1)
    return pictures


def _font(file: Path, resolution: int) -> Any:
    """The font at the first size that it has; OSError of the library if it cannot be read."""
    from PIL import ImageFont

    sizes = (max(resolution, STRIKES[0]), *STRIKES)  # a font of outlines has the first, one of bitmaps another
    for size in sizes:
        try:  # with the basic layout a character is drawn alone, whatever other libraries the machine has
            font = ImageFont.truetype(str(file), size, layout_engine=ImageFont.Layout.BASIC)
            font.getbbox("x")
            return font
        except OSError as error:
            if size == sizes[-1]:
                raise error
    raise AssertionError


def _picture(font: Any, character: str) -> Any:
    """The character at the size of the font, in the middle of a white RGB square with a margin."""
    from PIL import Image, ImageDraw

    left, top, right, bottom = font.getbbox(character)
    width, height = max(1, int(right - left)), max(1, int(bottom - top))
    side = max(width, height)
    if side > MOST_SIDE:
        raise ValueError(f"a glyph has {side} pixels, more than {MOST_SIDE}")
    side += 2 * (side // MARGIN)
    picture = Image.new("RGB", (side, side), "white")
    corner = ((side - width) // 2 - left, (side - height) // 2 - top)
    ImageDraw.Draw(picture).text(corner, character, font=font, fill="black", embedded_color=True)
    return picture


def _resized(picture: Any, resolution: int) -> Any:
    from PIL import Image

    return picture.resize((resolution, resolution), Image.Resampling.LANCZOS)
