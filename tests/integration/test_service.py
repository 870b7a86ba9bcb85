"""The whole service with fake stages: answers, streams, health, reflection, capabilities."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import psutil
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from groundstream import aio
from groundstream.errors import InvalidFrame
from groundstream.events import QueriesAck, StreamError, StreamStats
from groundstream.types import (
    AnswerStatus,
    FrameResult,
    OutgoingFrame,
    OutgoingPacket,
    Query,
    TaskKind,
    VideoCodec,
)
from groundstream.video.playback import play_packets
from groundstream.video.sources import VideoFile
from tests.clips import write_clip
from tests.fakes import NUM_BOXES
from tests.in_process import GROUND
from tests.integration.conftest import RedisSwitch
from tests.pictures import encoded_image
from tests.processes import named_processes

_pictures = iter(range(1000, 100_000))


def new_image() -> bytes:
    """A picture no test has used."""
    return encoded_image(next(_pictures))


@pytest.fixture(autouse=True)
def redis(redis_switch: RedisSwitch) -> None:
    """These tests want a cache."""
    redis_switch.on()


async def wait_for_cache(client: aio.Client) -> None:
    """The service tries a cache that was away only now and then."""
    async with asyncio.timeout(10):
        image = new_image()
        while not (await client.ground(image, ["dog"])).cache_hit:
            await asyncio.sleep(0.05)


async def test_ground_answers_every_query(client: aio.Client) -> None:
    queries = [
        "dog",
        Query("absent cat", id="cat"),
        Query("birds", id="birds", task=TaskKind.COUNT),
        Query("", id="what", task=TaskKind.REGION_CAPTION, region_index=1),
    ]
    result = await client.ground(new_image(), queries)
    assert (result.width, result.height, result.num_proposals) == (96, 64, NUM_BOXES)
    assert result["dog"].detections[0].box == (0.0, 0.0, 48.0, 32.0)
    assert result["cat"].status is AnswerStatus.NOT_PRESENT
    assert len(result["birds"].detections) == NUM_BOXES
    assert result["what"].text == "thing 1"
    assert result.timings.total_ms > 0


async def test_a_repeated_question_runs_no_proposals_and_no_encoders(
    client: aio.Client,
) -> None:
    await wait_for_cache(client)
    image = new_image()
    first = await client.ground(image, ["dog"])
    await asyncio.sleep(0.2)  # Features are written off the critical path.
    before = (await client.stats()).stage_calls
    results = [await client.ground(image, [query]) for query in ("dog", "cat", "bird")]
    after = (await client.stats()).stage_calls
    assert not first.cache_hit
    assert all(result.cache_hit for result in results)
    assert results[0]["dog"].detections == first["dog"].detections
    assert after.propose == before.propose
    assert after.encode_primary == before.encode_primary
    assert after.encode_auxiliary == before.encode_auxiliary
    assert after.answer == before.answer + 3


async def test_client_boxes_reach_the_encoders(client: aio.Client) -> None:
    before = (await client.stats()).stage_calls
    result = await client.ground(new_image(), ["dog"], boxes=[(1.0, 2.0, 30.5, 40.0)])
    after = (await client.stats()).stage_calls
    assert result["dog"].detections[0].box == (1.0, 2.0, 30.5, 40.0)
    assert (after.propose - before.propose, after.encode_primary - before.encode_primary) == (0, 1)


async def test_a_large_frame_goes_through(client: aio.Client) -> None:
    large = encoded_image(1, width=1600, height=1200, kind="BMP")  # 5.8 MB
    result = await client.ground(large, ["dog"])
    assert result["dog"].detections[0].box == (0.0, 0.0, 800.0, 600.0)


async def test_many_clients_at_once(service: str) -> None:
    async def one(number: int) -> float:
        async with aio.Client(service) as own:
            result = await own.ground(new_image(), [f"thing {number}"])
            return result.results[0].detections[0].confidence

    answers = await asyncio.gather(*(one(number) for number in range(12)))
    assert answers == pytest.approx([0.9] * 12)


async def test_ask_tells_the_text_as_it_is_written(client: aio.Client) -> None:
    *pieces, result = [piece async for piece in client.ask(new_image(), "dog")]
    assert len(pieces) > 1
    assert isinstance(result, FrameResult)
    assert "".join(map(str, pieces)) == result["dog"].text


async def test_a_stream_with_a_change_in_the_middle(client: aio.Client) -> None:
    async def frames() -> AsyncIterator[OutgoingFrame]:
        for number in range(40):
            yield OutgoingFrame(new_image(), number, capture_time_ns=time.time_ns())
            await asyncio.sleep(0.02)

    events = []
    queries = [Query("dog", id="a"), Query("cat", id="b")]
    async with client.watch(frames(), queries, policy=GROUND) as stream:
        async for event in stream:
            events.append(event)
            num_results = sum(isinstance(event, FrameResult) for event in events)
            if isinstance(event, FrameResult) and num_results == 3:
                await stream.put_query(Query("absent bird", id="b"))
    assert [event.epoch for event in events if isinstance(event, QueriesAck)] == [1, 2]
    acked = False
    for event in events:
        acked = acked or (isinstance(event, QueriesAck) and event.epoch == 2)
        if isinstance(event, FrameResult) and any(a.query_id == "b" for a in event.results):
            # After the ack, no answer to the old words; before it, none to the new ones.
            assert event["b"].status is (AnswerStatus.NOT_PRESENT if acked else AnswerStatus.OK)
            assert event["b"].epoch == (2 if acked else 1)
    for event in events:
        if isinstance(event, StreamStats):
            assert event.balanced
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert (last.received, last.in_flight) == (40, 0)
    assert not [event for event in events if isinstance(event, StreamError)]


async def test_a_stream_of_packets(client: aio.Client, tmp_path: Path) -> None:
    """From a file with B pictures, one packet torn: all others are accounted for, and answered."""
    clip = write_clip(tmp_path / "clip.mp4", 60, b_frames=2, every=20)
    codecs = (await client.capabilities()).video_codecs
    assert codecs == tuple(VideoCodec)

    async def packets() -> AsyncIterator[OutgoingFrame | OutgoingPacket]:
        async for packet in play_packets(VideoFile(str(clip)), codecs):
            assert isinstance(packet, OutgoingPacket)
            torn = packet.sequence == 30
            yield dataclasses.replace(packet, data=b"\0\0\1\x41\x9a") if torn else packet

    async with client.watch(packets(), ["dog"]) as stream:
        events = [event async for event in stream]
    results = [event for event in events if isinstance(event, FrameResult)]
    assert len(results) > 10
    assert [result.sequence for result in results] == sorted({r.sequence for r in results})
    assert results[-1].sequence == 59
    assert {(result.width, result.height) for result in results} == {(160, 120)}
    assert results[-1]["dog"].detections
    errors = [event for event in events if isinstance(event, StreamError)]
    assert errors
    assert {error.code for error in errors} <= {"KEY_FRAME_NEEDED", "INVALID_FRAME"}
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert last.balanced
    assert (last.received, last.in_flight) == (stream.num_sent, 0)
    assert last.rejected == len(errors)
    assert stream.num_sent + stream.num_unsent == 60


async def test_capabilities_say_what_the_service_is(client: aio.Client) -> None:
    capabilities = await client.capabilities()
    assert len(capabilities.model_digest) == 64
    assert capabilities.tasks == tuple(TaskKind), "a model in a folder may know every task"
    assert capabilities.max_frame_bytes == 16 * 2**20


async def test_standard_health_and_reflection(service: str) -> None:
    async with grpc.aio.insecure_channel(service) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "vision_agent.v1.VisionAgent"):
            reply = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        call = reflection.ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {
            found.name async for reply in call for found in reply.list_services_response.service
        }
    assert "vision_agent.v1.VisionAgent" in names


async def test_only_guarded_ports_of_ray_leave_the_loopback_interface(service: str) -> None:
    open_ports = []
    for process, name in named_processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            open_ports += [
                (name, connection.laddr)
                for connection in process.net_connections("tcp")
                if connection.status == psutil.CONN_LISTEN
                and connection.laddr.ip.removeprefix("::ffff:") not in ("127.0.0.1", "::1")
            ]
    # Ray binds the port by which replicas call each other to all interfaces; it asks for a token.
    assert all("ServeReplica" in name for name, _ in open_ports), open_ports
    for _, address in open_ports:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{address.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await call(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_a_message_beyond_the_frame_limit_gets_our_own_error(
    client: aio.Client,
) -> None:
    with pytest.raises(InvalidFrame, match="limit is 16777216"):
        await client.ground(b"\xff" * (17 * 2**20), ["dog"])
