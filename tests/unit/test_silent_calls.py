"""Calls that say nothing make room for newcomers, and no write waits for ever for its reader."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest

from agent.features import FrameFeatures, Generation
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.server_settings import ServerSettings
from agent.streaming.session import Session
from deployments.admission import Owner, YieldingLimit
from deployments.wire import status
from groundstream.errors import Overloaded, StreamIdle
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from tests.fakes import FakeStages
from tests.in_process import SETTINGS, Service, running_service
from tests.pictures import encoded_image
from tests.waiting import eventually

SILENT_S = 0.4
PLACES = 6
SERVER = ServerSettings(
    drain_grace_s=0.2, max_concurrent_rpcs=PLACES, silent_s=SILENT_S, observe=True
)
FEW = dataclasses.replace(SETTINGS, server=SERVER)
PAUSE = pb.WatchRequest(pause=pb.Pause())
ACK = pb.WatchRequest(ack=pb.Ack(sequence=1))


@contextlib.asynccontextmanager
async def stub(
    service: Service, *options: tuple[str, int]
) -> AsyncIterator[pb_grpc.VisionAgentStub]:
    """Of a connection of its own."""
    own = ("grpc.use_local_subchannel_pool", 1)
    async with grpc.aio.insecure_channel(service.target, options=[own, *options]) as channel:
        yield pb_grpc.VisionAgentStub(channel)


async def silent_streams(agent: pb_grpc.VisionAgentStub, number: int) -> list[Any]:
    """Streams that were opened one after the other and say nothing more."""
    calls = []
    for _ in range(number):
        calls.append(agent.Watch(timeout=30))
        await calls[-1].write(PAUSE)
        await calls[-1].read()  # The first report: it has its place.
        read_on(calls[-1])
    return calls


def read_on(call: Any) -> None:
    """Read what comes on a call, behind which its status comes."""

    async def read() -> None:
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.CancelledError):
            while await call.read() is not grpc.aio.EOF:
                pass

    call.reading = asyncio.create_task(read())


async def ground(agent: pb_grpc.VisionAgentStub, text: str = "dog", **more: Any) -> Any:
    """One call's response."""
    frame = pb.Frame(encoded_image=encoded_image(1))
    request = pb.GroundRequest(frame=frame, queries=[pb.Query(text=text)])
    return await agent.Ground(request, timeout=10, **more)


async def why_it_ended(call: Any) -> tuple[grpc.StatusCode, str]:
    """Status and our code of a call."""
    async with asyncio.timeout(10):
        code = await call.code()
        return code, dict(await call.trailing_metadata()).get("groundstream-error", "")


def ended(calls: list[Any]) -> list[int]:
    """Which of them are over."""
    return [number for number, call in enumerate(calls) if call.done()]


async def test_silent_streams_lock_nobody_out() -> None:
    async with (
        running_service(settings=FEW) as service,
        stub(service) as bad,
        stub(service) as good,
    ):
        calls = await silent_streams(bad, PLACES)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ground(good)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        await calls[0].write(ACK)  # The next one has been silent for longest from here on.
        await asyncio.sleep(1.2 * SILENT_S)
        await ground(good)
        await eventually(lambda: ended(calls))
        assert ended(calls) == [1]
        assert await why_it_ended(calls[1]) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")
        assert "resume" in await calls[1].details()
        # The place is free again: nobody else has to go.
        await ground(good)
        assert ended(calls) == [1]


async def test_who_crowds_the_service_gets_no_more_by_it() -> None:
    async with running_service(settings=FEW) as service, stub(service) as bad:
        calls = await silent_streams(bad, PLACES)
        await asyncio.sleep(1.2 * SILENT_S)
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await ground(bad)
        assert raised.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert ended(calls) == []


async def test_many_connections_with_a_silent_stream_each_lock_nobody_out() -> None:
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_service(settings=FEW))
        good = await stack.enter_async_context(stub(service))
        calls = []
        for _ in range(PLACES):
            calls += await silent_streams(await stack.enter_async_context(stub(service)), 1)
        await asyncio.sleep(1.2 * SILENT_S)
        await ground(good)
        await eventually(lambda: ended(calls))
        assert ended(calls) == [0]


async def test_a_stream_whose_frame_is_answered_is_not_silent() -> None:
    async with (
        running_service(settings=FEW) as service,
        stub(service) as bad,
        stub(service) as good,
    ):
        calls = []
        policy = pb.StreamPolicy(mode=pb.ANSWER_MODE_GROUND)
        queries = pb.SetQueries(queries=[pb.Query(text="held")])
        for number in range(PLACES):
            call = bad.Watch(timeout=30)
            await call.write(pb.WatchRequest(set_policy=pb.SetPolicy(policy=policy)))
            await call.write(pb.WatchRequest(set_queries=queries))
            frame = pb.Frame(sequence=1, encoded_image=encoded_image(number))
            await call.write(pb.WatchRequest(frame=frame))
            read_on(call)
            calls.append(call)
        await eventually(lambda: service.metrics.totals().frames_received == PLACES)
        await asyncio.sleep(1.5 * SILENT_S)
        with pytest.raises(grpc.aio.AioRpcError):
            await ground(good)
        assert ended(calls) == []
        service.stages.released.set()
        await eventually(lambda: service.metrics.totals().frames_in_flight == 0)
        with pytest.raises(grpc.aio.AioRpcError):
            await ground(good)  # They were told something a moment ago.
        await asyncio.sleep(1.2 * SILENT_S)
        await ground(good)


async def test_a_single_call_that_takes_long_is_not_silent() -> None:
    async with (
        running_service(settings=FEW) as service,
        stub(service) as bad,
        stub(service) as good,
    ):
        calls = [asyncio.create_task(ground(bad, f"held {number}")) for number in range(PLACES)]
        await service.stages.until_asked(PLACES)
        await asyncio.sleep(1.2 * SILENT_S)
        with pytest.raises(grpc.aio.AioRpcError):
            await ground(good)
        service.stages.released.set()
        await asyncio.gather(*calls)


async def test_who_looks_on_where_nothing_happens_is_silent() -> None:
    async with (
        running_service(settings=FEW) as service,
        stub(service) as bad,
        stub(service) as good,
    ):
        (seen,) = await silent_streams(bad, 1)
        calls = [bad.Observe(pb.ObserveRequest(number=1)) for _ in range(PLACES - 1)]
        for call in calls:
            read_on(call)
        await asyncio.sleep(1.2 * SILENT_S)
        await seen.write(ACK)
        await ground(good)
        await eventually(lambda: ended(calls))
        assert not seen.done()
        (number,) = ended(calls)
        assert await why_it_ended(calls[number]) == (grpc.StatusCode.ABORTED, "STREAM_IDLE")


async def test_a_stream_that_made_room_is_resumed() -> None:
    async with (
        running_service(settings=FEW) as service,
        stub(service) as bad,
        stub(service) as good,
    ):
        call = bad.Watch(timeout=30)
        await call.write(pb.WatchRequest(open=pb.OpenStream()))
        token = (await call.read()).opened.resume_token
        queries = pb.SetQueries(queries=[pb.Query(id="q", text="dog")])
        await call.write(pb.WatchRequest(set_queries=queries))
        read_on(call)
        await silent_streams(bad, PLACES - 1)
        await asyncio.sleep(1.2 * SILENT_S)
        await ground(good)
        assert (await why_it_ended(call))[1] == "STREAM_IDLE"
        again = good.Watch(timeout=30)
        await again.write(pb.WatchRequest(open=pb.OpenStream(resume_token=token)))
        opened = (await again.read()).opened
        assert opened.resumed
        assert list(opened.query_ids) == ["q"]
        again.cancel()


def places_of(*owners: Owner) -> tuple[YieldingLimit, list[asyncio.Task[None]]]:
    """As many places as owners, each of whom has been silent for as long as it stands back."""
    limit = YieldingLimit(len(owners), silent_s=1.0)

    async def stay(owner: Owner, silence_s: float) -> None:
        async with limit.taken(owner, lambda: silence_s):
            await asyncio.sleep(60)

    silences = range(1, len(owners) + 1)
    return limit, [
        asyncio.create_task(stay(owner, float(silence_s)))
        for owner, silence_s in zip(owners, silences, strict=True)
    ]


A, A2, B, C = ("a", "host", "1"), ("a", "host", "2"), ("b", "host", "3"), ("c", "host", "4")


@pytest.mark.parametrize(
    ("owners", "newcomer", "gone"),
    [
        ((A, A, B), C, 1),  # The tenant with most; of its calls the one longest silent.
        ((A, A, B), B, 1),
        ((B, A, A2), C, 2),
        ((A, A, A2), A2, 1),  # In one tenant, connections count.
        ((A, A, B), A, None),
        ((A, A2), B, 1),
        ((A, B), A, None),
        ((A, B), C, 1),
    ],
)
async def test_who_makes_room(owners: tuple[Owner, ...], newcomer: Owner, gone: int | None) -> None:
    limit, calls = places_of(*owners)
    await asyncio.sleep(0)
    if gone is None:
        with pytest.raises(Overloaded, match="try again"):
            async with limit.taken(newcomer, lambda: 0.0):
                pass
    else:
        async with limit.taken(newcomer, lambda: 0.0):
            await asyncio.wait([calls[gone]], timeout=1)
        with pytest.raises(StreamIdle):
            calls[gone].result()
    assert [call.done() for call in calls] == [number == gone for number in range(len(calls))]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)


def test_a_frame_that_waits_for_an_ack_is_not_answered() -> None:
    session: Session[str] = Session(max_queries=1)
    assert not session.is_answering
    session.set_policy(dataclasses.replace(session.policy, ack_window=1))
    session.deliver(0)
    session.offer("frame", 1)
    assert not session.is_answering
    session.acknowledge(0)
    assert session.is_answering
    session.pause()
    assert not session.is_answering


# ---- clients that read nothing ----


class Talkative(FakeStages):
    """Writes more than a connection holds that nobody reads."""

    async def _aloud(self) -> AsyncIterator[str | Generation]:
        for _ in range(40):
            yield "words " * 1000

    def write_answer(self, features: FrameFeatures, task: Task) -> AsyncIterator[str | Generation]:
        return self._aloud()


NARROW = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
MANY = pb.BoxList(boxes=[pb.Box(x2=n % 90 + 1, y2=n % 60 + 1) for n in range(1000)])


async def unread_ask(agent: pb_grpc.VisionAgentStub) -> Any:
    frame = pb.Frame(encoded_image=encoded_image(1))
    return agent.Ask(pb.AskRequest(frame=frame, query=pb.Query(text="dog")))


async def unread_anytime(agent: pb_grpc.VisionAgentStub) -> Any:
    frame = pb.Frame(encoded_image=encoded_image(1), boxes=MANY)
    count = pb.Query(text="dog", task=pb.TASK_KIND_COUNT)
    return agent.GroundAnytime(pb.GroundAnytimeRequest(frame=frame, queries=[count] * 4))


async def unread_observe(agent: pb_grpc.VisionAgentStub) -> Any:
    call = agent.Watch(timeout=30)
    await call.write(PAUSE)
    await call.read()
    looking = agent.Observe(pb.ObserveRequest(number=1))
    await call.write(pb.WatchRequest(resume=pb.Resume()))

    async def send() -> None:
        for sequence in itertools.count(1):
            picture = encoded_image(sequence, width=400, height=300)
            frame = pb.Frame(sequence=sequence, encoded_image=picture)
            await call.write(pb.WatchRequest(frame=frame))
            while not (await call.read()).HasField("result"):
                pass
            await asyncio.sleep(0.005)

    looking.sending = asyncio.create_task(send())
    return looking


@pytest.mark.parametrize("begin", [unread_ask, unread_anytime, unread_observe])
async def test_a_call_that_nobody_reads_ends(
    monkeypatch: pytest.MonkeyPatch, begin: Callable[[pb_grpc.VisionAgentStub], Any]
) -> None:
    monkeypatch.setattr(status, "_TELL_S", 0.2)
    stream = dataclasses.replace(FEW.stream, idle_s=0.5)
    settings = dataclasses.replace(FEW, stream=stream)

    def pipeline(_metrics: Any) -> Pipeline:
        return Pipeline(Talkative(), MemoryRegionCache(), model_digest="m")

    async with (
        running_service(settings=settings, grounder=pipeline) as service,
        stub(service, *NARROW) as agent,
    ):
        call = await begin(agent)
        await eventually(lambda: service.metrics.failures["STREAM_IDLE"])
        if begin is unread_observe:
            call.sending.cancel()  # The stream that was looked on at goes on.
            assert service.metrics.num_open_streams == 1
        call.cancel()
