"""What callers can take before anybody knows them, and that others are answered meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.server_settings import AccessSettings, ServerSettings
from agent.settings import ServiceSettings
from deployments.admission import EvictingLimit
from deployments.front_end import interceptor, server
from deployments.front_end.api_keys import add_api_key
from deployments.observability.logs import configure_logs
from groundstream.errors import Overloaded
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from tests.in_process import SETTINGS, Service, running_service
from tests.pictures import encoded_image

GROUND = "/vision_agent.v1.VisionAgent/Ground"
WATCH = "/vision_agent.v1.VisionAgent/Watch"
SMALL = ServerSettings(
    drain_grace_s=0.2,
    max_waiting_calls=4,
    first_message_s=0.5,
    max_health_calls=4,
    max_concurrent_rpcs=8,
)
FEW = dataclasses.replace(SETTINGS, server=SMALL)
MANY_TURNS = b"\x12\x80\x80\x40" + b"\x3a\x00" * (2**19)
"""Ground: one query with half a million empty turns."""


@contextlib.asynccontextmanager
async def connection(
    service: Service, *options: tuple[str, int]
) -> AsyncIterator[grpc.aio.Channel]:
    """One of its own: channels in one process share theirs otherwise."""
    own = ("grpc.use_local_subchannel_pool", 1)
    async with grpc.aio.insecure_channel(service.target, options=[own, *options]) as channel:
        yield channel


async def is_answered(channel: grpc.aio.Channel) -> bool:
    """A good caller's call."""
    request = pb.GroundRequest(
        frame=pb.Frame(encoded_image=encoded_image(1)), queries=[pb.Query(text="dog")]
    )
    response = await pb_grpc.VisionAgentStub(channel).Ground(request, timeout=10)
    return len(response.result.results) == 1


def with_keys(tmp_path: Path) -> tuple[ServiceSettings, str]:
    """A service that asks for keys, and one of them."""
    path = tmp_path / "keys.yaml"
    key = add_api_key(path, tenant="tenant", name="a")
    return dataclasses.replace(FEW, access=AccessSettings(api_keys=str(path))), key


async def test_nothing_of_a_stranger_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    monkeypatch.setattr(interceptor, "check_message", lambda content, *_, **__: read.append(1))
    settings, _ = with_keys(tmp_path)
    async with running_service(settings=settings) as service, connection(service) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(GROUND)(MANY_TURNS, compression=grpc.Compression.Gzip)
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert read == []


async def test_a_refused_call_has_a_request_id(tmp_path: Path) -> None:
    settings, key = with_keys(tmp_path)
    async with running_service(settings=settings) as service, connection(service) as channel:
        for metadata in ((), (("authorization", f"Bearer {key}"),)):
            for brought in ("", "mine-1"):
                sent = (*metadata, *([("x-request-id", brought)] if brought else []))
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await channel.unary_unary(GROUND)(MANY_TURNS, metadata=sent)
                said = dict(raised.value.trailing_metadata())["groundstream-request-id"]
                assert said == brought if brought else len(said) == 32


async def test_counts_are_refused_by_type_and_a_stream_goes_on() -> None:
    async with running_service(settings=FEW) as service, connection(service) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await channel.unary_unary(GROUND)(MANY_TURNS, compression=grpc.Compression.Gzip)
        assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert dict(raised.value.trailing_metadata())["groundstream-error"] == "INVALID_QUERY"
        call = channel.stream_stream(WATCH, response_deserializer=pb.WatchResponse.FromString)()
        queries = pb.SetQueries(queries=[pb.Query(text="dog")] * 100, change_id=7)
        await call.write(pb.WatchRequest(set_queries=queries).SerializeToString())
        error = await next_error(call)
        assert (error.code, error.change_id) == (pb.ERROR_CODE_INVALID_QUERY, 7)
        boxes = pb.BoxList(boxes=[pb.Box(x2=1, y2=1)] * 5000)
        frame = pb.Frame(sequence=5, encoded_image=encoded_image(1), boxes=boxes)
        await call.write(pb.WatchRequest(frame=frame).SerializeToString())
        error = await next_error(call)
        assert (error.code, error.sequence) == (pb.ERROR_CODE_INVALID_BOXES, 5)
        await call.write(pb.WatchRequest(end=pb.End()).SerializeToString())
        last = None
        while (response := await call.read()) is not grpc.aio.EOF:
            last = response
        assert last is not None
        assert last.stats.ended
        assert (last.stats.received, last.stats.rejected) == (1, 1)


async def test_a_number_of_more_bits_than_it_may_have_ends_no_stream() -> None:
    long = b"\xff" * 9 + b"\x7f"  # A varint of 70 bits.
    async with running_service(settings=FEW) as service, connection(service) as channel:
        call = channel.stream_stream(WATCH, response_deserializer=pb.WatchResponse.FromString)()
        twice = b"\x28\x02" * 2  # The priority of a frame: refused before it is parsed.
        await call.write(b"\x0a" + bytes([len(long) + 5]) + b"\x08" + long + twice)
        assert (await next_error(call)).sequence == 2**64 - 1
        await call.write(b"\x1a" + bytes([len(long) + 3]) + b"\x10" + long + b"\x10\x01")
        assert (await next_error(call)).change_id == 2**64 - 1
        await call.write(pb.WatchRequest(end=pb.End()).SerializeToString())
        while (response := await call.read()) is not grpc.aio.EOF:
            last = response
    assert last.stats.ended
    assert (last.stats.received, last.stats.rejected) == (1, 1)


async def next_error(call: grpc.aio.StreamStreamCall) -> pb.StreamError:
    """The next message that is an error."""
    async with asyncio.timeout(10):
        while True:
            response = await call.read()
            if response.HasField("error"):
                return response.error


async def test_calls_without_a_message_lock_nobody_out() -> None:
    async with (
        running_service(settings=FEW) as service,
        connection(service) as bad,
        connection(service) as good,
    ):
        calls = [bad.stream_stream(WATCH)(timeout=20) for _ in range(30)]
        await asyncio.sleep(0.1)
        assert await is_answered(good)
        codes = await asyncio.wait_for(asyncio.gather(*(call.code() for call in calls)), 10)
    # The good call needed a place, too, unless some had timed out by then.
    assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) in (26, 27)
    assert codes.count(grpc.StatusCode.INVALID_ARGUMENT) in (3, 4)


async def test_watching_health_locks_nobody_out() -> None:
    async with (
        running_service(settings=FEW) as service,
        connection(service) as bad,
        connection(service) as good,
    ):
        watching = health_pb2_grpc.HealthStub(bad)
        calls = [watching.Watch(health_pb2.HealthCheckRequest(), timeout=20) for _ in range(30)]
        await asyncio.sleep(0.1)
        assert await is_answered(good)
        asked = health_pb2_grpc.HealthStub(good)
        for _ in range(3):
            response = await asked.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert response.status == health_pb2.HealthCheckResponse.SERVING
        first = await asked.Watch(health_pb2.HealthCheckRequest(), timeout=10).read()
        assert first.status == health_pb2.HealthCheckResponse.SERVING
        for call in calls:
            call.cancel()


async def test_callers_beyond_the_limit_are_told_so() -> None:
    async with running_service(settings=FEW) as service, connection(service) as channel:
        pause = pb.WatchRequest(pause=pb.Pause())
        calls = []
        for _ in range(9):
            # One after the other: calls without a message have a smaller limit of their own.
            calls.append(pb_grpc.VisionAgentStub(channel).Watch(timeout=20))
            await calls[-1].write(pause)
        _, left = await asyncio.wait(
            [asyncio.ensure_future(call.code()) for call in calls],
            return_when=asyncio.FIRST_COMPLETED,
        )
        assert len(left) == 8
        refused = next(call for call in calls if call.done())
        assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(await refused.trailing_metadata())["groundstream-error"] == "OVERLOADED"
        health = health_pb2_grpc.HealthStub(channel)
        await health.Check(health_pb2.HealthCheckRequest(), timeout=10)
        for call in calls:
            call.cancel()


async def test_silent_connections_end_and_leave_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HANDSHAKE_S", 1.0)
    few = dataclasses.replace(SMALL, max_connections=8)
    async with (
        running_service(settings=dataclasses.replace(FEW, server=few)) as service,
        connection(service) as known,
    ):
        assert await is_answered(known)
        host, port = service.target.split(":")
        silent = [socket.create_connection((host, int(port)), timeout=5) for _ in range(30)]
        await asyncio.sleep(0.1)
        assert await is_answered(known)
        await asyncio.sleep(1.5)
        async with connection(service) as late:
            assert await is_answered(late)
        for one in silent:
            one.close()


async def test_a_credential_that_is_no_text_is_not_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    configure_logs("text")
    caplog.set_level(logging.DEBUG)
    settings, _ = with_keys(tmp_path)
    async with running_service(settings=settings) as service:
        said = await asyncio.to_thread(call_by_hand, service.target, b"Bearer SECRET\xff\xfe")
    assert b"UNAUTHENTICATED" in said
    assert "SECRET" not in caplog.text


def call_by_hand(target: str, authorization: bytes) -> bytes:
    """The trailers' bytes of a call whose metadata no library would send."""
    host, port = target.split(":")
    headers = [
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", GROUND.encode()),
        (b":authority", target.encode()), (b"te", b"trailers"),
        (b"content-type", b"application/grpc"), (b"authorization", authorization),
    ]  # fmt: skip
    block = b"".join(
        b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value for name, value in headers
    )

    def frame(kind: int, flags: int, stream: int, content: bytes) -> bytes:
        head = struct.pack(">I", len(content))[1:] + bytes([kind, flags])
        return head + struct.pack(">I", stream) + content

    with socket.create_connection((host, int(port)), timeout=5) as wire:
        wire.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
        wire.sendall(frame(1, 4, 1, block) + frame(0, 1, 1, b"\0\0\0\0\0"))
        said = b""
        with contextlib.suppress(TimeoutError):
            while b"groundstream-error" not in said and (more := wire.recv(65536)):
                said += more
        return said


async def test_a_room_puts_out_the_oldest_of_whoever_crowds_it() -> None:
    room, ended = EvictingLimit(3, "calls"), []

    async def stay(whose: str, name: str) -> None:
        try:
            async with room.taken((whose,)):
                await asyncio.sleep(60)
        except Overloaded:
            ended.append(name)

    calls = []
    for whose, name in (("a", "a1"), ("b", "b1"), ("b", "b2"), ("c", "c1"), ("d", "d1")):
        calls.append(asyncio.create_task(stay(whose, name)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await asyncio.sleep(0.01)
    assert ended == ["b1", "a1"]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
