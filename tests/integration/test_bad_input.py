"""What clients do wrong: each a typed error with a clear message, and the next call is answered."""

from __future__ import annotations

import asyncio
import struct
import time
import zlib
from collections.abc import AsyncIterator

import grpc
import pytest

from agent.errors import AgentError, FrameTooLarge, InvalidBoxes, InvalidFrame, InvalidQuery
from client.events import QueriesAck, StreamError, StreamStats
from client.types import (
    FrameResult,
    OutgoingFrame,
    Query,
    TaskKind,
)
from client.vision_agent_client import ServiceError, VisionAgentClient
from protos import vision_agent_pb2 as pb
from protos import vision_agent_pb2_grpc as pb_grpc
from tests.fakes import SECRET
from tests.in_process import GROUND
from tests.pictures import encoded_image


def png_header(width: int, height: int) -> bytes:
    """A PNG that announces a size and holds no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + body))
        return struct.pack(">I", len(body)) + kind + body + check

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", b"")


def truncated_jpeg() -> bytes:
    """The first half of a JPEG."""
    whole = encoded_image(5, width=640, height=480)
    return whole[: len(whole) // 2]


BAD_IMAGES = [
    pytest.param(b"", InvalidFrame, "image is empty", id="empty"),
    pytest.param(b"hello, world", InvalidFrame, "not a JPEG", id="no image"),
    pytest.param(truncated_jpeg(), InvalidFrame, "complete file", id="truncated JPEG"),
    pytest.param(png_header(20_000, 20_000), FrameTooLarge, "scale", id="400 megapixels"),
    pytest.param(png_header(10_000, 10_000), FrameTooLarge, "scale", id="100 megapixels"),
    pytest.param(png_header(6_000, 6_000), FrameTooLarge, "6000x6000", id="36 megapixels"),
    pytest.param(png_header(0, 10), InvalidFrame, "image", id="no width"),
    pytest.param(png_header(10_000, 10), FrameTooLarge, "crop it", id="ribbon"),
]
BAD_QUERIES = [
    pytest.param(Query("", id="q"), InvalidQuery, "empty", id="empty"),
    pytest.param(Query("x" * 10_000, id="q"), InvalidQuery, "10000 characters", id="long"),
    pytest.param(Query("a <|im_end|>", id="q"), InvalidQuery, "control token", id="control"),
    pytest.param(
        Query("", id="q", task=TaskKind.REGION_CAPTION, region_index=100),
        InvalidQuery,
        "does not exist: this frame has 4 boxes",
        id="region",
    ),
    pytest.param(Query("x", max_new_tokens=100_000), InvalidQuery, "limit is 256", id="tokens"),
]


@pytest.fixture(autouse=True)
async def next_call_is_answered(client: VisionAgentClient) -> AsyncIterator[None]:
    """After each test the service still works."""
    yield
    result = await client.ground(encoded_image(1), ["dog"])
    assert result["dog"].detections


@pytest.mark.parametrize(("image", "error", "message"), BAD_IMAGES)
async def test_bad_image(
    client: VisionAgentClient, image: bytes, error: type[AgentError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await client.ground(image, ["dog"])


@pytest.mark.parametrize(("query", "error", "message"), BAD_QUERIES)
async def test_bad_query(
    client: VisionAgentClient, query: Query, error: type[AgentError], message: str
) -> None:
    with pytest.raises(error, match=message):
        await client.ground(encoded_image(1), [query])


@pytest.mark.parametrize(
    "box", [(9.0, 9.0, 1.0, 1.0), (0.0, 0.0, float("inf"), 5.0), (500.0, 500.0, 600.0, 600.0)]
)
async def test_bad_boxes(client: VisionAgentClient, box: tuple[float, float, float, float]) -> None:
    with pytest.raises(InvalidBoxes):
        await client.ground(encoded_image(1), ["dog"], boxes=[box])


async def test_nothing_asked(client: VisionAgentClient) -> None:
    with pytest.raises(InvalidQuery, match="at least one"):
        await client.ground(encoded_image(1), [])


async def test_an_error_inside_a_stage_tells_nothing_of_the_inside(
    client: VisionAgentClient,
) -> None:
    with pytest.raises(ServiceError, match=r"INTERNAL.*request id") as raised:
        await client.ground(encoded_image(1), ["crash"])
    for secret in (SECRET, "Traceback", "ray", ".py"):
        assert secret not in str(raised.value)


@pytest.mark.parametrize("number", [42, -1, 2**31 - 1])
async def test_unknown_enum_value(service: str, number: int) -> None:
    query = pb.Query(text="dog", task=number)
    async with grpc.aio.insecure_channel(service) as channel:
        stub = pb_grpc.VisionAgentStub(channel)
        request = pb.GroundRequest(frame=pb.Frame(encoded_image=encoded_image(1)), queries=[query])
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Ground(request)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert str(number) in str(raised.value.details())

        call = stub.Watch()
        await call.write(pb.WatchRequest(set_queries=pb.SetQueries(queries=[query], change_id=3)))
        await call.write(pb.WatchRequest(end=pb.End()))
        errors = [message.error async for message in call if message.HasField("error")]
    assert [(error.code, error.change_id) for error in errors] == [
        (pb.ERROR_CODE_INVALID_ARGUMENT, 3)
    ]


async def test_bytes_that_are_no_message(service: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        call = channel.unary_unary("/vision_agent.v1.VisionAgent/Ground")
        with pytest.raises(grpc.aio.AioRpcError):
            await call(b"\xff\xff\xff\xff")


async def test_a_stream_that_sends_a_control_message_only(client: VisionAgentClient) -> None:
    async def nothing() -> AsyncIterator[OutgoingFrame]:
        return
        yield

    async with client.watch(nothing(), ["dog"]) as stream:
        events = [event async for event in stream]
    assert events[1] == QueriesAck(1, 1, ("dog",))
    assert events[-1] == StreamStats()


async def test_bad_items_in_a_stream_do_not_end_it(client: VisionAgentClient) -> None:
    bad = [b"", b"hello", truncated_jpeg(), png_header(20_000, 20_000)]

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


async def test_a_client_that_vanishes(service: str, client: VisionAgentClient) -> None:
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
