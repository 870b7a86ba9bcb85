"""An open-loop camera fleet over gRPC: frames leave when they are due, whatever comes back.

Speaks the wire directly, so that its own share of a small machine stays small. Latency runs from
when a frame was due (its capture time), not from when it could be sent: a sender that is held
back must not look like a quick service (coordinated omission).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc.aio

from agent.frame import frame_from_rgb
from groundstream.events import adds_up
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.video.sources import open_source

VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_ACK_WINDOW = 8
_END_S = 30.0


@dataclass(frozen=True)
class Camera:
    """What every camera of a fleet does."""

    fps: float
    duration_s: float
    queries: tuple[str, ...]
    max_age_ms: float
    """An answer that reaches the client later after capture is worth nothing to it."""


@dataclass
class Journal:
    """What one camera's client saw."""

    num_due: int = 0
    age_ms: list[float] = field(default_factory=list)
    """Of each result: from its frame's capture until the client had it."""
    there_ms: list[float] = field(default_factory=list)
    """From capture until the front end had the frame."""
    back_ms: list[float] = field(default_factory=list)
    """From when the front end had the result until the client had it."""
    queue_ms: list[float] = field(default_factory=list)
    follow_ms: list[float] = field(default_factory=list)
    evidence_age_ms: list[float] = field(default_factory=list)
    keyframe_ms: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    most_in_flight: int = 0
    unbalanced: int = 0
    """Statistics messages whose books did not balance."""
    ended: bool = True
    """False: the service did not end the stream in time."""
    books: Any = None
    """The last StreamStats."""


def camera_pictures(num: int, *, every: int) -> list[bytes]:
    """JPEGs of the demo video, every so many frames of it, forth and back."""
    source = itertools.islice(iter(open_source(str(VIDEO))), 0, num * every, every)
    forth = [frame_from_rgb(picture.rgb, jpeg_quality=90).encoded for picture in source]
    return forth + forth[-2:0:-1]


def with_comment(jpeg: bytes, comment: str) -> bytes:
    """The same picture as a frame of its own: no cache can know it."""
    text = comment.encode()
    return jpeg[:2] + b"\xff\xfe" + (len(text) + 2).to_bytes(2, "big") + text + jpeg[2:]


async def drive(
    target: str, camera: Camera, pictures: Sequence[bytes], *, num_streams: int
) -> list[Journal]:
    """All cameras of a fleet, their first frames spread over one frame period."""
    async with grpc.aio.insecure_channel(target) as channel:
        stub = pb_grpc.VisionAgentStub(channel)  # type: ignore[no-untyped-call]
        return await asyncio.gather(
            *(
                _Stream(stub, camera, pictures, number, number / num_streams / camera.fps).run()
                for number in range(num_streams)
            )
        )


class _Stream:
    """One camera."""

    def __init__(
        self, stub: Any, camera: Camera, pictures: Sequence[bytes], number: int, delay_s: float
    ) -> None:
        self._camera = camera
        # Cameras are not in step with each other.
        start = number * 7 % len(pictures)
        self._pictures: Iterator[bytes] = itertools.cycle([*pictures[start:], *pictures[:start]])
        self._number = number
        self._delay_s = delay_s
        self._call = stub.Watch()
        self._writing = asyncio.Lock()
        self._journal = Journal()

    async def run(self) -> Journal:
        queries = [pb.Query(id=text, text=text) for text in self._camera.queries]
        await self._write(
            pb.WatchRequest(open=pb.OpenStream(policy=pb.StreamPolicy(ack_window=_ACK_WINDOW)))
        )
        await self._write(pb.WatchRequest(set_queries=pb.SetQueries(queries=queries, change_id=1)))
        sending = asyncio.create_task(self._send())
        try:
            async with asyncio.timeout(self._camera.duration_s + _END_S):
                async for message in self._call:
                    await self._note(message)
                await sending
        except TimeoutError:
            self._journal.ended = False
            sending.cancel()
            self._call.cancel()
        return self._journal

    async def _write(self, message: Any) -> None:
        async with self._writing:
            await self._call.write(message)

    async def _send(self) -> None:
        camera = self._camera
        started_s, started_ns = time.monotonic() + self._delay_s, time.time_ns()
        started_ns += round(self._delay_s * 1e9)
        for number in range(round(camera.fps * camera.duration_s)):
            due_s = number / camera.fps
            await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
            self._journal.num_due += 1
            frame = pb.Frame(
                encoded_image=with_comment(next(self._pictures), f"{self._number}/{number}"),
                sequence=number,
                capture_time_ns=started_ns + round(due_s * 1e9),
            )
            await self._write(pb.WatchRequest(frame=frame))
        await self._call.done_writing()

    async def _note(self, message: Any) -> None:
        journal = self._journal
        match message.WhichOneof("message"):
            case "result":
                result = message.result
                now_ns, clocks = time.time_ns(), result.clocks
                journal.age_ms.append((now_ns - clocks.capture_time_ns) / 1e6)
                journal.there_ms.append((clocks.received_time_ns - clocks.capture_time_ns) / 1e6)
                journal.back_ms.append((now_ns - clocks.answered_time_ns) / 1e6)
                journal.queue_ms.append(result.timings.queue_ms)
                journal.follow_ms.append(result.timings.follow_ms)
                journal.evidence_age_ms += [
                    answer.evidence_age_ms
                    for answer in result.results
                    if answer.status != pb.ANSWER_STATUS_PENDING
                ]
                acknowledged = pb.Ack(sequence=result.sequence)
                if not self._call.done():
                    await self._acknowledge(acknowledged)
            case "keyframe":
                clocks = message.keyframe.result.clocks
                spent_ns = clocks.answered_time_ns - clocks.received_time_ns
                journal.keyframe_ms.append(spent_ns / 1e6)
            case "error":
                journal.errors[pb.ErrorCode.Name(message.error.code)] += 1
            case "stats":
                journal.books = message.stats
                journal.most_in_flight = max(journal.most_in_flight, message.stats.in_flight)
                journal.unbalanced += not adds_up(message.stats)

    async def _acknowledge(self, acknowledged: Any) -> None:
        # All frames may have been sent by now; a stream that ends needs no acks.
        with contextlib.suppress(asyncio.InvalidStateError):
            await self._write(pb.WatchRequest(ack=acknowledged))
