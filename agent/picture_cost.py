"""What a picture would cost to read and to decode, found out before either is done.

A few kilobytes can announce minutes of work: a progressive JPEG with 150,000 empty scans, sixteen
megabytes of empty segments in front of a picture, a run-length coded BMP. The structure of the
encoded bytes is walked here, at most a few thousand steps whatever they say, and what costs too
much is refused. Knows the containers' structure, and nothing of pixels.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from groundstream.errors import FrameTooCostly

MAX_JPEG_SCANS = 40
"""An encoder writes about ten; each one goes over the whole picture again."""
MAX_JPEG_SEGMENTS = 600
"""With a colour profile in 255 parts, and metadata."""
MAX_EXIF_BYTES = 262_144
MAX_PNG_OTHERS = 256
"""Chunks that hold no pixels."""
MAX_PNG_COMPRESSED = 16
"""Of these, compressed ones: each may become a megabyte."""
LEAST_PNG_CHUNK_BYTES = 512
"""Mean size of chunks that hold pixels, beyond the first 64."""
MAX_WEBP_CHUNKS = 1024
MAX_RLE_PIXELS = 524_288
"""Of a run-length coded BMP, which is decoded byte by byte."""
MAX_RLE_BYTES = 131_072
"""Each run costs about two microseconds, also one that paints nothing: 0.16 s in all."""
MAX_JUNK = 64
"""Bytes between the segments of a JPEG that belong to none."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_COMPRESSED = frozenset({b"zTXt", b"iTXt", b"iCCP"})
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
"""Ends the entropy-coded data of a scan: neither a stuffed byte, a restart nor padding."""
_STANDALONE = frozenset({0x01, 0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""Markers without a length; the reserved ones have one by the standard, but Pillow reads none."""
_APP1, _SOS, _EOI = 0xE1, 0xDA, 0xD9


@dataclass(frozen=True)
class PictureCost:
    """What was counted; zeros where the format has no such thing."""

    num_parts: int = 0
    """Segments or chunks."""
    num_scans: int = 0


def picture_cost(encoded: bytes) -> PictureCost:
    """Counts what makes a picture expensive; of bytes that are no picture, nothing.

    Raises:
        FrameTooCostly: reading or decoding it takes out of proportion long.
    """
    if encoded.startswith(b"\xff\xd8\xff"):
        return _jpeg_cost(encoded)
    if encoded.startswith(_PNG):
        return _png_cost(encoded)
    if encoded.startswith(b"RIFF") and encoded[8:12] == b"WEBP":
        return _webp_cost(encoded)
    if encoded.startswith(b"BM"):
        _check_bmp(encoded)
    return PictureCost()


def _jpeg_cost(encoded: bytes) -> PictureCost:
    position, num_segments, num_scans, exif_bytes = 2, 0, 0, 0
    while position + 4 <= len(encoded):
        start = position
        # Padding and bytes that belong to nothing; readers skip them one by one.
        found = _MARKER.search(encoded, position, position + MAX_JUNK + 2)
        if found is None:
            if len(encoded) - start > MAX_JUNK + 2:
                raise FrameTooCostly(
                    f"more than {MAX_JUNK} bytes of this JPEG belong to no segment; encode it again"
                )
            break
        kind = encoded[found.start() + 1]
        position = found.end()
        if kind == _EOI and num_scans:
            break  # Before there is a scan Pillow reads on.
        num_segments += 1
        if num_segments > MAX_JPEG_SEGMENTS:
            raise FrameTooCostly(
                f"the JPEG has more than {MAX_JPEG_SEGMENTS} segments; encode it again without "
                "its metadata"
            )
        if kind in _STANDALONE:
            continue
        if position + 2 > len(encoded):
            break
        (length,) = struct.unpack_from(">H", encoded, position)
        if kind == _APP1:
            exif_bytes += length
            if exif_bytes > MAX_EXIF_BYTES:
                raise FrameTooCostly(
                    f"the JPEG has more than {MAX_EXIF_BYTES} bytes of EXIF; leave them out"
                )
        position += max(length, 2)
        if kind == _SOS:
            num_scans += 1
            if num_scans > MAX_JPEG_SCANS:
                raise FrameTooCostly(
                    f"the JPEG has more than {MAX_JPEG_SCANS} scans; encode it as baseline"
                )
            end = _MARKER.search(encoded, position)
            if end is None:
                break
            position = end.start()
    return PictureCost(num_segments, num_scans)


def _png_cost(encoded: bytes) -> PictureCost:
    position, num_pixel_chunks, num_others, num_compressed = len(_PNG), 0, 0, 0
    most_pixel_chunks = 64 + len(encoded) // LEAST_PNG_CHUNK_BYTES
    while position + 8 <= len(encoded):
        length, kind = struct.unpack_from(">I4s", encoded, position)
        position += 12 + length
        if kind == b"IEND":
            break
        if kind == b"IDAT":
            num_pixel_chunks += 1
        else:
            num_others += 1
        num_compressed += kind in _PNG_COMPRESSED
        if num_pixel_chunks > most_pixel_chunks or num_others > MAX_PNG_OTHERS:
            raise FrameTooCostly(
                f"the PNG has more than {num_pixel_chunks + num_others - 1} chunks for its "
                f"{len(encoded)} bytes; encode it again"
            )
        if num_compressed > MAX_PNG_COMPRESSED:
            raise FrameTooCostly(
                f"the PNG has more than {MAX_PNG_COMPRESSED} compressed texts; leave them out"
            )
    return PictureCost(num_pixel_chunks + num_others)


def _webp_cost(encoded: bytes) -> PictureCost:
    position, num_chunks = 12, 0
    while position + 8 <= len(encoded):
        (length,) = struct.unpack_from("<I", encoded, position + 4)
        position += 8 + length + (length & 1)
        num_chunks += 1
        if num_chunks > MAX_WEBP_CHUNKS:
            raise FrameTooCostly(
                f"the WebP has more than {MAX_WEBP_CHUNKS} chunks; encode it again"
            )
    return PictureCost(num_chunks)


def _check_bmp(encoded: bytes) -> None:
    """Run-length coding (1: bytes, 2: nibbles) is decoded in Python, run by run."""
    if len(encoded) < 34:
        return
    header_bytes, width, height = struct.unpack_from("<Iii", encoded, 14)
    if header_bytes < 40:
        return
    (compression,) = struct.unpack_from("<I", encoded, 30)
    if compression not in (1, 2):
        return
    if width * abs(height) > MAX_RLE_PIXELS or len(encoded) > MAX_RLE_BYTES:
        raise FrameTooCostly(
            f"a run-length coded BMP may have {MAX_RLE_PIXELS} pixels and {MAX_RLE_BYTES} bytes; "
            "send it as PNG"
        )
