"""Small videos made for tests: each picture of one grey, which is its number."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from groundstream.types import OutgoingPacket, VideoCodec
from groundstream.video.sources import SourcePacket, VideoFile

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
    codec: VideoCodec = VideoCodec.H264,
    every: int = 15,
    parameters: str = "",
) -> Path:
    """H.264 or H.265; the left half of each picture is black, so that it shows how it is turned.

    A key frame comes every so many pictures; `parameters` are x264's or x265's own.
    """
    width, height = size
    with av.open(str(path), "w") as container:
        encoder = "libx264" if codec is VideoCodec.H264 else "libx265"
        own = [parameters] if parameters else []
        own.append("scenecut=0" if codec is VideoCodec.H264 else "scenecut=0:log-level=none")
        options = {"bf": str(b_frames), "g": str(every), f"{encoder[3:]}-params": ":".join(own)}
        stream = container.add_stream(encoder, rate=fps, options=options)
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


def packets_of(path: Path, *, first: int = 0) -> list[OutgoingPacket]:
    """A clip's packets as they go over the wire, its first picture numbered so."""
    packets = []
    for item in VideoFile(str(path)).packets(tuple(VideoCodec)):
        assert isinstance(item, SourcePacket)
        coded, number = item.coded, first + item.coded.rank
        packets.append(
            OutgoingPacket(coded.data, coded.format, number, 1000 + number, is_key=coded.is_key)
        )
    return packets


class BitWriter:
    """Writes parameter sets that no encoder would."""

    def __init__(self) -> None:
        self._bits: list[int] = []

    def put(self, value: int, count: int) -> BitWriter:
        """So many bits."""
        self._bits += [value >> place & 1 for place in reversed(range(count))]
        return self

    def number(self, *values: int) -> BitWriter:
        """Exp-Golomb numbers."""
        for value in values:
            self.put(value + 1, 2 * (value + 1).bit_length() - 1)
        return self

    def unit(self, header: bytes) -> bytes:
        """A NAL unit of them, behind its start code."""
        bits = [*self._bits, 1, *itertools.repeat(0, -(len(self._bits) + 1) % 8)]
        content = int("".join(map(str, bits)), 2).to_bytes(len(bits) // 8, "big")
        for last in (3, 2, 1, 0):
            content = content.replace(bytes([0, 0, last]), bytes([0, 0, 3, last]))
        return b"\0\0\0\1" + header + content


def h264_set(width: int, height: int, *, references: int = 1) -> bytes:
    """A sequence parameter set of H.264, sides in whole blocks of 16."""
    bits = BitWriter().put(66, 8).put(0, 8).put(51, 8).number(0, 0, 2, references).put(0, 1)
    bits.number(width // 16 - 1, height // 16 - 1).put(0b1000, 4)
    return bits.unit(b"\x67")


def h265_set(width: int, height: int) -> bytes:
    """The beginning of a sequence parameter set of H.265, which says the size."""
    bits = BitWriter().put(0, 8).put(0, 96).number(0, 1, width, height).put(0, 1).number(0, 0)
    return bits.unit(b"\x42\x01")


def grey_h264(side: int) -> bytes:
    """A key frame of H.264 of one grey, a byte for every block of 16x16."""
    parameters = BitWriter().number(0, 0).put(0, 2).number(0, 0, 0).put(0, 3).number(0, 0, 0)
    picture = BitWriter().number(0, 7, 0).put(0, 4).number(0).put(0, 2).number(0)
    for _ in range((side // 16) ** 2):
        picture.put(0b00100111, 8)  # The mean of what is above and left, and nothing else.
    sets = h264_set(side, side) + parameters.put(0, 3).unit(b"\x68")
    return sets + picture.unit(b"\x65")


def skipped_h264(side: int, number: int, *, slices: int = 1) -> bytes:
    """A packet after it in which nothing moves, said of all the picture `slices` times."""
    units = []
    for index in range(slices):
        first = min(index, 1)  # Only one slice may begin the picture.
        bits = BitWriter().number(first, 5, 0).put(number, 4).put(0, 3)
        units.append(bits.number(0, (side // 16) ** 2 - first).unit(b"\x41"))
    return b"".join(units)
