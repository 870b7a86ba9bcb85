"""Any bytes are a picture or are refused by their own error, at a cost that their size bounds.

A hundred made-up inputs each in the gate; `make fuzz` tries 100,000 of each.
"""

from __future__ import annotations

import contextlib
import dataclasses
import struct
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.frame import read_frame
from groundstream.errors import InvalidFrame
from tests.fuzzing import LIMITS, PICTURES, mutated

pytestmark = [
    pytest.mark.fuzz,
    # Pillow complains of damaged metadata, and reads the picture all the same.
    pytest.mark.filterwarnings("ignore::UserWarning:PIL"),
]

RLE_BMP = (
    b"BM" + struct.pack("<IHHI", 1200, 0, 0, 1078)
    + struct.pack("<IiiHHIIiiII", 40, 64, 16, 1, 8, 1, 66, 0, 0, 256, 0) + bytes(1024)
    + b"\x40\x07\0\0" * 16 + b"\0\1"
)  # fmt: skip


@given(encoded=st.one_of(mutated(PICTURES), st.binary(max_size=200)))
def test_images(encoded: bytes) -> None:
    try:
        frame = read_frame(encoded, limits=LIMITS)
        pixels, grey = frame.rgb(), frame.grey(8)
    except InvalidFrame:
        return
    assert pixels.shape == (frame.height, frame.width, 3)
    assert pixels.dtype == grey.dtype == np.uint8


_MARKERS = st.sampled_from(
    [b"\xff\xe0\x00\x02", b"\xff\xe1\x00\x08Exif\0\0", b"\xff\xfe\x00\x02", b"\xff\xd0",
     b"\xff\xff", b"\xff\x00", b"\x00", b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x00",
     b"\xff\xdb\x00\x02", b"\xff\xd8", b"\xff\xe2\x00\x10MPF\0II*\0\x08\0\0\0",
     b"\xff\xdd\x00\x04\x00\x01"]
)  # fmt: skip
_CHUNKS = st.sampled_from(
    [b"\0\0\0\0IDAT\x35\xaf\x06\x1e", b"\0\0\0\0teSt\0\0\0\0", b"\0\0\0\x03zTXtc\0\0\0\0\0\0",
     b"\0\0\0\0fdAT\0\0\0\0", b"\0\0\0\0tEXt\0\0\0\0", b"TEST\0\0\0\0", b"ANMF\0\0\0\0"]
)  # fmt: skip
_RUNS = st.sampled_from([b"\xff\x01", b"\0\0", b"\0\2\xff\xff", b"\0\3\1\1\1\0", b"\1\1"])
_STUFFING = st.tuples(
    st.floats(0.0, 1.0), st.one_of(_MARKERS, _CHUNKS, _RUNS, st.binary(min_size=1, max_size=4)),
    st.sampled_from([1, 10, 50, 300, 5_000, 50_000]),
)  # fmt: skip
_READ_S, _READ_S_PER_MB = 0.1, 0.1
_DECODE_BYTES = 40_000_000
"""Memory that a picture of at most 100,000 pixels may take at most, whatever its bytes say."""


def _stuffed(original: bytes, stuffings: list[tuple[float, bytes, int]]) -> bytes:
    content = original
    for place, what, count in stuffings:
        at = int(place * len(content))
        content = content[:at] + what * count + content[at:]
    return content


@given(
    number=st.integers(0, len(PICTURES)),
    stuffings=st.lists(_STUFFING, min_size=1, max_size=3),
)
def test_costs_of_pictures(number: int, stuffings: list[tuple[float, bytes, int]]) -> None:
    """Time by the byte to read the header, and time and memory by the pixel to decode."""
    encoded = _stuffed([*PICTURES, RLE_BMP][number], stuffings)
    limits = dataclasses.replace(LIMITS, max_bytes=16_000_000)
    may_take_s = _READ_S + _READ_S_PER_MB * len(encoded) / 1e6
    started_s = time.thread_time()
    try:
        frame = read_frame(encoded, limits=limits)
    except InvalidFrame:
        return
    finally:
        assert time.thread_time() - started_s < may_take_s
    started_s = time.thread_time()
    with contextlib.suppress(InvalidFrame):
        frame.rgb()
    assert time.thread_time() - started_s < 2 * may_take_s + 0.5
    tracemalloc.start()  # Counting memory takes time, too.
    with contextlib.suppress(InvalidFrame):
        frame.rgb()
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most_bytes < _DECODE_BYTES + 4 * len(encoded)
