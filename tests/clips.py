"""Small videos made for tests: each picture of one grey, which is its number."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

_TICKS_PER_S = 90_000
GREY_STEP = 4


def write_clip(
    path: Path,
    count: int = 60,
    *,
    fps: int = 30,
    size: tuple[int, int] = (160, 120),
    b_frames: int = 0,
    times_s: Sequence[float] | None = None,
    start_s: float = 0.0,
) -> Path:
    """H.264; the left half of each picture is black, so that it shows how it is turned."""
    width, height = size
    with av.open(str(path), "w") as container:
        options = {"bf": str(b_frames), "g": "15"}
        stream = container.add_stream("libx264", rate=fps, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, _TICKS_PER_S)
        for number in range(count):
            pixels = np.full((height, width, 3), 40 + GREY_STEP * (number % 50), np.uint8)
            pixels[:, : width // 2] = 0
            picture = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            at_s = number / fps if times_s is None else times_s[number]
            picture.pts = round((start_s + at_s) * _TICKS_PER_S)
            picture.time_base = Fraction(1, _TICKS_PER_S)
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))
    return path


def turn_clip(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Write (a, b, c, d) into an MP4's display matrix, as a phone does that is held upright."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    at += 4 + (32 if content[at] else 20) + 16
    a, b, c, d = (value * 0x10000 for value in matrix)
    struct.pack_into(">9i", content, at, a, b, 0, c, d, 0, 0, 0, 0x40000000)
    path.write_bytes(content)
