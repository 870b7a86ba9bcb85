"""A robot's side of a stream: frames with camera motion out, boxes with an age back.

    python examples/robot.py deployments/demo/data/pedestrians.mp4 person car

Anything that yields `OutgoingFrame` can stand in for the video: a camera's callback that puts into
a queue, a simulator, a ROS topic (`ros2/groundstream_ros`).
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace

from groundstream import aio
from groundstream.events import Drain, QueriesAck, StreamError, StreamOpened, StreamStats
from groundstream.types import AnswerStatus, FramePriority, FrameResult, OutgoingFrame, StreamPolicy
from groundstream.video.playback import play
from groundstream.video.sources import open_source
from groundstream.watch_stream import WatchStream

POLICY = StreamPolicy(
    max_age_ms=1500.0,  # what is older than this is no basis for moving an arm
    ack_window=4,  # never more than four results on their way to a slow reader
)
STILL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
"""The camera did not move. A pan by 12 pixels to the left is (1, 0, 12, 0, 1, 0)."""


async def camera(source: str) -> AsyncIterator[OutgoingFrame]:
    """Frames as a robot sends them: what it knows of its own motion goes along."""
    async for frame in play(open_source(source)):
        # The first frame must be seen by the model, whatever else waits.
        is_first = frame.sequence == 0
        priority = FramePriority.HIGH if is_first else FramePriority.NORMAL
        yield replace(frame, ego_motion=STILL, priority=priority)


def describe(result: FrameResult) -> str:
    """One line for a frame: what may be acted on."""
    parts = []
    for answer in result.results:
        if answer.status is not AnswerStatus.OK:
            parts.append(f"{answer.query_id}: {answer.status.value}")
        for found in answer.detections:
            x1, y1, x2, y2 = (round(value) for value in found.box)
            age = f"{found.evidence_age_ms:.0f} ms old"
            parts.append(f"{found.label} #{found.track_id} at ({x1} {y1} {x2} {y2}), {age}")
    return f"{result.sequence}: " + "; ".join(parts)


async def run(target: str, source: str, queries: list[str]) -> StreamStats:
    """Watch until the frames end; returns the stream's books."""
    async with aio.Client(target) as client:
        await client.wait_until_ready()
        # Breaks and drains are healed inside: the iteration goes on with a StreamOpened.
        async with client.watch(camera(source), queries, policy=POLICY) as stream:
            return await follow(stream)


async def follow(stream: WatchStream) -> StreamStats:
    """Print what comes, until the stream ends."""
    books = StreamStats()
    async for event in stream:
        match event:
            case FrameResult():
                print(describe(event))
            case StreamOpened(resumed=True, gap=gap):
                print(f"back again; lost on the way: {gap.num_frames if gap else 0} frames")
            case QueriesAck():
                print(f"from here on the answers are about {', '.join(event.query_ids)}")
            case StreamError():
                print(f"frame {event.sequence}: {event.code}, {event.message}")
            case Drain():
                print(f"this replica goes away in {event.grace_s} s ({event.reason})")
            case StreamStats():
                books = event
    return books


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("queries", nargs="+")
    parser.add_argument("--target", default="127.0.0.1:50051")
    given = parser.parse_args()
    books = asyncio.run(run(given.target, given.source, given.queries))
    print(f"{books.received} frames: {books.answered} seen by the model, {books.tracked_only} "
          f"followed, {books.expired} too late, {books.superseded} dropped")  # fmt: skip


if __name__ == "__main__":
    main()
