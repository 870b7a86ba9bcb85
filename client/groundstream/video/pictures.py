"""Pictures as arrays of pixels: read from image files, written as JPEG. Knows no video.

Pictures are seen as a viewer shows them: turned as their EXIF says, transparency over white.
"""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from groundstream.errors import InvalidFrame

RGBArray = NDArray[np.uint8]
"""(height, width, 3) uint8."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What the service reads, too."""
IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""Of files in these formats."""
UNREADABLE = (
    OSError, ValueError, SyntaxError, struct.error, IndexError, KeyError, TypeError,
    OverflowError, EOFError, RecursionError, AttributeError, AssertionError,
)  # fmt: skip
"""What Pillow's readers raise about bytes that are no picture. Memory that is short is no fault of
the sender's."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes a picture upright, by its EXIF orientation."""
_LIES_DOWN = 5
"""From this orientation on, width and height are exchanged."""


def read_picture(path: Path) -> RGBArray:
    """The pixels of an image file.

    Raises:
        InvalidFrame: the file cannot be read or is not an image.
    """
    try:
        return _pixels(path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidFrame(f"{path.name} has too many pixels; scale it down") from error
    except UNREADABLE as error:
        raise _no_picture(error) from error


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image file as it is seen, read from its header.

    Raises:
        InvalidFrame: the file cannot be read or is not an image.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return upright_size(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InvalidFrame(f"{path.name} has too many pixels; scale it down") from error
    except UNREADABLE as error:
        raise _no_picture(error) from error


def decode_picture(encoded: bytes) -> RGBArray:
    """The pixels of an image in memory.

    Raises:
        Exception: one of `UNREADABLE`; it is not an image.
    """
    return _pixels(io.BytesIO(encoded))


def encode_jpeg(rgb: RGBArray, quality: int) -> bytes:
    """The picture as JPEG bytes."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(rgb)).save(buffer, format="JPEG", quality=quality)
    return buffer.getvalue()


def upright(image: Image.Image) -> Image.Image:
    """The picture as a viewer shows it, in 8 bits a channel."""
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I;16"):
        # Pillow would cut off what is above 255.
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", seen.size, "white"), seen)
    return image if turn is None else image.transpose(turn)


def upright_size(image: Image.Image) -> tuple[int, int]:
    """(width, height) of what `upright` gives, without decoding."""
    width, height = image.size
    return (height, width) if _orientation(image) >= _LIES_DOWN else (width, height)


def _pixels(source: Path | io.BytesIO) -> RGBArray:
    with Image.open(source, formats=FORMATS) as image:
        return np.asarray(upright(image).convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """1 to 8 as EXIF counts; 1, upright, where there is none that can be read."""
    if "exif" not in image.info:
        return 1
    try:
        found = image.getexif().get(_ORIENTATION)
    except UNREADABLE:
        return 1
    return found if isinstance(found, int) and found in _TURNS else 1


def _no_picture(error: Exception) -> InvalidFrame:
    if isinstance(error, OSError) and error.strerror:
        return InvalidFrame(f"the file cannot be read: {error.strerror}")
    return InvalidFrame(f"not a complete JPEG, PNG, WebP or BMP image ({error})")
