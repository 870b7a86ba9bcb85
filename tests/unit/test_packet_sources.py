"""Sources that pass packets on: numbered as shown, without gaps, decoded where they must be."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import av
import numpy as np
import pytest

from groundstream.types import OutgoingFrame, OutgoingPacket, VideoCodec, VideoFormat
from groundstream.video.coded import Coded, SourcePacket
from groundstream.video.live import SourceFrame, _Waiting
from groundstream.video.playback import _Numbers, play_packets
from groundstream.video.sources import ImageFolder, VideoFile, open_source
from tests.clips import packets_of, turn_clip, write_clip
from tests.pictures import encoded_image

BOTH = tuple(VideoCodec)
FORMAT = VideoFormat(VideoCodec.H264)


def coded(rank: int, *, is_key: bool = False, run: int = 1) -> Coded:
    return Coded(b"", is_key, FORMAT, (4, 2), run, None, rank=rank)


def items(path: Path, codecs: tuple[VideoCodec, ...] = BOTH) -> list[SourceFrame | SourcePacket]:
    return list(VideoFile(str(path)).packets(codecs))


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
@pytest.mark.parametrize("codec", BOTH)
@pytest.mark.parametrize("b_frames", [0, 3])
def test_packets_are_numbered_in_the_order_of_showing(
    tmp_path: Path, suffix: str, codec: VideoCodec, b_frames: int
) -> None:
    path = write_clip(tmp_path / f"a{suffix}", 40, codec=codec, b_frames=b_frames)
    found = items(path)
    assert len(found) == 40
    shown = {}
    for item in found:
        assert isinstance(item, SourcePacket)
        assert item.coded.format.codec is codec
        assert item.coded.data.startswith((b"\0\0\1", b"\0\0\0\1"))
        shown[item.coded.rank] = item.pts_s
    assert sorted(shown) == list(range(40))
    for rank in range(40):
        assert shown[rank] - shown[0] == pytest.approx(rank / 30, abs=0.002)
    assert found[0].coded.is_key
    assert bool(b_frames) == any(item.coded.late_s > 0 for item in found)
    assert [item.due_s for item in found] == sorted(item.due_s for item in found)


def test_only_what_the_service_takes_is_passed_on(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 5, codec=VideoCodec.H265)
    assert all(isinstance(item, SourcePacket) for item in items(path))
    for codecs in ((), (VideoCodec.H264,)):
        found = items(path, codecs)
        assert [type(item) for item in found] == 5 * [SourceFrame]
    assert len(list(VideoFile(str(path)))) == 5


def test_a_video_that_lies_on_its_side_is_decoded_here(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "phone.mp4", 5, b_frames=2)
    turn_clip(path, (0, 1, -1, 0))
    found = items(path)
    assert len(found) == 5
    for item in found:
        assert isinstance(item, SourceFrame)
        assert item.rgb.shape == (160, 120, 3)


def test_a_stream_that_is_joined_in_its_middle_begins_with_a_key_frame(tmp_path: Path) -> None:
    whole = write_clip(tmp_path / "a.ts", 60, b_frames=2).read_bytes()
    cut = tmp_path / "b.ts"
    cut.write_bytes(whole[: 188 * 2] + whole[len(whole) // 3 // 188 * 188 :])
    found = items(cut)
    assert isinstance(found[0], SourcePacket)
    assert found[0].coded.is_key
    assert 20 <= len(found) < 60
    assert sorted(item.coded.rank for item in found) == list(range(len(found)))


def test_joined_pieces_whose_clock_goes_back_are_numbered_on(tmp_path: Path) -> None:
    pieces = [write_clip(tmp_path / f"{n}.ts", 30, b_frames=2, start_s=3.0) for n in (1, 2)]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    found = items(joined)
    assert sorted(item.coded.rank for item in found) == list(range(60))
    times = [item.due_s for item in found]
    assert times == sorted(times)
    assert times[-1] == pytest.approx(59 / 30, abs=0.3)


def test_a_reader_that_falls_behind_goes_on_with_a_key_frame() -> None:
    waiting = _Waiting()
    for rank in range(60):
        assert waiting.put(coded(rank, is_key=not rank % 25), 0.0) == 0
    assert waiting.put(coded(60), 0.0) == 61
    assert len(waiting) == 0
    assert [waiting.put(coded(rank, is_key=not rank % 25), 0.0) for rank in range(61, 77)] == [
        *(14 * [1]),
        0,
        0,
    ]
    taken = [waiting.take()[0] for _ in range(2)]
    assert [packet.rank for packet in taken if isinstance(packet, Coded)] == [75, 76]


def test_numbers_go_on_when_the_source_is_opened_again() -> None:
    numbers = _Numbers()

    def number(packet: Coded) -> int | None:
        return numbers.of_packet(SourcePacket(packet, 0.0))

    assert [number(coded(rank, is_key=not rank)) for rank in (0, 3, 1, 2)] == [0, 3, 1, 2]
    # What builds on packets of the connection before is left out, also after a key frame.
    assert number(coded(4, run=2)) is None
    assert number(coded(5, is_key=True, run=2)) == 4
    assert number(coded(4, run=2)) is None
    assert number(coded(6, run=2)) == 5
    assert numbers.next() == 6


async def test_a_file_plays_at_its_pace(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 15, b_frames=2)
    started_s = time.monotonic()
    started_ns = time.time_ns()
    sent = [item async for item in play_packets(VideoFile(str(path)), BOTH)]
    assert 0.3 < time.monotonic() - started_s < 5.0
    assert all(isinstance(item, OutgoingPacket) for item in sent)
    assert [item.sequence for item in sent] == [packet.sequence for packet in packets_of(path)]
    taken = sorted((item.sequence, item.capture_time_ns - started_ns) for item in sent)
    steps_s = np.diff([time_ns for _, time_ns in taken]) / 1e9
    assert float(np.median(steps_s)) == pytest.approx(1 / 30, abs=0.015)


async def test_what_has_no_packets_is_sent_as_pictures(tmp_path: Path) -> None:
    for number in range(2):
        (tmp_path / f"{number}.png").write_bytes(encoded_image(number, kind="PNG"))
    source = open_source(str(tmp_path), fps=100.0)
    assert isinstance(source, ImageFolder)
    sent = [item async for item in play_packets(source, BOTH)]
    assert [type(item) for item in sent] == 2 * [OutgoingFrame]
    clip = write_clip(tmp_path / "a.mp4", 3)
    turn_clip(clip, (0, 1, -1, 0))
    turned = [item async for item in play_packets(VideoFile(str(clip)), BOTH)]
    assert [item.sequence for item in turned] == [0, 1, 2]
    assert all(isinstance(item, OutgoingFrame) for item in turned)


def test_pictures_that_were_read_do_not_wait_for_the_garbage_collector(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 20)
    gc.collect()
    gc.disable()
    try:
        assert len([picture.rgb.shape for picture in VideoFile(str(path))]) == 20
        kept = [one for one in gc.get_objects() if type(one) is av.VideoFrame]
    finally:
        gc.enable()
    assert len(kept) < 3
