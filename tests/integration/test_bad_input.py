"""Streams and calls that go wrong: each a typed error, and the next call is answered.

Single bad inputs stand in `tests/bad_inputs.py`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import grpc
import pytest

from groundstream import aio
from groundstream.events import QueriesAck, StreamError, StreamStats
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.rpc_errors import ServiceError
from groundstream.types import (
    FrameResult,
    OutgoingFrame,
    Query,
)
from tests.bad_inputs import png_header
from tests.fakes import SECRET
from tests.in_process import GROUND
from tests.pictures import encoded_image


@pytest.fixture(autouse=True)
async def next_call_is_answered(client: aio.Client) -> AsyncIterator[None]:
    """After each test the service still works."""
    yield
    result = await client.ground(encoded_image(1), ["dog"])
    assert result["dog"].detections


async def test_an_error_inside_a_stage_tells_nothing_of_the_inside(
    client: aio.Client,
) -> None:
    with pytest.raises(ServiceError, match=r"INTERNAL.*request id") as raised:
        await client.ground(encoded_image(1), ["crash"])
    for secret in (SECRET, "Traceback", "ray", ".py"):
        assert secret not in str(raised.value)


async def test_bytes_that_are_no_message_do_not_end_a_stream(service: str) -> None:
    query = pb.Query(id="q", text="dog")
    frame = pb.WatchRequest(frame=pb.Frame(encoded_image=encoded_image(1), sequence=1))
    async with grpc.aio.insecure_channel(service) as channel:
        call = channel.stream_stream("/vision_agent.v1.VisionAgent/Watch")()
        for sent in (
            b"\xff\xff\xff",
            pb.WatchRequest(set_queries=pb.SetQueries(queries=[query])).SerializeToString(),
            frame.SerializeToString(),
        ):
            await call.write(sent)
        await call.done_writing()
        messages = [pb.WatchResponse.FromString(message) async for message in call]
    assert messages[0].error.code == pb.ERROR_CODE_INVALID_ARGUMENT
    assert [m.result.sequence for m in messages if m.HasField("result")] == [1]


async def test_a_stream_that_sends_a_control_message_only(client: aio.Client) -> None:
    async def nothing() -> AsyncIterator[OutgoingFrame]:
        return
        yield

    async with client.watch(nothing(), ["dog"]) as stream:
        events = [event async for event in stream]
    assert events[1] == QueriesAck(1, 1, ("dog",))
    assert events[-1] == StreamStats(ended=True)


async def test_bad_items_in_a_stream_do_not_end_it(client: aio.Client) -> None:
    whole = encoded_image(5, width=640, height=480)
    bad = [b"", b"hello", whole[: len(whole) // 2], png_header(20_000, 20_000)]

    async def frames() -> AsyncIterator[OutgoingFrame]:
        for number, image in enumerate([*bad, encoded_image(2)]):
            yield OutgoingFrame(image, number)
            await asyncio.sleep(0.15)  # Each is to be looked at, none superseded.

    async with client.watch(frames(), ["dog"], policy=GROUND) as stream:
        await stream.put_query(Query("", id="empty"))
        events = [event async for event in stream]
    errors = [event for event in events if isinstance(event, StreamError)]
    assert sorted((error.sequence or 0, error.code) for error in errors) == [
        (0, "INVALID_FRAME"),
        (0, "INVALID_QUERY"),
        (1, "INVALID_FRAME"),
        (2, "INVALID_FRAME"),
        (3, "FRAME_TOO_LARGE"),
    ]
    assert [event.sequence for event in events if isinstance(event, FrameResult)] == [4]
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert (last.received, last.answered, last.rejected) == (5, 1, 4)


async def test_a_client_that_vanishes(service: str, client: aio.Client) -> None:
    before = await client.stats()
    channel = grpc.aio.insecure_channel(service)
    call = pb_grpc.VisionAgentStub(channel).Watch()
    query = pb.Query(id="q", text="slow dog")
    await call.write(pb.WatchRequest(set_queries=pb.SetQueries(queries=[query])))
    frame = pb.Frame(encoded_image=encoded_image(3))
    await call.write(pb.WatchRequest(frame=frame))
    await call.read()
    assert (await client.stats()).open_streams == before.open_streams + 1
    await channel.close(grace=None)
    deadline_s = time.monotonic() + 5
    while (await client.stats()).open_streams > before.open_streams:
        assert time.monotonic() < deadline_s, "the stream of a vanished client is still open"
        await asyncio.sleep(0.05)
    after = await client.stats()
    assert after.frames_in_flight == 0
    ends = ("answered", "superseded", "rejected", "failed", "abandoned")
    assert after.frames_received == sum(getattr(after, f"frames_{end}") for end in ends)
