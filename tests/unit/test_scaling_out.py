"""What a cluster needs of us: replicas by open streams, one replica for questions about a frame."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from agent.detections import Proposals
from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from deployments.autoscaling import CALLS_UNDER_WAY, OPEN_STREAMS, CallsUnderWay, OpenStreams
from deployments.metrics import ServiceMetrics
from deployments.stage_door import MeanLoad
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
    with pytest.raises(ValueError, match="positive"):
        CallsUnderWay(calls_per_replica=-1)


def test_calls_under_way_become_replicas_of_a_stage() -> None:
    reported = {CALLS_UNDER_WAY: {"replica 0": 3.1, "replica 1": 1.0}, OPEN_STREAMS: {"f": 99.0}}
    busy = SimpleNamespace(current_num_replicas=2, aggregated_metrics=reported)
    assert CallsUnderWay(calls_per_replica=1.5)(busy) == (3, {})


def test_the_load_of_a_door_is_a_mean_over_time() -> None:
    now_s = 100.0
    load = MeanLoad(clock=lambda: now_s)
    assert load.take_mean() == 0.0
    load.change(2)
    now_s += 3.0
    load.change(-1)
    now_s += 1.0
    assert load.take_mean() == pytest.approx((2 * 3 + 1 * 1) / 4)
    now_s += 5.0
    assert load.take_mean() == 1.0
    assert load.take_mean() == 1.0, "asked again at once: what there is now"
    assert load.now == 1


class Listener:
    """A language replica that says nothing, and notes who asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(
        self, features: FrameFeatures | None, *_arguments: object
    ) -> Served[Generation]:
        self.asked.append("" if features is None else features.key)
        return Served(Generation((), (), False, 0, 0, 1))


async def test_questions_about_a_frame_go_to_one_replica_whatever_their_page() -> None:
    replicas = [Listener() for _ in range(4)]
    others = [Handle(None) for _ in range(3)]
    boxes = np.array([[0, 0, 9, 9], [5, 5, 9, 9], [1, 1, 4, 4]], dtype=np.float32)
    task = Task.detect("dog")
    async with stages_of([*others, Handle(*replicas)], ServiceMetrics()) as stages:
        for number in range(20):
            frame = FrameFeatures(
                10, 10, Proposals(boxes, np.ones(3, dtype=np.float32)),
                np.zeros((1, 4), dtype=np.float32), (2, 2),
                np.zeros((3, 4), dtype=np.float32), np.zeros((3, 4), dtype=np.float32),
                key=f"frame {number}",
            )  # fmt: skip
            await stages.answer(frame, task)
            await stages.answer(frame.select(np.array([2])), task)
        await stages.answer(None, Task.chat("hello"))
    frames = [{key.split("/")[0] for key in replica.asked if key} for replica in replicas]
    assert sum(len(replica.asked) for replica in replicas) == 41
    assert all(frames), "frames are spread over all replicas"
    assert sum(map(len, frames)) == len(set().union(*frames)) == 20
