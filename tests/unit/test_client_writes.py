"""What a client's stream writes, when, and in which order: services made up for each test."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
import pytest

from groundstream import aio
from groundstream.events import Reconnecting, StreamEvent, StreamStats
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.rpc_errors import ServiceError
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from groundstream.watch_stream import Reconnect, WatchStream

QUICK = Reconnect(max_attempts=100, first_pause_s=0.01, max_pause_s=0.02)
OPENED = pb.WatchResponse(opened=pb.StreamOpened(resume_token="t" * 32, resumed=True))
ENDED = pb.WatchResponse(stats=pb.StreamStats(ended=True))
MEGABYTE = bytes(2**20)

Watch = Callable[["Calls", Any], Any]


class Calls(pb_grpc.VisionAgentServicer):
    """Answers every Watch as told, and keeps the kinds of what it read, call by call."""

    def __init__(self, watch: Watch) -> None:
        self.read: list[list[str]] = []
        self._watch = watch

    async def Watch(self, _requests: Any, context: Any) -> None:
        self.read.append([])
        await self._watch(self, context)

    async def next(self, context: Any) -> str | None:
        """The kind of the next message of the newest call; None at its end."""
        message = await context.read()
        if message is grpc.aio.EOF:
            return None
        kind = str(message.WhichOneof("message"))
        self.read[-1].append(kind)
        return kind

    async def until_end(self, context: Any) -> None:
        """Reads on to the frames' end, and says that all are answered, as the service does: gRPC
        tells a client that is writing when the call ends of an error, not of the end."""
        while (kind := await self.next(context)) not in (None, "end"):
            pass
        if kind == "end":
            await context.write(ENDED)


@contextlib.asynccontextmanager
async def client_of(watch: Watch) -> AsyncIterator[tuple[aio.Client, Calls]]:
    """A client of a service that answers Watch so."""
    server, calls = grpc.aio.server(), Calls(watch)
    pb_grpc.add_VisionAgentServicer_to_server(calls, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with aio.Client(f"127.0.0.1:{port}") as client:
            yield client, calls
    finally:
        await server.stop(None)


async def frames(num: int, encoded: bytes = b"x") -> AsyncIterator[OutgoingFrame]:
    for number in range(num):
        yield OutgoingFrame(encoded, number)
        await asyncio.sleep(0)


async def silence() -> AsyncIterator[OutgoingFrame]:
    """No frame, and no end."""
    await asyncio.Event().wait()
    yield OutgoingFrame(b"", 0)


async def events_of(stream: WatchStream) -> list[StreamEvent]:
    return [event async for event in stream]


def result(number: int) -> pb.WatchResponse:
    return pb.WatchResponse(result=pb.FrameResult(sequence=number))


async def test_results_are_read_while_a_large_frame_waits_to_be_written() -> None:
    all_read = asyncio.Event()

    async def reads_late(calls: Calls, context: Any) -> None:
        await calls.next(context)
        await context.write(OPENED)
        for number in range(5):
            await context.write(result(number))
        await all_read.wait()
        await calls.until_end(context)

    async with client_of(reads_late) as (client, calls):
        policy = StreamPolicy(ack_window=1)
        async with (
            asyncio.timeout(20.0),
            client.watch(frames(4, MEGABYTE), [], policy=policy) as stream,
        ):
            seen = 0
            async for event in stream:
                seen += isinstance(event, FrameResult)
                if seen == 5:
                    all_read.set()
        (read,) = calls.read
        assert read.count("frame") == 4
        assert "ack" in read


async def test_nothing_comes_before_the_opening_when_a_stream_is_opened_again() -> None:
    async def breaks_once(calls: Calls, context: Any) -> None:
        await calls.next(context)
        await context.write(OPENED)
        if len(calls.read) == 1:
            await calls.next(context)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        await calls.until_end(context)

    async with client_of(breaks_once) as (client, calls), asyncio.timeout(20.0):
        async with client.watch(silence(), ["dog"], reconnect=QUICK) as stream:
            reading = asyncio.create_task(events_of(stream))
            # Somebody is writing, and another waits to, while the stream is opened again.
            async with stream._writing:
                change = asyncio.create_task(stream.put_query("cat"))
                while stream._open.is_set():
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.1)  # More than the pause before the next try.
            await change
            while len(calls.read) < 2 or len(calls.read[1]) < 2:
                await asyncio.sleep(0.01)
            reading.cancel()
        assert calls.read[1][:2] == ["open", "set_queries"]


async def test_a_frame_that_waited_while_the_stream_broke_is_not_sent() -> None:
    first_read, second_comes, breaks, third_comes = (asyncio.Event() for _ in range(4))

    async def breaks_when_told(calls: Calls, context: Any) -> None:
        await calls.next(context)
        await context.write(OPENED)
        if len(calls.read) == 1:
            await calls.next(context)
            first_read.set()
            await breaks.wait()
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        await calls.until_end(context)

    async def camera() -> AsyncIterator[OutgoingFrame]:
        yield OutgoingFrame(b"x", 0)
        await second_comes.wait()
        yield OutgoingFrame(b"x", 1)
        await third_comes.wait()
        yield OutgoingFrame(b"x", 2)

    async with (
        asyncio.timeout(20.0),
        client_of(breaks_when_told) as (client, calls),
        client.watch(camera(), [], reconnect=QUICK) as stream,
    ):
        reading = asyncio.create_task(events_of(stream))
        await first_read.wait()
        async with stream._writing:
            second_comes.set()
            await asyncio.sleep(0.05)
            breaks.set()
            while stream._open.is_set():
                await asyncio.sleep(0.01)
        await stream._open.wait()
        third_comes.set()
        await reading
    assert (stream.num_sent, stream.num_unsent) == (2, 1)
    assert calls.read[1][0] == "open"
    assert [kind for kind in calls.read[1] if kind != "set_policy"][1:] == ["frame", "end"]


@pytest.mark.parametrize("said_so", [True, False])
async def test_a_message_too_late_hides_no_good_end(said_so: bool) -> None:
    # gRPC's client makes this status up where a message fails because the call has just ended. As
    # that takes a busy machine and luck, the service says it here.
    async def ends(calls: Calls, context: Any) -> None:
        await calls.next(context)
        await context.write(OPENED)
        await context.write(pb.WatchResponse(stats=pb.StreamStats(ended=said_so)))
        await context.abort(grpc.StatusCode.INTERNAL, "Internal error from Core")

    async with (
        asyncio.timeout(20.0),
        client_of(ends) as (client, _),
        client.watch(silence(), [], reconnect=Reconnect(max_attempts=0)) as stream,
    ):
        if said_so:
            assert (await events_of(stream))[-1] == StreamStats(ended=True)
        else:
            with pytest.raises(ServiceError, match="Internal error from Core"):
                await events_of(stream)


async def test_a_stream_that_may_not_open_again_ends() -> None:
    async def refuses_the_second(calls: Calls, context: Any) -> None:
        await calls.next(context)
        if len(calls.read) == 1:
            await context.write(OPENED)
            await context.abort(grpc.StatusCode.UNAVAILABLE, "gone")
        failure = pb.StreamError(
            code=pb.ERROR_CODE_INVALID_ARGUMENT, message="no such policy", change_id=0
        )
        await context.write(pb.WatchResponse(error=failure))
        await calls.next(context)

    async with (
        asyncio.timeout(20.0),
        client_of(refuses_the_second) as (client, _),
        client.watch(silence(), [], reconnect=QUICK) as stream,
    ):
        with pytest.raises(ServiceError, match="no such policy"):
            await events_of(stream)


def test_the_pause_before_any_attempt_is_bounded() -> None:
    for attempt in (1, 2, 1_024, 1_025, 10**9):
        assert 0.0 <= Reconnect().pause_s(attempt) <= 5.0
    assert Reconnect(first_pause_s=0.1).pause_s(1) <= 0.1


async def test_patience_is_in_seconds_and_each_attempt_is_told() -> None:
    async def is_away(_calls: Calls, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "being restarted")

    told: list[Reconnecting] = []
    patient = Reconnect(
        max_attempts=1, first_pause_s=0.01, max_pause_s=0.02, patience_s=0.3, on_attempt=told.append
    )
    started_s = time.monotonic()
    async with (
        client_of(is_away) as (client, _),
        asyncio.timeout(20.0),
        client.watch(silence(), [], reconnect=patient) as stream,
    ):
        with pytest.raises(ServiceError, match="being restarted"):
            async for _ in stream:
                pass
    assert time.monotonic() - started_s >= 0.3
    assert [attempt.attempt for attempt in told] == list(range(1, len(told) + 1))
    assert len(told) > 3
    assert "being restarted" in told[0].reason
    assert told[-1].broken_s <= 0.3
