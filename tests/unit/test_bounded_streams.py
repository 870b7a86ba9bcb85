"""What one stream may hold and how long it may be silent; ages when the wall clock is set."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import grpc
import pytest

from agent import clock
from agent.streaming.answers import Evidence
from agent.streaming.inbox import Inbox
from agent.streaming.policy import DropPolicy
from agent.streaming.session import Session
from deployments.streams.buffers import PictureBuffer
from deployments.wire import status
from groundstream import aio
from groundstream.errors import Overloaded
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import FrameResult
from tests.in_process import FOLLOW, SETTINGS, conversation, running_service, still

HOUR_NS = 3_600_000_000_000


def test_a_window_is_bounded_in_bytes() -> None:
    inbox: Inbox[str] = Inbox(DropPolicy.LOSSLESS, 64, max_bytes=100)
    for number in range(5):
        inbox.put(str(number), num_bytes=20)
    with pytest.raises(Overloaded, match="5 frames of 100 bytes"):
        inbox.put("x", num_bytes=1)
    assert (len(inbox), inbox.num_bytes, inbox.take()) == (5, 100, "0")
    inbox.put("y", num_bytes=20)
    assert inbox.configure(DropPolicy.OLDEST_WINS, 64) == []
    assert inbox.put("z", num_bytes=20) == ["z"]


def test_one_frame_larger_than_the_window_waits_alone() -> None:
    inbox: Inbox[str] = Inbox(DropPolicy.LOSSLESS, 64, max_bytes=100)
    inbox.put("large", num_bytes=1000)
    with pytest.raises(Overloaded):
        inbox.put("small", num_bytes=1)
    assert inbox.take() == "large"
    inbox.put("small", num_bytes=1)


def test_a_session_hands_its_frames_sizes_on() -> None:
    session: Session[str] = Session(max_queries=1, max_window_bytes=10)
    session.set_policy(dataclasses.replace(session.policy, drop=DropPolicy.LOSSLESS, window=8))
    session.offer("a", 1, num_bytes=8)
    with pytest.raises(Overloaded):
        session.offer("b", 2, num_bytes=8)
    assert session.books.rejected == 1


def test_kept_pictures_are_bounded_in_bytes_and_in_number() -> None:
    kept = PictureBuffer(max_bytes=100)
    for number in range(10):
        kept.put(number, bytes(30))
    assert (len(kept), kept.num_bytes) == (3, 90)
    assert kept.take(6) is None
    assert len(kept) == 3
    # Those before it will not be asked for.
    assert kept.take(8) == bytes(30)
    assert (len(kept), kept.num_bytes) == (1, 30)
    assert kept.take(9) == bytes(30)
    assert (len(kept), kept.num_bytes) == (0, 0)
    kept.put(10, bytes(1000))
    assert (len(kept), kept.num_bytes) == (1, 1000)
    for number in range(11, 200):
        kept.put(number, b"x")
    assert len(kept) == 64
    kept.clear()
    assert (len(kept), kept.num_bytes) == (0, 0)


async def test_a_silent_stream_ends_and_can_be_resumed() -> None:
    stream = dataclasses.replace(SETTINGS.stream, idle_s=0.4)
    settings = dataclasses.replace(SETTINGS, stream=stream)
    async with (
        running_service(settings=settings) as service,
        grpc.aio.insecure_channel(service.target) as channel,
    ):
        call = pb_grpc.VisionAgentStub(channel).Watch(timeout=20)
        await call.write(pb.WatchRequest(open=pb.OpenStream()))
        for _ in range(4):  # Whatever is said keeps it open.
            await asyncio.sleep(0.2)
            await call.write(pb.WatchRequest(ack=pb.Ack(sequence=1)))
        token, last = "", pb.WatchResponse()

        async def read_all() -> None:
            nonlocal token, last
            while (response := await call.read()) is not grpc.aio.EOF:
                token = response.opened.resume_token or token
                last = response

        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await read_all()
        assert raised.value.code() is grpc.StatusCode.ABORTED
        assert dict(raised.value.trailing_metadata())["groundstream-error"] == "STREAM_IDLE"
        assert last.HasField("stats")
        assert not last.stats.ended
        again = pb_grpc.VisionAgentStub(channel).Watch(timeout=20)
        await again.write(pb.WatchRequest(open=pb.OpenStream(resume_token=token)))
        assert (await again.read()).opened.resumed
        again.cancel()


@pytest.mark.parametrize("sends", ["nothing", "acks"])
async def test_a_stream_that_is_not_read_ends(monkeypatch: pytest.MonkeyPatch, sends: str) -> None:
    monkeypatch.setattr(status, "_TELL_S", 0.2)
    stream = dataclasses.replace(SETTINGS.stream, idle_s=0.5)
    settings = dataclasses.replace(SETTINGS, stream=stream)
    narrow = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with (
        running_service(settings=settings) as service,
        grpc.aio.insecure_channel(service.target, options=narrow) as channel,
    ):
        call = pb_grpc.VisionAgentStub(channel).Watch(timeout=20)
        queries = [pb.Query(id="x" * 190 + str(number), text="dog") for number in range(4)]
        change = pb.WatchRequest(set_queries=pb.SetQueries(queries=queries))
        for _ in range(100):
            await call.write(change)
        async with asyncio.timeout(8):
            while service.metrics.num_open_streams:
                if sends == "acks":
                    await call.write(pb.WatchRequest(ack=pb.Ack(sequence=1)))
                await asyncio.sleep(0.1)
        assert service.metrics.failures["STREAM_IDLE"] == 1
        call.cancel()


async def test_ages_do_not_follow_the_wall_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    really, set_by = time.time_ns, 0
    monkeypatch.setattr(time, "time_ns", lambda: really() + set_by)
    policy = dataclasses.replace(FOLLOW, max_age_ms=60_000.0)
    async with (
        running_service() as service,
        aio.Client(service.target) as client,
        conversation(client, "dog", policy=policy) as talk,
    ):
        results = []
        for number in range(1, 40):
            talk.send_frame(still(number))
            await asyncio.sleep(0.02)
            event = await talk.next()
            if isinstance(event, FrameResult) and event.results[0].evidence_sequence:
                results.append(event)
                set_by = -HOUR_NS
            if len(results) >= 3:
                break
    last = results[-1]
    assert 0.0 <= last.results[0].evidence_age_ms < 60_000.0
    assert all(0.0 <= box.evidence_age_ms < 60_000.0 for box in last.results[0].detections)
    # Stamps do follow it.
    assert abs(last.answered_time_ns - (really() - HOUR_NS)) < 60_000_000_000


def test_moments_become_stamps(monkeypatch: pytest.MonkeyPatch) -> None:
    moment = clock.steady_ns()
    assert abs(clock.stamp_ns(moment) - time.time_ns()) < 1_000_000_000
    really = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: really() + HOUR_NS)
    assert abs(clock.stamp_ns(moment) - moment - HOUR_NS) < 1_000_000_000
    assert clock.steady_ns() - moment < 10_000_000_000


def test_an_age_is_never_negative() -> None:
    assert Evidence(1, HOUR_NS).age_s(0) == 0.0
