"""What the model said of a key frame, as the frames after it repeat it."""

from __future__ import annotations

import numpy as np

from agent.detections import Proposals
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.settings import FollowSettings
from agent.streaming.answers import Evidence
from agent.streaming.follower import Follower
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.session import StandingQuery
from agent.streaming.view import View
from deployments.wire.stream_messages import followed_to_message

COUNT = StandingQuery("dogs", Task.count("dog"), 1)
WHY = StandingQuery("why", Task.reason("Why do they run?"), 1)


def test_frames_between_key_frames_repeat_count_thought_and_words() -> None:
    follower = Follower(FollowSettings())
    view = View.of_grey(np.zeros((48, 64), np.uint8), 64, 48, longest_px=400)
    follower.observe_view(view, capture_ns=1, received_ns=1)
    keyframe = follower.begin_keyframe(Evidence(1, 1), [COUNT, WHY], KeyframeReason.FIRST)
    follower.start_keyframe()
    answers = (
        Answer(COUNT.task, "There are 2.", reply="There are 2.", count=2),
        Answer(WHY.task, "text", reply="It is late.", thought="A clock shows ten."),
    )
    found = follower.finish_keyframe(keyframe, Grounding(answers, Proposals(), False), [COUNT, WHY])
    for count, why in (found, follower.answers([COUNT, WHY])):
        counted = followed_to_message(count, answered_ns=2)
        assert (counted.HasField("count"), counted.count) == (True, 2)
        assert counted.reply == "There are 2."
        told = followed_to_message(why, answered_ns=2)
        assert not told.HasField("count")
        assert (told.reply, told.thought) == ("It is late.", "A clock shows ten.")
