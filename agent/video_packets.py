"""What a packet of H.264 or H.265 would cost to decode, read from its NAL units beforehand.

A packet of a few bytes may announce a picture of any size, or cover one picture a thousand times,
and no call into a decoder can be ended once it has begun. So sizes are read from the parameter
sets, and slices are counted. Knows Annex B; decodes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from groundstream.enums import VideoCodec
from groundstream.errors import FrameTooCostly, InvalidFrame

_START = b"\0\0\1"
_MAX_UNITS = 1000
_MAX_SETS = 8
_MAX_SET_BYTES = 1024
_MAX_DECODED_PIXELS = 2**29
"""Of all slices of a packet, each of which may cover the whole picture; a second or two."""
_REORDERED_PICTURES = 18
"""Pictures that a decoder may hold beside those that later ones refer to."""
_MAX_REFERENCES = 16
_PLANES = {0: 1.0, 1: 1.5, 2: 2.0, 3: 3.0}
"""Samples per pixel by chroma_format_idc."""
_WITH_CHROMA_FORMAT = frozenset({44, 83, 86, 100, 110, 118, 122, 128, 134, 135, 138, 139, 244})
"""Profiles of H.264 whose parameter sets say more."""
_MAX_EXP_GOLOMB_BITS = 32
_NOT_A_SET = "a parameter set cannot be read; send those that the encoder wrote"


@dataclass(frozen=True)
class VideoShape:
    """What a sequence parameter set says of the pictures that follow."""

    width: int
    height: int
    """As coded, in pixels; what is shown may be a few less."""
    decoder_bytes: int
    """Memory that a decoder of such pictures may come to hold."""

    @property
    def num_pixels(self) -> int:
        """Of one picture."""
        return self.width * self.height


def read_packet(
    data: bytes, codec: VideoCodec, shape: VideoShape | None
) -> tuple[VideoShape | None, int]:
    """The largest shape that holds in or after this packet, and the number of its slices.

    Args:
        data: one access unit, or parameter sets alone.
        codec: what it is.
        shape: what held before.

    Raises:
        InvalidFrame: no Annex B, a parameter set that cannot be read, or more than one picture.
        FrameTooCostly: out of proportion many units.
    """
    num_sets = num_slices = num_pictures = 0
    announced: VideoShape | None = None
    is_h264 = codec is VideoCodec.H264
    for start, end in _units(data):
        first = data[start]
        if is_h264:
            kind = first & 0x1F
            is_set, is_slice = kind == 7, kind in (1, 2, 5)
            begins = is_slice and end - start > 1 and bool(data[start + 1] & 0x80)
        else:
            kind = first >> 1 & 0x3F
            is_set, is_slice = kind == 33, kind < 32
            begins = is_slice and end - start > 2 and bool(data[start + 2] & 0x80)
        num_sets += is_set
        if num_sets > _MAX_SETS:
            raise FrameTooCostly(f"more than {_MAX_SETS} parameter sets in one packet; send one")
        if is_set:
            found = _read_set(data[start:end], is_h264=is_h264)
            if announced is None or found.num_pixels > announced.num_pixels:
                announced = found
        num_slices += is_slice
        num_pictures += begins
    # A picture of H.264 may come as two fields.
    if num_pictures > (2 if is_h264 else 1):
        raise InvalidFrame("the packet holds several pictures; send one access unit in each")
    if num_slices and not num_pictures:
        raise InvalidFrame("the packet begins within a picture; send whole access units")
    return announced or shape, num_slices


def check_slices(shape: VideoShape, num_slices: int) -> None:
    """Refuse a packet that covers its picture too often.

    Raises:
        FrameTooCostly: out of proportion many slices.
    """
    if num_slices * shape.num_pixels > _MAX_DECODED_PIXELS:
        raise FrameTooCostly(
            f"the packet has {num_slices} slices of a picture of {shape.width}x{shape.height}; "
            "encode with fewer"
        )


def _units(data: bytes) -> Iterator[tuple[int, int]]:
    """Where each NAL unit begins and ends, its start code left out."""
    if not data.startswith((_START, b"\0" + _START)):
        raise InvalidFrame(
            f"not in Annex B form (the bytes begin with {data[:16].hex(' ', 4) or 'nothing'}); "
            "put a start code before every NAL unit"
        )
    at = data.find(_START)
    for _ in range(_MAX_UNITS):
        start = at + len(_START)
        at = data.find(_START, start)
        end = len(data) if at < 0 else at
        if end > start:
            yield start, end
        if at < 0:
            return
    raise FrameTooCostly(f"the packet has more than {_MAX_UNITS} NAL units; encode with fewer")


def _read_set(unit: bytes, *, is_h264: bool) -> VideoShape:
    # What is longer than that holds nothing of ours so far down; what follows is not read.
    bits = _Bits(unit[:_MAX_SET_BYTES])
    shape = _h264_shape(bits) if is_h264 else _h265_shape(bits)
    if shape.width < 1 or shape.height < 1:
        raise InvalidFrame(_NOT_A_SET)
    return shape


def _h264_shape(bits: _Bits) -> VideoShape:
    """7.3.2.1.1 of ITU-T H.264, up to the size."""
    bits.skip(8)
    profile = bits.take(8)
    bits.skip(16)
    bits.number()
    chroma, depth = 1, 8
    if profile in _WITH_CHROMA_FORMAT:
        chroma = bits.number()
        if chroma == 3:
            bits.skip(1)
        depth = 8 + max(bits.number(), bits.number())
        bits.skip(1)
        if bits.take(1):
            _skip_scaling_lists(bits, 12 if chroma == 3 else 8)
    bits.number()
    order = bits.number()
    if order == 0:
        bits.number()
    elif order == 1:
        bits.skip(1)
        bits.number()
        bits.number()
        for _ in range(min(bits.number(), 255)):
            bits.number()
    references = bits.number()
    bits.skip(1)
    width = 16 * (bits.number() + 1)
    rows = bits.number() + 1
    height = 16 * rows * (1 if bits.take(1) else 2)
    return _shape(width, height, chroma, depth, min(references, _MAX_REFERENCES))


def _skip_scaling_lists(bits: _Bits, count: int) -> None:
    for index in range(count):
        if not bits.take(1):
            continue
        last = following = 8
        for _ in range(16 if index < 6 else 64):
            if following:
                following = (last + bits.signed_number()) & 0xFF
            last = following or last


def _h265_shape(bits: _Bits) -> VideoShape:
    """7.3.2.2.1 of ITU-T H.265, up to the depth."""
    bits.skip(16 + 4)
    num_sub_layers = bits.take(3)
    bits.skip(1 + 88 + 8)
    layers = [(bits.take(1), bits.take(1)) for _ in range(num_sub_layers)]
    if num_sub_layers:
        bits.skip(2 * (8 - num_sub_layers))
    for has_profile, has_level in layers:
        bits.skip(88 * has_profile + 8 * has_level)
    bits.number()
    chroma = bits.number()
    if chroma == 3:
        bits.skip(1)
    width, height = bits.number(), bits.number()
    if bits.take(1):
        for _ in range(4):
            bits.number()
    depth = 8 + max(bits.number(), bits.number())
    # References and pictures that wait share one buffer.
    return _shape(width, height, chroma, depth, references=0)


def _shape(width: int, height: int, chroma: int, depth: int, references: int) -> VideoShape:
    if chroma not in _PLANES or depth > 16:
        raise InvalidFrame(_NOT_A_SET)
    sample_bytes = 1 if depth == 8 else 2
    picture_bytes = int(width * height * _PLANES[chroma] * sample_bytes)
    return VideoShape(width, height, picture_bytes * (references + _REORDERED_PICTURES))


class _Bits:
    """Reads a NAL unit bit by bit, without the bytes that keep start codes out of it."""

    def __init__(self, unit: bytes) -> None:
        content = unit.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(content, "big")
        self._left = 8 * len(content)

    def skip(self, count: int) -> None:
        """Pass over so many bits."""
        self._left -= count
        if self._left < 0:
            raise InvalidFrame(_NOT_A_SET)

    def take(self, count: int) -> int:
        """So many bits as a number."""
        self.skip(count)
        return self._value >> self._left & (1 << count) - 1

    def number(self) -> int:
        """An Exp-Golomb number, `ue(v)`."""
        left = self._value & (1 << self._left) - 1
        zeros = self._left - left.bit_length()
        if zeros > _MAX_EXP_GOLOMB_BITS:
            raise InvalidFrame(_NOT_A_SET)
        self.skip(zeros)
        return self.take(zeros + 1) - 1

    def signed_number(self) -> int:
        """An Exp-Golomb number that may be negative, `se(v)`."""
        value = self.number()
        return (value + 1) // 2 if value % 2 else -(value // 2)
