"""Frames whose size changes in mid-stream, and boxes that would leave the picture."""

from __future__ import annotations

import numpy as np
import pytest

from agent.detections import Detections, FloatArray, Proposals
from agent.features import FrameFeatures
from agent.frame_summary import summary_of
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence, QueryAnswer
from agent.streaming.follower import Follower
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.session import StandingQuery
from agent.streaming.view import View
from tests.moving_pictures import HEIGHT, WIDTH, MovingPicture

DOG = StandingQuery("dog", Task.detect("dog"), 1)
FRAME_NS = 100_000_000


class Stream:
    """A follower that is shown one thing, in frames of any size."""

    def __init__(self) -> None:
        self.follower = Follower(FollowSettings())
        self._picture = MovingPicture()
        self._now_ns = 0

    def show(self, at: tuple[int, int], *, times: tuple[float, float] = (1, 1)) -> None:
        """The thing there, in a frame so many times as wide and as high."""
        self._now_ns += FRAME_NS
        width, height = round(WIDTH * times[0]), round(HEIGHT * times[1])
        view = View.of_grey(self._picture.grey(at=at), width, height, longest_px=400)
        self.follower.observe_view(view, capture_ns=self._now_ns, received_ns=self._now_ns)

    def find(self, box: FloatArray, *, shown_meanwhile: object = None) -> QueryAnswer:
        """A key frame's answer, perhaps after something else was shown."""
        keyframe = self.follower.begin_keyframe(Evidence(1, 0), [DOG], KeyframeReason.FIRST)
        self.follower.start_keyframe()
        if callable(shown_meanwhile):
            shown_meanwhile()
        proposals = Proposals(box[None], np.ones(1, dtype=np.float32))
        look = np.ones((1, 4), dtype=np.float32)
        features = FrameFeatures(
            WIDTH, HEIGHT, proposals, np.zeros((1, 4), np.float32), (1, 1), look, look
        )
        found = Detections(box[None], np.ones(1, np.float32), ("dog",), np.zeros(1, np.int64))
        grounding = Grounding(
            (Answer(DOG.task, "dog", found),), proposals, False, seen=summary_of(features)
        )
        (answer,) = self.follower.finish_keyframe(keyframe, grounding, [DOG])
        return answer

    def followed(self) -> tuple[int, FloatArray]:
        """Number and place of the one thing."""
        (answer,) = self.follower.answers([DOG])
        assert answer.status is AnswerStatus.OK
        (box,) = answer.boxes
        return box.track_id, np.array(box.box)


@pytest.mark.parametrize("times", [(2.0, 2.0), (0.5, 0.5), (2.0, 1.0)])
def test_boxes_keep_their_place_when_the_size_changes(times: tuple[float, float]) -> None:
    stream, picture = Stream(), MovingPicture()
    stream.show((100, 80))
    stream.find(picture.box((100, 80)))
    stream.show((106, 80))
    number, before = stream.followed()
    assert before == pytest.approx(picture.box((106, 80)), abs=3.0)
    scale = np.tile(times, 2)
    for step in range(2, 6):
        at = (100 + 6 * step, 80)
        stream.show(at, times=times)
        again, box = stream.followed()
        assert again == number
        assert box / scale == pytest.approx(picture.box(at), abs=4.0)
    # Everything may have changed: the model is to look again.
    assert stream.follower.keyframe_reason([DOG]) is KeyframeReason.SCENE_CHANGED


@pytest.mark.parametrize("known", [False, True])
def test_an_answer_about_a_frame_of_the_old_size_lands_where_the_thing_is(known: bool) -> None:
    stream, picture = Stream(), MovingPicture()
    stream.show((100, 80))
    if known:
        stream.find(picture.box((100, 80)))
    number = stream.follower.tracker.next_id - known
    answer = stream.find(
        picture.box((100, 80)), shown_meanwhile=lambda: stream.show((104, 80), times=(2, 2))
    )
    # It is about the key frame, and in its pixels.
    assert answer.boxes[0].box == (100.0, 80.0, 160.0, 130.0)
    again, box = stream.followed()
    assert again == number
    assert box / 2 == pytest.approx(picture.box((104, 80)), abs=4.0)


def test_no_box_leaves_the_picture() -> None:
    stream, picture = Stream(), MovingPicture()
    stream.show((20, 80))
    answer = stream.find(picture.box((20, 80)) - np.float32([50, 0, 0, 0]))
    assert answer.boxes[0].box == (0.0, 80.0, 80.0, 130.0)
    assert stream.followed()[1].tolist() == [0.0, 80.0, 80.0, 130.0]
    for step in range(1, 12):
        stream.show((20 - 8 * step, 80))
        (answer,) = stream.follower.answers([DOG], ahead_s=0.3)
        for box in answer.boxes:
            x1, y1, x2, y2 = box.box
            assert 0 <= x1 < x2 <= WIDTH
            assert 0 <= y1 < y2 <= HEIGHT
