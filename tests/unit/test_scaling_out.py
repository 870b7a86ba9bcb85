"""What a cluster needs of us: replicas by open streams, one replica for questions about a frame."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from agent.detections import Proposals
from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from deployments.autoscaling import OPEN_STREAMS, OpenStreams
from deployments.metrics import ServiceMetrics
from deployments.stage_queue import Served
from tests.handles import Handle, stages_of


def context(current: int, *streams: float) -> SimpleNamespace:
    reported = {OPEN_STREAMS: {f"replica {n}": value for n, value in enumerate(streams)}}
    return SimpleNamespace(current_num_replicas=current, aggregated_metrics=reported)


@pytest.mark.parametrize(
    ("streams", "replicas"),
    [((0.0,), 1), ((32.0,), 1), ((33.0,), 2), ((40.0, 2.0), 2), ((60.0, 60.0, 9.0), 5)],
)
def test_open_streams_become_replicas(streams: tuple[float, ...], replicas: int) -> None:
    assert OpenStreams(streams_per_replica=32)(context(1, *streams)) == (replicas, {})


def test_without_a_report_nothing_changes() -> None:
    policy = OpenStreams()
    for reported in (None, {}, {"something else": {"replica": 99.0}}):
        unknown = SimpleNamespace(current_num_replicas=3, aggregated_metrics=reported)
        assert policy(unknown) == (3, {})


def test_a_replica_must_hold_something() -> None:
    with pytest.raises(ValueError, match="positive"):
        OpenStreams(streams_per_replica=0)


class Listener:
    """A language replica that says nothing."""

    async def answer(self, *_arguments: object) -> Served[Generation]:
        return Served(Generation((), (), False, 0, 0, 1))


async def test_questions_about_a_frame_name_one_session_whatever_their_page() -> None:
    language = Handle(Listener())
    others = [Handle(None) for _ in range(3)]
    stages = stages_of([*others, language], ServiceMetrics())
    boxes = np.array([[0, 0, 9, 9], [5, 5, 9, 9], [1, 1, 4, 4]], dtype=np.float32)
    frame = FrameFeatures(
        10, 10, Proposals(boxes, np.ones(3, dtype=np.float32)),
        np.zeros((1, 4), dtype=np.float32), (2, 2),
        np.zeros((3, 4), dtype=np.float32), np.zeros((3, 4), dtype=np.float32), key="frame 1",
    )  # fmt: skip
    task = Task.detect("dog")
    await stages.answer(frame, task)
    await stages.answer(frame.select(np.array([2])), task)
    await stages.answer(None, Task.chat("hello"))
    assert language.sessions == ["frame 1", "frame 1", ""]
