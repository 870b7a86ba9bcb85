"""Any bytes are a packet of video or are refused by their own error, at a bounded cost.

A hundred made-up inputs each in the gate; `make fuzz` tries 100,000 of each.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.frame import FrameLimits
from agent.settings import VideoSettings
from agent.video_decoder import DecodedFrame, DecoderMemory, VideoDecoder
from agent.video_packets import read_packet
from groundstream.enums import VideoCodec
from groundstream.errors import InvalidFrame, Overloaded
from tests.clips import h264_set, h265_set, packets_of, write_clip
from tests.fuzzing import mutated

pytestmark = pytest.mark.fuzz

_SETTINGS = VideoSettings(max_packet_bytes=100_000, max_pixels=100_000)
_MEMORY_BYTES = 10_000_000
_CODECS = st.sampled_from(list(VideoCodec))
_PACKET_S = 1.0
"""Processor time of one packet of at most 100,000 bytes and pixels."""
_UNITS = st.sampled_from(
    [
        b"\0\0\1\x41\x9a\0\0\1", b"\0\0\1\x65\x88\x80", b"\0\0\1\x06\x05\xff", b"\0\0\1\x67\x64",
        b"\0\0\1\x68\xce", b"\0\0\1\x02\x01\xd0", b"\0\0\1\x26\x01\xaf", b"\0\0\1\x42\x01\x01",
        b"\0\0\1\x44\x01\xc0", b"\0\0\1", h264_set(64, 64), h264_set(8192, 8192),
        h265_set(64, 64), h265_set(16384, 16384),
    ]
)  # fmt: skip


@cache
def _packets(codec: VideoCodec) -> list[bytes]:
    """Eight good ones, with B pictures."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_clip(
            Path(folder) / "a.mp4", 8, size=(64, 48), b_frames=2, codec=codec, every=4
        )
        return [packet.data for packet in packets_of(path)]


def _fed(codec: VideoCodec, packets: list[bytes]) -> int:
    """How many pictures a stream's decoder makes of some packets, as a stream has it do."""
    memory = DecoderMemory(_MEMORY_BYTES)
    video, pictures = None, 0
    for number, data in enumerate(packets):
        started_s = time.thread_time()
        try:
            video = video or VideoDecoder(
                codec, settings=_SETTINGS, limits=FrameLimits(), memory=memory
            )
            video.check(data)
            found = video.decode(data, number)
        except (InvalidFrame, Overloaded):
            if video is not None:
                with contextlib.suppress(InvalidFrame):
                    video.flush()
            video = None
            continue
        finally:
            assert time.thread_time() - started_s < _PACKET_S
        for index, picture in found:
            frame = DecodedFrame(picture, index, 0)
            assert frame.width * frame.height <= _SETTINGS.max_pixels
            assert max(frame.grey(40).shape) <= 40
            if not pictures % 5:
                assert frame.still().width == frame.width
            pictures += 1
    assert 0 <= memory.num_left <= _MEMORY_BYTES
    return pictures


def test_good_packets_pass() -> None:
    for codec in VideoCodec:
        assert _fed(codec, _packets(codec)) >= 6


@given(codec=_CODECS, data=st.data())
def test_packets(codec: VideoCodec, data: st.DataObject) -> None:
    good = _packets(codec)
    bad = data.draw(st.lists(mutated(good), min_size=1, max_size=4))
    at = data.draw(st.integers(0, len(good)))
    _fed(codec, [*good[:at], *bad, *good[at:]])


@given(codec=_CODECS, order=st.lists(st.integers(0, 7), max_size=12))
def test_packets_in_any_order(codec: VideoCodec, order: list[int]) -> None:
    good = _packets(codec)
    _fed(codec, [good[number % len(good)] for number in order])


@given(
    codec=_CODECS,
    begun=st.booleans(),
    units=st.lists(
        st.tuples(
            st.one_of(_UNITS, st.binary(max_size=40)),
            st.sampled_from([1, 1, 1, 2, 30, 2000]),
        ),
        max_size=6,
    ),
)
def test_units(codec: VideoCodec, begun: bool, units: list[tuple[bytes, int]]) -> None:
    made = b"".join(unit * count for unit, count in units)
    started_s = time.thread_time()
    with contextlib.suppress(InvalidFrame):
        read_packet(made, codec, None)
    assert time.thread_time() - started_s < 0.1
    first = _packets(codec)[:1] if begun else []
    _fed(codec, [*first, made, _packets(codec)[0] + made])
