"""Packets of H.264 and H.265 become pictures, or are refused before they cost anything."""

from __future__ import annotations

import gc
import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.frame import FrameLimits
from agent.settings import VideoSettings
from agent.video_decoder import DecodedFrame, DecoderMemory, VideoDecoder
from agent.video_packets import read_packet
from groundstream.enums import VideoCodec
from groundstream.errors import (
    AgentError,
    FrameTooCostly,
    FrameTooLarge,
    InvalidFrame,
    KeyFrameNeeded,
    Overloaded,
)
from groundstream.types import OutgoingPacket
from tests.clips import (
    GREY_STEP,
    grey_h264,
    h264_set,
    h265_set,
    packets_of,
    skipped_h264,
    write_clip,
)

H264, H265 = VideoCodec.H264, VideoCodec.H265
CODECS = pytest.mark.parametrize("codec", [H264, H265])
SLICE = b"\0\0\1\x65\x80"
"""The first bytes of a slice of H.264 that begins a picture, and of one of H.265."""
SLICE_H265 = b"\0\0\1\x26\x01\x80"


def decoder(
    codec: VideoCodec = H264, memory: DecoderMemory | None = None, **settings: int
) -> VideoDecoder:
    return VideoDecoder(
        codec,
        settings=VideoSettings(**settings),
        limits=FrameLimits(),
        memory=memory or DecoderMemory(2**31),
    )


def decoded(video: VideoDecoder, packets: list[OutgoingPacket]) -> list[DecodedFrame]:
    """All pictures of some packets, those held back too."""
    pictures = []
    for packet in packets:
        video.check(packet.data)
        pictures += video.decode(packet.data, packet.sequence)
    pictures += video.flush()
    return [DecodedFrame(picture, number, 0) for number, picture in pictures]


def grey_number(frame: DecodedFrame) -> float:
    """Which picture of the clip it is, by its grey."""
    rgb = np.asarray(Image.open(io.BytesIO(frame.still().encoded)))
    return (float(rgb[:, rgb.shape[1] * 3 // 4 :].mean()) - 40) / GREY_STEP


@CODECS
@pytest.mark.parametrize("b_frames", [0, 2])
def test_every_picture_comes_out_under_its_number(
    tmp_path: Path, codec: VideoCodec, b_frames: int
) -> None:
    packets = packets_of(write_clip(tmp_path / "a.mp4", 40, b_frames=b_frames, codec=codec))
    assert sorted(packet.sequence for packet in packets) == list(range(40))
    assert [packet.sequence for packet in packets] == list(range(40)) or b_frames
    frames = decoded(decoder(codec), packets)
    assert [frame.index for frame in frames] == list(range(40))
    for frame in frames:
        assert (frame.width, frame.height) == (160, 120)
        assert grey_number(frame) == pytest.approx(frame.index, abs=0.6)
        assert frame.num_bytes >= 160 * 120 * 3 // 2
    grey = frames[7].grey(80)
    assert grey.shape == (60, 80)
    assert grey.dtype == np.uint8
    assert float(grey[:, 60:].mean()) == pytest.approx(40 + 7 * GREY_STEP, abs=3)
    assert frames[7].grey(1000).shape == (120, 160)
    assert frames[7].still() is frames[7].still()
    assert frames[7].still().index == 7


def test_without_b_pictures_each_comes_at_once(tmp_path: Path) -> None:
    for codec in (H264, H265):
        video = decoder(codec)
        for packet in packets_of(write_clip(tmp_path / "a.mp4", 10, codec=codec)):
            video.check(packet.data)
            assert [n for n, _ in video.decode(packet.data, packet.sequence)] == [packet.sequence]


@pytest.mark.parametrize(
    ("codec", "size", "parameters", "options"),
    [
        (H264, (322, 182), "", {}),
        (H264, (320, 240), "cqm=jvt:8x8dct=1", {}),
        (H264, (320, 256), "interlaced=1:ref=4", {}),
        (H265, (322, 182), "", {}),
        (H265, (640, 360), "temporal-layers=2", {}),
    ],
)
def test_sizes_are_read_as_the_decoder_reads_them(
    tmp_path: Path, codec: VideoCodec, size: tuple[int, int], parameters: str, options: dict
) -> None:
    path = write_clip(tmp_path / "a.mp4", 4, codec=codec, size=size, parameters=parameters)
    packets = packets_of(path)
    shape = decoder(codec).check(packets[0].data)
    assert 0 <= shape.width - size[0] < 16
    assert 0 <= shape.height - size[1] < 16
    frame = decoded(decoder(codec), packets)[0]
    assert (frame.width, frame.height) == size


@CODECS
def test_pictures_may_change_their_size(tmp_path: Path, codec: VideoCodec) -> None:
    small = packets_of(write_clip(tmp_path / "a.mp4", 5, codec=codec))
    large = packets_of(write_clip(tmp_path / "b.mp4", 5, codec=codec, size=(320, 240)), first=5)
    frames = decoded(decoder(codec), small + large)
    assert [frame.index for frame in frames] == list(range(10))
    assert {(f.width, f.height) for f in frames[:5]} == {(160, 120)}
    assert {(f.width, f.height) for f in frames[5:]} == {(320, 240)}
    video = decoder(codec, max_pixels=160 * 128)
    for packet in small:
        video.check(packet.data)
        video.decode(packet.data, packet.sequence)
    with pytest.raises(FrameTooLarge, match="pixels; scale it down"):
        video.check(large[0].data)


def test_a_few_bytes_that_announce_a_huge_picture_cost_nothing() -> None:
    for codec, huge in (
        (H264, h264_set(65536, 65536)),
        (H264, h264_set(16384, 1024)),
        (H265, h265_set(16384, 16384)),
        (H265, h265_set(8192, 2048)),
    ):
        started_s = time.thread_time()
        with pytest.raises(FrameTooLarge, match="the limit is 8912896 pixels"):
            decoder(codec).check(huge + (SLICE if codec is H264 else SLICE_H265))
        assert time.thread_time() - started_s < 0.05
    with pytest.raises(FrameTooLarge, match="50 times"):
        decoder().check(h264_set(4096, 64) + SLICE)
    shape, _ = read_packet(h264_set(1920, 1088, references=4), H264, None)
    assert shape is not None
    assert shape.num_pixels == 1920 * 1088
    assert shape.decoder_bytes == 22 * 1920 * 1088 * 3 // 2


def test_the_decoder_has_a_limit_of_its_own(tmp_path: Path) -> None:
    """Should the size be misread here, the picture is refused all the same."""
    packets = packets_of(write_clip(tmp_path / "a.mp4", 2, size=(640, 480)))
    video = decoder(max_pixels=160 * 128)
    with pytest.raises(KeyFrameNeeded, match="cannot be decoded"):
        video.decode(packets[0].data, 0)


def test_a_packet_cannot_cover_its_picture_a_thousand_times() -> None:
    large = h264_set(2048, 2048)
    again = b"\0\0\1\x65\x40"  # A slice that does not begin a picture.
    decoder().check(large + SLICE + 100 * again)
    with pytest.raises(FrameTooCostly, match="129 slices of a picture of 2048x2048"):
        decoder().check(large + SLICE + 128 * again)
    with pytest.raises(FrameTooCostly, match="more than 1000 NAL units"):
        read_packet(SLICE + 1000 * b"\0\0\1\x06", H264, None)
    with pytest.raises(FrameTooCostly, match="8 parameter sets"):
        read_packet(9 * h264_set(64, 64) + SLICE, H264, None)
    with pytest.raises(InvalidFrame, match="several pictures"):
        read_packet(large + 3 * SLICE, H264, None)
    with pytest.raises(InvalidFrame, match="begins within a picture"):
        read_packet(large + again, H264, None)


def test_the_most_that_a_packet_may_cover_takes_its_time_and_no_more() -> None:
    """1.4 KB that say 4 megapixels 128 times; 4 MB of it would take a quarter of an hour."""
    side = 2048
    video = decoder()
    for number, data in enumerate((grey_h264(side), skipped_h264(side, 1))):
        video.check(data)
        assert [n for n, _ in video.decode(data, number)] == [number]
    costly = skipped_h264(side, 2, slices=128)
    assert len(costly) < 1500
    video.check(costly)
    started_s = time.thread_time()
    with pytest.raises(KeyFrameNeeded, match="damaged"):
        video.decode(costly, 2)
    assert time.thread_time() - started_s < 5.0
    with pytest.raises(FrameTooCostly):
        video.check(skipped_h264(side, 3, slices=129))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b"", "Annex B form .the bytes begin with nothing"),
        (b"no video", "Annex B form .the bytes begin with 6e6f2076"),
        (b"\0\0\0\x04\x65\x88\x80\0", "Annex B"),  # Lengths in place of start codes.
        (b"\0\0\1\x09\x10", "holds no picture"),
        (b"\0\0\1\x67\x42", "parameter set cannot be read"),
        (b"\0\0\1\x67" + bytes(40), "parameter set cannot be read"),
        (SLICE, "no parameter sets have come"),
    ],
)
def test_what_is_no_packet_is_refused(data: bytes, error: str) -> None:
    with pytest.raises(InvalidFrame, match=error):
        decoder().check(data)


def test_a_packet_of_too_many_bytes_is_refused() -> None:
    with pytest.raises(FrameTooLarge, match="1001 bytes, the limit is 1000"):
        decoder(max_packet_bytes=1000).check(bytes(1001))


def test_a_decoder_that_is_fed_garbage_says_so(tmp_path: Path) -> None:
    packets = packets_of(write_clip(tmp_path / "a.mp4", 5))
    video = decoder()
    video.check(packets[0].data)
    torn = packets[0].data[: len(packets[0].data) // 2]
    noise = np.random.default_rng(0).bytes(2000).replace(b"\0", b"\1")
    with pytest.raises(KeyFrameNeeded, match="send a key frame"):
        video.decode(torn + noise, 0)


def test_h265_that_builds_on_a_lost_packet_is_refused(tmp_path: Path) -> None:
    packets = packets_of(write_clip(tmp_path / "a.mp4", 10, codec=H265))
    video = decoder(H265)
    with pytest.raises(KeyFrameNeeded):
        decoded(video, [packet for packet in packets if packet.sequence != 4])


def test_memory_is_taken_before_it_is_used_and_given_back(tmp_path: Path) -> None:
    packets = packets_of(write_clip(tmp_path / "a.mp4", 5))
    memory = DecoderMemory(1_000_000)
    video = decoder(memory=memory)
    shape = video.check(packets[0].data)
    assert memory.num_left == 1_000_000 - shape.decoder_bytes
    video.check(packets[0].data)
    assert memory.num_left == 1_000_000 - shape.decoder_bytes
    other = decoder(memory=memory)
    with pytest.raises(Overloaded, match="memory"):
        other.check(packets[0].data)
    del video
    gc.collect()
    other.check(packets[0].data)
    del other
    gc.collect()
    assert memory.num_left == 1_000_000


def test_parameter_sets_may_come_beforehand(tmp_path: Path) -> None:
    packets = packets_of(write_clip(tmp_path / "a.ts", 5))
    units = packets[0].data.split(b"\0\0\1")
    sets = b"".join(b"\0\0\1" + unit.rstrip(b"\0") for unit in units if unit[:1] in b"\x67\x68")
    bare = b"".join(b"\0\0\1" + unit.rstrip(b"\0") for unit in units if unit[:1] == b"\x65")
    assert sets
    assert bare
    with pytest.raises(KeyFrameNeeded, match="parameter sets"):
        decoder().check(bare)
    video = VideoDecoder(
        H264, sets, settings=VideoSettings(), limits=FrameLimits(), memory=DecoderMemory(2**31)
    )
    video.check(bare)
    assert [number for number, _ in video.decode(bare, 3)] == [3]
    with pytest.raises(AgentError):
        VideoDecoder(
            H264,
            b"no sets",
            settings=VideoSettings(),
            limits=FrameLimits(),
            memory=DecoderMemory(2**31),
        )
