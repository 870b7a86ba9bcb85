"""kill -9 of the front-end replica in mid-stream: the client goes on where it was, by itself."""

from __future__ import annotations

import asyncio
import time

import pytest

from groundstream import aio
from groundstream.events import (
    KeyframeAnswer,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.types import FrameResult, StreamPolicy
from tests.cameras import Camera
from tests.integration.conftest import RedisSwitch
from tests.pictures import encoded_image
from tests.processes import replicas

_PICTURE = encoded_image(77)
_SNAPSHOT_S = 1.5
"""Snapshots are written every second."""


@pytest.fixture(autouse=True)
def redis(redis_switch: RedisSwitch) -> None:
    """Sessions are kept where another replica finds them."""
    redis_switch.on()


async def test_a_stream_outlives_its_killed_replica(client: aio.Client) -> None:
    camera, events = Camera(lambda: _PICTURE, every_s=0.1), list[StreamEvent]()
    stream = client.watch(camera.frames(), ["dog", "absent cat"], policy=StreamPolicy())
    async with asyncio.timeout(60.0), stream as watched:
        known_since = killed = resumed_at = None
        async for event in watched:
            events.append(event)
            now = time.monotonic()
            if known_since is None and isinstance(event, KeyframeAnswer):
                known_since = now
            if killed is None and known_since is not None and now - known_since > _SNAPSHOT_S:
                (killed,) = replicas("Ingress")
                killed.kill()
            if isinstance(event, StreamOpened) and event.resumed:
                resumed_at = len(events)
            num_since = 0 if resumed_at is None else len(answers(events[resumed_at:]))
            camera.is_on = num_since < 10
    assert killed is not None
    assert killed.pid not in [process.pid for process in replicas("Ingress")]
    before, after = answers(events[:resumed_at]), answers(events[resumed_at:])
    # The same queries, the same epoch, the same identity.
    assert {result.epoch for result in before + after} == {1}
    assert track_ids(before[-1]) == track_ids(after[0]) == track_ids(after[-1]) == [1]
    # Nothing twice, nothing out of order.
    sequences = [result.sequence for result in before + after]
    assert sequences == sorted(set(sequences))
    (opened,) = [e for e in events if isinstance(e, StreamOpened) and e.resumed]
    if opened.gap is not None:
        assert before[-1].sequence < opened.gap.last_sequence < after[0].sequence
    # The books close over the crash: every frame that was sent is somewhere in them.
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert last.balanced
    assert (last.received, last.in_flight) == (watched.num_sent, 0)
    assert watched.num_sent + watched.num_unsent == camera.num_sent


def answers(events: list[StreamEvent]) -> list[FrameResult]:
    return [event for event in events if isinstance(event, FrameResult)]


def track_ids(result: FrameResult) -> list[int | None]:
    return [detection.track_id for detection in result["dog"].detections]
