"""Streams that outlive their connection and their replica, with the fake stages in this process."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc
import pytest

from agent.streaming.session_store import MemorySessionStore
from groundstream import aio
from groundstream.events import (
    Drain,
    KeyframeAnswer,
    QueriesAck,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import (
    FrameResult,
)
from groundstream.watch_stream import Reconnect
from tests.cameras import Camera
from tests.in_process import (
    FOLLOW,
    Conversation,
    Service,
    answer_of,
    conversation,
    running_service,
    still,
)
from tests.pictures import encoded_image

QUICK = Reconnect(max_attempts=10_000, first_pause_s=0.02, max_pause_s=0.1)


class Reader:
    """Reads a stream on and on, and waits for what is read."""

    def __init__(self, talk: Conversation) -> None:
        self.events: list[object] = []
        self._talk = talk
        self._task = asyncio.ensure_future(self._read())

    async def until_opened_again(self) -> StreamOpened:
        """The second opening."""
        await self._until(lambda: len(self._talk.openings) > 1)
        return self._talk.openings[1]

    async def until_answered(self, sequence: int) -> FrameResult:
        """A frame's result."""

        def found() -> list[FrameResult]:
            results = [event for event in self.events if isinstance(event, FrameResult)]
            return [result for result in results if result.sequence == sequence]

        await self._until(lambda: bool(found()))
        assert len(found()) == 1  # Not twice.
        return found()[0]

    async def until_ended(self) -> None:
        """The end of the stream."""
        with pytest.raises(AssertionError, match="ended"):
            await self._task

    async def stop(self) -> None:
        """Stop reading."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _read(self) -> None:
        while True:
            self.events.append(await self._talk.next())

    async def _until(self, happened: Callable[[], bool]) -> None:
        while not happened():
            if self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)


async def test_a_stream_survives_its_replica() -> None:
    store = MemorySessionStore(ttl_s=60.0)  # Stands for Redis, which outlives replicas.
    async with contextlib.AsyncExitStack() as stack:
        async with running_service(store=store) as first:
            port = int(first.target.rpartition(":")[2])
            client = await stack.enter_async_context(aio.Client(first.target))
            talk = await stack.enter_async_context(
                conversation(client, "dog", policy=FOLLOW, reconnect=QUICK)
            )
            talk.send_frame(still(0))
            await answer_of(talk, KeyframeAnswer)
            await talk.stream.put_query("cat")
            while not isinstance(await talk.next(), QueriesAck):
                pass
            talk.send_frame(still(1))
            before = await answer_of(talk, FrameResult)
            assert isinstance(before, FrameResult)
            await asyncio.sleep(1.2)  # A snapshot a second.
        # The service is gone, without a word. What is asked meanwhile is not forgotten.
        await talk.stream.put_query("absent bird")
        await stack.enter_async_context(running_service(port=port, store=store))
        reader = Reader(talk)
        opened = await reader.until_opened_again()
        assert opened.resumed
        assert (opened.epoch, opened.query_ids) == (2, ("dog", "cat"))
        talk.send_frame(still(5))
        after = await reader.until_answered(5)
        assert after["dog"].detections[0].track_id == before["dog"].detections[0].track_id
        assert after["dog"].evidence_age_ms > 1000.0
        acks = [event for event in reader.events if isinstance(event, QueriesAck)]
        assert [(ack.epoch, ack.query_ids) for ack in acks] == [(3, ("dog", "cat", "absent bird"))]
        talk.end()
        await reader.until_ended()
        results = [event for event in reader.events if isinstance(event, FrameResult)]
        assert [result.sequence for result in results] == [5]
        assert (talk.stats[-1].received, talk.stats[-1].in_flight) == (3, 0)


async def test_books_close_when_nobody_remembers_the_session() -> None:
    async with contextlib.AsyncExitStack() as stack:
        async with running_service() as first:
            port = int(first.target.rpartition(":")[2])
            client = await stack.enter_async_context(aio.Client(first.target))
            talk = await stack.enter_async_context(
                conversation(client, "dog", policy=FOLLOW, reconnect=QUICK)
            )
            for number in (0, 1):
                talk.send_frame(still(number))
                await answer_of(talk, FrameResult)
        await stack.enter_async_context(running_service(port=port))  # With a store of its own.
        reader = Reader(talk)
        opened = await reader.until_opened_again()
        assert not opened.resumed
        talk.send_frame(still(2))
        await reader.until_answered(2)
        talk.end()
        await reader.until_ended()
    books = talk.stats[-1]
    assert (books.received, books.tracked_only + books.answered) == (3, 3)
    assert talk.stream.num_sent == 3


async def test_a_stream_leaves_a_replica_that_drains() -> None:
    store = MemorySessionStore(ttl_s=60.0)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_service(store=store))
        client = await stack.enter_async_context(aio.Client(first.target))
        talk = await stack.enter_async_context(
            conversation(client, "dog", policy=FOLLOW, reconnect=QUICK)
        )
        talk.send_frame(still(0))
        await answer_of(talk, KeyframeAnswer)
        # As in an update: the next one listens at the same port already.
        port = int(first.target.rpartition(":")[2])
        await stack.enter_async_context(running_service(port=port, store=store))
        draining = asyncio.create_task(first.drain())
        reader = Reader(talk)
        opened = await reader.until_opened_again()
        assert opened.resumed
        assert opened.gap is None
        assert sum(isinstance(event, Drain) for event in reader.events) == 1
        await reader.stop()
        await draining


async def test_a_stream_that_is_sent_away_before_it_is_opened_loses_nothing() -> None:
    store = MemorySessionStore(ttl_s=60.0)
    camera, events = Camera(lambda: encoded_image(1), every_s=0.02), list[StreamEvent]()
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_service(store=store))
        port = int(first.target.rpartition(":")[2])
        client = await stack.enter_async_context(aio.Client(first.target))
        await client.stats()  # From now on there is a connection to the first.
        await stack.enter_async_context(running_service(port=port, store=store))
        first.agent.draining.set()
        await stack.enter_async_context(asyncio.timeout(20.0))
        stream = await stack.enter_async_context(
            client.watch(camera.frames(), ["dog"], reconnect=QUICK)
        )
        async for event in stream:
            events.append(event)
            if isinstance(event, StreamOpened) and not event.resumed:
                draining = asyncio.create_task(first.drain())
            camera.is_on = sum(isinstance(seen, FrameResult) for seen in events) < 10
        await draining
    kinds = [type(event) for event in events]
    assert kinds.index(Drain) < kinds.index(StreamOpened)
    assert {event.gap for event in events if isinstance(event, StreamOpened)} == {None}
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert (last.received, last.failed, last.in_flight) == (stream.num_sent, 0, 0)


async def test_an_unknown_token_opens_a_new_session(client: aio.Client) -> None:
    async with conversation(client, policy=FOLLOW, reconnect=QUICK) as talk:
        talk.send_frame(still(0))
        await answer_of(talk, FrameResult)
        token = talk.openings[0].resume_token
        assert len(token) >= 32
        assert token not in repr(talk.openings[0])
        talk.end()
        await talk.rest()
    # The client ended it, so it is over.
    async with conversation(client, policy=FOLLOW) as other:
        other.send_frame(still(0))
        await answer_of(other, FrameResult)
        assert not other.openings[0].resumed
        assert other.openings[0].resume_token != token


@pytest.mark.parametrize("says_end", [True, False])
async def test_a_session_is_over_only_when_its_client_says_so(
    service: Service, says_end: bool
) -> None:
    async def opened(call: object, token: str) -> object:
        await call.write(pb.WatchRequest(open=pb.OpenStream(resume_token=token)))
        return (await call.read()).opened

    async with grpc.aio.insecure_channel(service.target) as channel:
        stub = pb_grpc.VisionAgentStub(channel)
        call = stub.Watch()
        first = await opened(call, "")
        if says_end:
            await call.write(pb.WatchRequest(end=pb.End()))
        # A connection that breaks looks no different from the other side.
        await call.done_writing()
        while await call.read() is not grpc.aio.EOF:
            pass
        again = stub.Watch()
        assert (await opened(again, first.resume_token)).resumed is not says_end
        again.cancel()
