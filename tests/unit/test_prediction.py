"""Frames that nobody looked at: boxes go on as they went, and the follower stays as it is."""

from __future__ import annotations

import pytest

from agent.parsing import AnswerStatus
from agent.prompts import Task
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence
from agent.streaming.follower import Follower, LastAnswer
from agent.streaming.motion import Motion
from agent.streaming.session import StandingQuery
from tests.moving_pictures import MovingPicture
from tests.unit.test_tracker import MEAN, seen

DOG = StandingQuery("dog", Task.detect("dog"), 1)
FRAME_NS = 100_000_000
STEP_PX = 6


@pytest.mark.parametrize(("camera", "own"), [(0, STEP_PX), (STEP_PX, 0), (STEP_PX, STEP_PX)])
def test_a_box_goes_on_with_the_thing_and_with_the_camera(camera: int, own: int) -> None:
    picture, follower = MovingPicture(), Follower(FollowSettings())
    follower.last[DOG] = LastAnswer(AnswerStatus.OK, "dog", Evidence(0, 0))
    for step in range(6):
        # Where the thing is in the picture, the camera moving to the left.
        at = (60 + own * step + camera * step, 80)
        view = picture.view(camera=(-camera * step, 0), at=at)
        now_ns = FRAME_NS * step
        follower.observe_view(view, capture_ns=now_ns, received_ns=now_ns)
        if step == 0:
            start = seen(0, 0, DOG)
            start.xyxy[:] = picture.box(at)
            follower.tracker.update(
                [start], asked=[DOG], places={}, since=Motion(), mean_appearance=MEAN
            )
    before = follower.answers([DOG])[0].boxes[0].box
    later_ns = FRAME_NS * 7
    ahead_s = follower.ahead_s(capture_ns=later_ns, received_ns=later_ns)
    assert ahead_s == pytest.approx(0.2)
    ahead = follower.answers([DOG], ahead_s=ahead_s)[0].boxes[0].box
    moved_px = ahead[0] - before[0]
    assert moved_px == pytest.approx(2 * (camera + own), abs=0.35 * 2 * (camera + own))
    assert ahead[2] - ahead[0] == pytest.approx(before[2] - before[0], abs=0.01)
    # Only looked at from here on: asking about what comes later changed nothing.
    assert follower.answers([DOG])[0].boxes[0].box == before
    assert follower.ahead_s(capture_ns=later_ns, received_ns=later_ns) == pytest.approx(0.2)
