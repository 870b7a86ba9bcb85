"""Sources, playback and annotated videos: what a client does with pictures."""

from __future__ import annotations

import itertools
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest

from agent.frame import RGBArray
from deployments.demo.truth import Score, Truth
from deployments.local.watch import _LiveTable
from groundstream.errors import SourceError
from groundstream.locations import shown_location
from groundstream.types import (
    AnswerStatus,
    Detection,
    FrameResult,
    OutgoingFrame,
    QueryResult,
    StageTimings,
)
from groundstream.video.annotated_video import AnnotatedVideo
from groundstream.video.drawing import LabelledBox, draw_boxes, label_colour
from groundstream.video.ffmpeg import Connection
from groundstream.video.playback import play
from groundstream.video.sources import ImageFolder, Reopen, VideoFile, open_source
from tests.pictures import encoded_image

BLACK = np.zeros((64, 96, 3), dtype=np.uint8)


def result_for(sequence: int, box: tuple[float, float, float, float]) -> FrameResult:
    """One box on one frame."""
    detection = Detection(box, "dog", 0.9, 0, 0.9)
    answer = QueryResult("q", 1, AnswerStatus.OK, "", (detection,))
    return FrameResult(sequence, 1, 0, 0, 0, 96, 64, (answer,), False, 1, StageTimings())


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Ten black frames at 20 per second."""
    path = tmp_path / "video.mp4"
    with AnnotatedVideo(path, fps=20.0) as writer:
        for number in range(10):
            writer.add_frame(OutgoingFrame(b"", number), BLACK)
    return path


# ---- sources ----


def test_a_video_file_gives_pictures_with_their_times(video: Path) -> None:
    source = open_source(str(video))
    assert isinstance(source, VideoFile)
    assert source.fps == pytest.approx(20.0)
    pictures = list(source)
    assert len(pictures) == 10
    assert [picture.pts_s for picture in pictures] == pytest.approx([n / 20 for n in range(10)])
    assert pictures[0].rgb.shape == (64, 96, 3)
    assert len(list(source)) == 10  # A file can be read again.


def test_no_picture_of_a_camera_waits_for_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "no_delay.mp4"
    with av.open(path, "w") as written:
        stream = written.add_stream("libx264", rate=20, options={"tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for _ in range(12):
            written.mux(stream.encode(av.VideoFrame.from_ndarray(BLACK, format="rgb24")))
        written.mux(stream.encode())

    def num_read_for(num_pictures: int, *, tolerant: bool) -> int:
        with Connection(str(path), tolerant=tolerant) as connection:
            reading = _Counted(connection._opened)
            connection._opened = reading  # type: ignore[assignment]
            pictures = connection.pictures()
            for _ in range(num_pictures):
                next(pictures)
            return reading.num_packets

    assert num_read_for(3, tolerant=True) == 3
    assert num_read_for(3, tolerant=False) > 3, "a file's pictures are decoded side by side"


class _Counted:
    """A container that counts the packets that are taken from it."""

    def __init__(self, container: av.container.InputContainer) -> None:
        self._container = container
        self.num_packets = 0

    def demux(self) -> Iterator[av.Packet]:
        for packet in self._container.demux():
            self.num_packets += 1
            yield packet

    def close(self) -> None:
        self._container.close()


def test_a_folder_gives_its_images_in_name_order(tmp_path: Path) -> None:
    for number in (2, 1):
        (tmp_path / f"{number}.png").write_bytes(encoded_image(number, kind="PNG"))
    (tmp_path / "notes.txt").write_text("not a picture")
    pictures = list(open_source(str(tmp_path), fps=5.0))
    assert [picture.pts_s for picture in pictures] == [0.0, 0.2]
    first = open_source(str(tmp_path / "1.png"))
    assert isinstance(first, ImageFolder)
    assert np.array_equal(next(iter(first)).rgb, pictures[0].rgb)


def test_sources_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        open_source(str(tmp_path / "nothing.mp4"))
    with pytest.raises(SourceError, match="holds no images"):
        open_source(str(tmp_path))
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    with pytest.raises(SourceError, match=r"cannot open .*broken\.mp4"):
        open_source(str(broken))
    damaged = tmp_path / "damaged.png"
    damaged.write_bytes(b"no image")
    with pytest.raises(SourceError, match=r"damaged\.png"):
        list(open_source(str(damaged)))


def test_passwords_of_cameras_are_not_repeated() -> None:
    refusing = open_source("rtsp://user:secret@127.0.0.1:1/stream", reopen=Reopen(patience_s=0))
    with pytest.raises(SourceError, match=r"rtsp://127\.0\.0\.1:1/stream.*refused") as raised:
        list(refusing)
    assert "secret" not in repr(refusing)
    assert "secret" not in "".join(traceback.format_exception(raised.value))
    for source in (
        "rtsp://user:secret@camera/1",
        "rtsp://user:sec@ret:secret@camera/1",
        "http://camera/video?user=me&password=secret&size=2",
        "http://camera/video?Pwd=secret",
        "srt://camera/?passphrase=secret",
        "rtsp://user:se/secret#cret@camera/1",
    ):
        shown = shown_location(source)
        assert "secret" not in shown
        assert "ret:" not in shown
        assert "camera/" in shown
        assert shown_location(f"cannot open {source} now") == f"cannot open {shown} now"
    for open_name in ("http://camera/?a=1&b=x@y", "rtsp://camera:554/x@y", "rtsp://[::1]:554/x@y"):
        assert shown_location(open_name) == open_name
    assert shown_location("a\udcff.mp4") == r"a\udcff.mp4"
    title = _LiveTable("rtsp://user:secret@camera/1")._render().title
    assert title == "rtsp://camera/1"


async def test_playback_keeps_the_rate_of_the_source(video: Path) -> None:
    seen: list[tuple[int, RGBArray]] = []
    started_s = time.monotonic()
    frames = [
        frame
        async for frame in play(
            open_source(str(video)),
            on_frame=lambda frame, picture: seen.append((frame.sequence, picture.rgb)),
        )
    ]
    assert time.monotonic() - started_s >= 0.45  # Nine intervals of 50 ms.
    assert [frame.sequence for frame in frames] == list(range(10))
    assert [number for number, _ in seen] == list(range(10))
    assert frames[0].encoded[:2] == b"\xff\xd8"
    assert frames[0].capture_time_ns < frames[-1].capture_time_ns


# ---- drawing ----


def test_a_label_has_one_colour() -> None:
    assert label_colour("dog") == label_colour("dog")
    assert label_colour("dog") != label_colour("cat")


def test_drawing_leaves_the_original_alone_and_survives_boxes_outside() -> None:
    boxes = [LabelledBox((10, 20, 50, 60), "dog", 0.5), LabelledBox((-50, -50, 500, 500), "x")]
    drawn = draw_boxes(BLACK, boxes, caption="frame 1")
    assert not BLACK.any()
    assert tuple(drawn[38, 10]) == label_colour("dog")


def colour_at_left_edges(path: Path) -> list[list[bool]]:
    """For each frame, whether a line is drawn at x = 20 and at x = 60."""
    with av.open(str(path)) as container:
        pictures = [picture.to_ndarray(format="rgb24") for picture in container.decode(video=0)]
    return [[bool(picture[40, x].max() > 60) for x in (20, 60)] for picture in pictures]


def test_unanswered_frames_show_the_nearest_answer(tmp_path: Path) -> None:
    path = tmp_path / "annotated.mp4"
    with AnnotatedVideo(path, fps=10.0) as writer:
        for number in range(7):
            writer.add_frame(OutgoingFrame(b"", number), BLACK)
            if number == 2:
                writer.add_result(result_for(0, (20, 20, 40, 50)))
        writer.add_result(result_for(4, (60, 20, 80, 50)))
    left, right = [True, False], [False, True]
    assert colour_at_left_edges(path) == [left, left, right, right, right, right, right]


def test_odd_sizes_are_written(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    with AnnotatedVideo(path, fps=10.0) as writer:
        writer.add_frame(OutgoingFrame(b"", 0), np.zeros((33, 51, 3), dtype=np.uint8))
    assert len(list(open_source(str(path)))) == 1


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="cannot write"):
        AnnotatedVideo(tmp_path / "no" / "folder.mp4", fps=10.0)


# ---- truth ----


def test_scores_count_each_true_box_once() -> None:
    truth = Truth({0: {"dog": [(0, 0, 10, 10), (20, 20, 30, 30)]}})
    twice = [(0.0, 0.0, 10.0, 10.0), (0.0, 0.0, 10.0, 9.0)]
    assert truth.score(0, "dog", twice) == Score(2, 2, 1)
    assert truth.score(0, "dog", []) == Score(2, 0, 0)
    assert truth.score(0, "cat", twice) == Score(0, 2, 0)
    total = truth.score(0, "dog", twice) + truth.score(0, "cat", twice)
    assert (total.recall, total.precision) == (0.5, 0.25)
    assert (Score().recall, Score().precision) == (1.0, 1.0)


def test_of_two_labels_for_one_box_the_surer_stands_on_top() -> None:
    box = (10.0, 20.0, 50.0, 60.0)
    sure, doubtful = LabelledBox(box, "cat", 0.9), LabelledBox(box, "dog", 0.4)
    drawn = draw_boxes(BLACK, [sure, doubtful])
    np.testing.assert_array_equal(drawn, draw_boxes(BLACK, [doubtful, sure]))
    assert tuple(drawn[38, 10]) == label_colour("cat")


def test_labels_do_not_cover_each_other() -> None:
    wide = np.zeros((400, 400, 3), dtype=np.uint8)
    sure = LabelledBox((60.0, 100.0, 200.0, 200.0), "person", 0.9)
    doubtful = LabelledBox((62.0, 104.0, 200.0, 200.0), "pedestrian", 0.4)
    drawn = draw_boxes(wide, [doubtful, sure])
    alone = draw_boxes(wide, [sure])
    text = slice(88, 99)
    np.testing.assert_array_equal(drawn[text, 64:90], alone[text, 64:90])
    assert (drawn[:84] == label_colour("pedestrian")).all(-1).any()


def plate_of(drawn: np.ndarray, label: str, outside: slice) -> tuple[int, int]:
    """The first and last row, within some columns, that are filled with a label's colour."""
    rows = np.flatnonzero((drawn[:, outside] == label_colour(label)).all(-1).sum(1) > 8)
    assert rows.size, f"no label {label}"
    return int(rows[0]), int(rows[-1])


def test_labels_at_the_top_edge_stand_below_each_other() -> None:
    wide = np.zeros((400, 400, 3), dtype=np.uint8)
    names = ["person", "pedestrian", "rider"]
    boxes = [
        LabelledBox((60.0, 2.0 + place, 61.0, 380.0), name, 0.9 - place / 10)
        for place, name in enumerate(names)
    ]
    drawn = draw_boxes(wide, boxes)
    rows = [plate_of(drawn, name, slice(64, 400)) for name in names]
    assert rows[0][0] == 0
    assert all(upper[1] < lower[0] for upper, lower in itertools.pairwise(rows))
    np.testing.assert_array_equal(drawn[:14, 64:90], draw_boxes(wide, boxes[:1])[:14, 64:90])


def test_labels_of_a_full_column_stand_beside_it() -> None:
    low = np.zeros((36, 400, 3), dtype=np.uint8)
    names = [f"thing {number}" for number in range(4)]
    drawn = draw_boxes(low, [LabelledBox((390.0, 10.0, 391.0, 12.0), name, 0.5) for name in names])
    for name in names:
        top, bottom = plate_of(drawn, name, slice(0, 400))
        assert bottom < top + 16


def test_no_more_labels_than_a_picture_has_room_for() -> None:
    tiny = np.zeros((20, 20, 3), dtype=np.uint8)
    boxes = [LabelledBox((0.0, 0.0, 19.0, 19.0), f"a long name {n}", 0.5) for n in range(50)]
    assert draw_boxes(tiny, boxes).shape == tiny.shape
