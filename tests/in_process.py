"""The gRPC service over the fake stages in this process, and streams driven step by step."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

from grpc_health.v1 import health, health_pb2

from agent.pipeline import Grounder, Pipeline
from agent.quotas import open_quotas
from agent.region_cache import MemoryRegionCache
from agent.settings import ServerSettings, ServiceSettings, StreamSettings
from agent.streaming.session_store import MemorySessionStore, SessionStore
from deployments.front_end.access import open_access
from deployments.front_end.server import drain_server, open_server
from deployments.front_end.vision_agent import VisionAgent
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.tracing import Tracing
from deployments.wire.message_bounds import Counts
from groundstream import aio
from groundstream.events import (
    KeyframeAnswer,
    QueriesAck,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import (
    AnswerMode,
    FrameResult,
    OutgoingFrame,
    Query,
    StreamPolicy,
)
from groundstream.watch_stream import Reconnect, WatchStream
from tests.fakes import FakeStages
from tests.pictures import encoded_image

SETTINGS = ServiceSettings(
    server=ServerSettings(drain_grace_s=0.2),
    stream=StreamSettings(max_queries=4, stats_interval_s=0.05),
)


GROUND = StreamPolicy(mode=AnswerMode.GROUND)
"""Every frame that is taken is answered by the (fake) language model."""
FOLLOW = StreamPolicy(ack_window=0)
STILL = encoded_image(1)
NEVER = Reconnect(max_attempts=0)


@dataclass
class Service:
    """A service in this process."""

    target: str
    agent: VisionAgent
    metrics: ServiceMetrics
    stages: FakeStages
    server: Any

    async def drain(self) -> None:
        """As a front end that goes away."""
        await drain_server(self.server, self.agent.draining, SETTINGS.server.drain_grace_s)


@contextlib.asynccontextmanager
async def running_service(
    *,
    port: int = 0,
    store: SessionStore | None = None,
    settings: ServiceSettings = SETTINGS,
    grounder: Callable[[ServiceMetrics], Grounder] | None = None,
    tracing: Tracing | None = None,
) -> AsyncIterator[Service]:
    """A fresh service.

    Args:
        port: where it listens; 0: anywhere.
        store: where its sessions are kept; None: with it.
        settings: its numbers.
        grounder: makes another than a pipeline over the fakes, which counts into what it is given.
        tracing: records answers; None: nobody does.
    """
    fakes, cache, metrics = FakeStages(), MemoryRegionCache(), ServiceMetrics()
    pipeline: Grounder = Pipeline(fakes, cache, model_digest="m")
    if grounder is None:
        metrics.stage_calls, metrics.cache = fakes.calls, cache.stats
    else:
        pipeline = grounder(metrics)
    capabilities = pb.Capabilities(model_name="fake")
    sessions = store or MemorySessionStore(ttl_s=60.0)
    quotas = open_quotas(settings.access, settings.cache)
    agent = VisionAgent(
        pipeline, settings, metrics, capabilities, sessions, quotas, tracing or Tracing()
    )
    at_port = dataclasses.replace(settings.server, port=port)
    counts = Counts(settings.stream.max_queries, settings.frame.max_boxes)
    access, health_servicer = open_access(settings), health.aio.HealthServicer()
    await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
    server, port = open_server(
        at_port, access, agent, health_servicer, counts, unread_s=settings.stream.idle_s
    )
    await server.start()
    try:
        yield Service(f"127.0.0.1:{port}", agent, metrics, fakes, server)
    finally:
        await server.stop(None)
        await quotas.close()


async def frames(*numbers: int, every_s: float = 0.0) -> AsyncIterator[OutgoingFrame]:
    """Pictures that differ, numbered as told."""
    for number in numbers:
        yield OutgoingFrame(encoded_image(number), number, capture_time_ns=1000 + number)
        await asyncio.sleep(every_s)


class Conversation:
    """A stream driven step by step: frames are put when the test says so."""

    def __init__(self, stream: WatchStream, outbox: asyncio.Queue[OutgoingFrame | None]) -> None:
        self.stream = stream
        self._outbox = outbox
        self._events = aiter(stream)
        self.stats: list[StreamStats] = []
        self.openings: list[StreamOpened] = []

    def send(self, number: int, **more: Any) -> None:
        """One frame."""
        self._outbox.put_nowait(OutgoingFrame(encoded_image(number), number, **more))

    def send_frame(self, frame: OutgoingFrame) -> None:
        """One frame of any kind."""
        self._outbox.put_nowait(frame)

    def send_bytes(self, number: int, encoded: bytes) -> None:
        """One frame of any content."""
        self._outbox.put_nowait(OutgoingFrame(encoded, number))

    def end(self) -> None:
        """No more frames."""
        self._outbox.put_nowait(None)

    async def next(self) -> StreamEvent:
        """The next event; StreamStats are checked and kept instead, StreamOpened are kept."""
        async with asyncio.timeout(10):
            async for event in self._events:
                if isinstance(event, StreamStats):
                    check_books(event)
                    self.stats.append(event)
                elif isinstance(event, StreamOpened):
                    self.openings.append(event)
                else:
                    return event
        raise AssertionError("the stream ended")

    async def rest(self) -> list[StreamEvent]:
        """Everything until the end but StreamStats."""
        events = []
        with contextlib.suppress(AssertionError):
            while True:
                events.append(await self.next())
        return events


def check_books(stats: StreamStats) -> None:
    """The books balance."""
    assert stats.balanced


@contextlib.asynccontextmanager
async def conversation(
    client: aio.Client,
    *queries: str | Query,
    policy: StreamPolicy = GROUND,
    reconnect: Reconnect = NEVER,
) -> AsyncIterator[Conversation]:
    """An open stream; the ack of its first queries has been read."""
    outbox: asyncio.Queue[OutgoingFrame | None] = asyncio.Queue()

    async def sent() -> AsyncIterator[OutgoingFrame]:
        while (frame := await outbox.get()) is not None:
            yield frame

    async with client.watch(sent(), queries, policy=policy, reconnect=reconnect) as stream:
        talk = Conversation(stream, outbox)
        if queries:
            assert isinstance(await talk.next(), QueriesAck)
        yield talk


def still(number: int, **more: object) -> OutgoingFrame:
    """A frame in which nothing has moved."""
    return dataclasses.replace(OutgoingFrame(STILL, number, 10_000_000 * number), **more)


async def answer_of(talk: Conversation, kind: type[FrameResult | KeyframeAnswer]) -> object:
    """The next result or key frame answer, whatever comes before."""
    while not isinstance(event := await talk.next(), kind):
        pass
    return event
