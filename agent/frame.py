"""One picture of a stream: its encoded bytes, its size, its digest and, on demand, its pixels.

Sizes are read from the header before a single pixel is decoded, so a bomb costs nothing. Pictures
are seen as a viewer shows them: turned as their EXIF says, transparency over white. Knows nothing
of sessions, models or where the bytes came from. The only reader of images from outside.
"""

from __future__ import annotations

import hashlib
import io
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from agent.picture_cost import picture_cost
from groundstream.errors import FrameTooCostly, FrameTooLarge, InvalidFrame
from groundstream.video.pictures import FORMATS, UNREADABLE, upright, upright_size
from groundstream.video.pictures import RGBArray as RGBArray

_SHOWN = 48
_HEADER_S = 1.0
_DECODE_S = 5.0
"""Processor time that reading a header and decoding a picture may take; the largest picture that
is allowed takes a fifth of that. A busy machine makes no picture costly."""
_BLOCK_BYTES = 16_384
"""Handed to the decoder at a time; the limit is looked at between two of them."""
_WEBP_TURN = threading.Lock()
"""Held while a WebP is decoded: one of 0.3 MB may have 65,536 sets of prefix codes, whose tables
take 370 to 500 MB whatever its size is, and nothing tells before they are made."""


@dataclass(frozen=True)
class FrameLimits:
    """What the service is willing to decode."""

    max_bytes: int = 16 * 1024 * 1024
    """Largest encoded image, in bytes."""
    max_pixels: int = 33_177_600
    """Largest width x height (default: 8K UHD)."""
    max_aspect: float = 50.0
    """Largest ratio of the longer to the shorter side."""
    max_boxes: int = 1000
    """Boxes a client may send with a frame; every hundred is one more prompt for each question."""


class Picture(Protocol):
    """One frame of a stream, before or after it was decoded."""

    @property
    def width(self) -> int: ...
    @property
    def height(self) -> int: ...
    @property
    def index(self) -> int: ...
    @property
    def capture_time_ns(self) -> int: ...
    @property
    def num_bytes(self) -> int:
        """What keeping it takes."""

    def grey(self, least_px: int) -> NDArray[np.uint8]:
        """(rows, columns) uint8 luminance, perhaps smaller than the frame."""

    def still(self) -> Frame:
        """It as the stages take it."""


@dataclass(frozen=True)
class Frame:
    """An encoded image with everything the service needs to know before decoding it."""

    encoded: bytes
    """JPEG, PNG, WebP or BMP bytes as the client sent them."""
    width: int
    height: int
    """Of the upright picture."""
    digest: str
    """BLAKE2b-256 of the encoded bytes, in hexadecimal."""
    index: int = 0
    """The client's sequence number."""
    capture_time_ns: int = 0
    """The client's clock at capture, nanoseconds; echoed to the bit, never interpreted."""

    @property
    def num_bytes(self) -> int:
        """Of its encoded bytes."""
        return len(self.encoded)

    def still(self) -> Frame:
        """Itself; see `Picture`."""
        return self

    def rgb(self) -> RGBArray:
        """Decode to (height, width, 3) uint8 RGB.

        Raises:
            InvalidFrame: the body of the image is truncated or damaged.
            FrameTooCostly: it takes too long.
        """
        with _decoding(self.encoded) as image:
            return np.asarray(upright(image).convert("RGB"))

    def grey(self, least_px: int) -> NDArray[np.uint8]:
        """Decode to (rows, columns) uint8 luminance, perhaps smaller than the frame.

        A JPEG is decoded at a half, a quarter or an eighth of its size where its longer side
        stays at least `least_px`; that saves most of the time.

        Raises:
            InvalidFrame: the body of the image is truncated or damaged.
            FrameTooCostly: it takes too long.
        """
        with _decoding(self.encoded) as image:
            shrink = least_px / max(image.size)
            if shrink < 1.0:
                wanted = tuple(max(1, round(side * shrink)) for side in image.size)
                image.draft("L", (wanted[0], wanted[1]))
            return np.asarray(upright(image).convert("L"))


def read_frame(
    encoded: bytes,
    *,
    limits: FrameLimits | None = None,
    index: int = 0,
    capture_time_ns: int = 0,
) -> Frame:
    """A frame from encoded bytes; reads the header only.

    Raises:
        InvalidFrame: empty, or not a JPEG, PNG, WebP or BMP image.
        FrameTooLarge: more bytes or pixels, or a more extreme shape, than `limits` allow.
        FrameTooCostly: its structure alone would take too long to read or decode.
    """
    limits = limits or FrameLimits()
    if not encoded:
        raise InvalidFrame("the image is empty; send JPEG, PNG, WebP or BMP bytes")
    if len(encoded) > limits.max_bytes:
        raise FrameTooLarge(
            f"the image has {len(encoded)} bytes, the limit is {limits.max_bytes}; compress it"
        )
    picture_cost(encoded)
    width, height = _header_size(encoded)
    if width * height > limits.max_pixels:
        raise FrameTooLarge(
            f"the image is {width}x{height} pixels, the limit is {limits.max_pixels} pixels; "
            "scale it down"
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise FrameTooLarge(
            f"the image is {width}x{height}: one side is more than {limits.max_aspect:g} times "
            "the other; crop it"
        )
    digest = hashlib.blake2b(encoded, digest_size=32).hexdigest()
    return Frame(encoded, width, height, digest, index, capture_time_ns)


class _TimedBytes(io.BytesIO):
    """Bytes that can be read for so much processor time of this thread; then decoding ends."""

    def __init__(self, content: bytes, limit_s: float) -> None:
        super().__init__(content)
        self._until_s = time.thread_time() + limit_s

    def read(self, size: int | None = -1, /) -> bytes:
        """As of any file.

        Raises:
            FrameTooCostly: time is up.
        """
        if time.thread_time() > self._until_s:
            raise FrameTooCostly("the image takes too long to decode; encode it again, as baseline")
        return super().read(size)

    def getbuffer(self) -> memoryview:
        """Not offered: decoders would take all at once."""
        raise io.UnsupportedOperation


@contextmanager
def _decoding(encoded: bytes) -> Iterator[Image.Image]:
    """The image to be decoded within: in its turn, within the time, its errors by type."""
    try:
        with (
            _WEBP_TURN if encoded[8:12] == b"WEBP" else nullcontext(),
            _opened(encoded, _DECODE_S) as image,
        ):
            yield image
    except UNREADABLE as error:
        raise InvalidFrame(
            f"the image body cannot be decoded ({error}); send the complete file"
        ) from error


def _opened(encoded: bytes, limit_s: float) -> Image.Image:
    image = Image.open(_TimedBytes(encoded, limit_s), formats=FORMATS)
    if isinstance(image, ImageFile.ImageFile):
        image.decodermaxblock = _BLOCK_BYTES
    return image


def _header_size(encoded: bytes) -> tuple[int, int]:
    """(width, height) from the header alone.

    Pillow's own bomb guard raises before we can name our limit, so its error is mapped too.
    """
    try:
        with _opened(encoded, _HEADER_S) as image:
            width, height = upright_size(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FrameTooLarge(
            "the header says more pixels than anybody here is willing to decode; scale it down"
        ) from error
    except UNREADABLE as error:
        start = encoded[:_SHOWN].hex(" ", 4)
        raise InvalidFrame(
            f"not a JPEG, PNG, WebP or BMP image (the bytes begin with {start})"
        ) from error
    if width < 1 or height < 1:
        raise InvalidFrame(f"the image header says {width}x{height}; both sides must be positive")
    return width, height


def frame_from_rgb(
    rgb: RGBArray, *, index: int = 0, capture_time_ns: int = 0, jpeg_quality: int | None = 92
) -> Frame:
    """A frame from (height, width, 3) uint8 RGB pixels, as JPEG, or PNG when quality is None.

    Raises:
        InvalidFrame: the array is not uint8 RGB or has an empty side.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3 or 0 in rgb.shape:
        raise InvalidFrame(f"expected (height, width, 3) uint8 RGB, got {rgb.shape} {rgb.dtype}")
    buffer = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(rgb))
    if jpeg_quality is None:
        image.save(buffer, format="PNG")
    else:
        image.save(buffer, format="JPEG", quality=jpeg_quality)
    return read_frame(buffer.getvalue(), index=index, capture_time_ns=capture_time_ns)


def load_frame(path: Path, *, limits: FrameLimits | None = None) -> Frame:
    """A frame from an image file.

    Raises:
        InvalidFrame: the file cannot be read or is not an image.
    """
    try:
        encoded = path.read_bytes()
    except OSError as error:
        raise InvalidFrame(f"cannot read {path}: {error.strerror}") from error
    return read_frame(encoded, limits=limits)
