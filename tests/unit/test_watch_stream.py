"""Streams over a real channel, with the fake stages in this process: no Ray, milliseconds."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import grpc
import pytest

from groundstream import aio
from groundstream.errors import InvalidRequest
from groundstream.events import (
    Drain,
    QueriesAck,
    StreamActivity,
    StreamError,
    StreamOpened,
    StreamStats,
)
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.rpc_errors import ServiceError
from groundstream.types import FrameResult, OutgoingFrame, Query
from tests.fakes import SECRET
from tests.in_process import GROUND, SETTINGS, Service, check_books, conversation, frames
from tests.pictures import encoded_image


def counts(stats: StreamStats) -> StreamStats:
    """The books without what else the stream did."""
    return dataclasses.replace(stats, activity=StreamActivity())


async def test_a_stream_answers_and_closes_its_books(client: aio.Client) -> None:
    events = []
    async with client.watch(
        frames(*range(20), every_s=0.01), ["dog", "absent"], policy=GROUND
    ) as stream:
        async for event in stream:
            events.append(event)
    assert isinstance(events[0], StreamOpened)
    assert events[1] == QueriesAck(1, 1, ("dog", "absent"))
    results = [event for event in events if isinstance(event, FrameResult)]
    assert results
    assert [result.sequence for result in results] == sorted(r.sequence for r in results)
    assert results[-1].sequence == 19  # The newest frame is answered even after the end.
    for result in results:
        assert result.capture_time_ns == 1000 + result.sequence
        assert result.received_time_ns <= result.answered_time_ns
        assert result.epoch == 1
    last = events[-1]
    assert isinstance(last, StreamStats)
    check_books(last)
    assert last.received == 20
    assert last.answered == len(results)
    assert last.in_flight == 0


async def test_the_newest_frame_wins_while_one_is_answered(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "held") as talk:
        talk.send(0)
        await service.stages.until_asked()
        for number in (1, 2, 3, 4):
            talk.send(number)
        while service.metrics.totals().frames_received < 5:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.06)
        service.stages.released.set()
        talk.end()
        results = [event for event in await talk.rest() if isinstance(event, FrameResult)]
    assert [result.sequence for result in results] == [0, 4]
    assert counts(talk.stats[-1]) == StreamStats(5, 2, 3, 0, 0, 0, ended=True)
    assert results[1].timings.queue_ms > 50


async def test_an_answer_to_a_replaced_query_is_not_delivered(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, Query("held dog", id="q")) as talk:
        talk.send(0)
        await service.stages.until_asked()
        await talk.stream.put_query(Query("cat", id="q"))
        assert await talk.next() == QueriesAck(2, 2, ("q",))
        service.stages.released.set()
        talk.send(1)
        result = await talk.next()
        assert isinstance(result, FrameResult)
        assert result.sequence == 1
        assert (result.epoch, result["q"].epoch) == (2, 2)
        assert result["q"].detections[0].label == "cat"
        talk.end()
        await talk.rest()
    assert counts(talk.stats[-1]) == StreamStats(2, 1, 1, 0, 0, 0, ended=True)


async def test_the_other_answers_of_that_frame_are(client: aio.Client, service: Service) -> None:
    queries = [Query("held dog", id="changed"), Query("bird", id="kept")]
    async with conversation(client, *queries) as talk:
        talk.send(0)
        await service.stages.until_asked(2)
        await talk.stream.remove_query("changed")
        assert await talk.next() == QueriesAck(2, 2, ("kept",))
        service.stages.released.set()
        result = await talk.next()
        assert isinstance(result, FrameResult)
        assert [answer.query_id for answer in result.results] == ["kept"]
        assert (result.epoch, result["kept"].epoch) == (1, 1)


async def test_bad_items_are_answered_in_band_and_the_stream_goes_on(
    client: aio.Client,
) -> None:
    async with conversation(client, "dog") as talk:
        talk.send_bytes(7, b"no image")
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INVALID_FRAME", 7)

        talk.send_bytes(8, encoded_image(1, kind="PNG")[:-30])
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INVALID_FRAME", 8)

        change = await talk.stream.put_query(Query("", id="q"))
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.change_id) == ("INVALID_QUERY", change)

        change = await talk.stream.remove_query("nobody")
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.change_id) == ("INVALID_QUERY", change)

        await talk.stream.set_queries(["crash"])
        assert await talk.next() == QueriesAck(2, change + 1, ("crash",))
        talk.send(9)
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INTERNAL", 9)
        assert SECRET not in error.message
        assert error.request_id

        await talk.stream.set_queries(["dog"])
        assert isinstance(await talk.next(), QueriesAck)
        talk.send(10)
        assert isinstance(await talk.next(), FrameResult)
        talk.end()
        await talk.rest()
    assert counts(talk.stats[-1]) == StreamStats(4, 1, 0, 2, 1, 0, ended=True)


async def test_messages_without_meaning_are_answered_in_band(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call = pb_grpc.VisionAgentStub(channel).Watch()
        put = pb.PutQuery(query=pb.Query(id="q", text="x", task=42), change_id=5)
        unnamed = pb.PutQuery(query=pb.Query(text="x"), change_id=6)
        for request in (
            pb.WatchRequest(),
            pb.WatchRequest(put_query=put),
            pb.WatchRequest(put_query=unnamed),
            pb.WatchRequest(end=pb.End()),
        ):
            await call.write(request)
        messages = [message async for message in call]
    errors = [message.error for message in messages if message.HasField("error")]
    assert [error.code for error in errors] == [
        pb.ERROR_CODE_INVALID_ARGUMENT,
        pb.ERROR_CODE_INVALID_ARGUMENT,
        pb.ERROR_CODE_INVALID_QUERY,
    ]
    assert [error.change_id for error in errors] == [0, 5, 6]
    assert messages[-1].stats == pb.StreamStats(activity=pb.StreamActivity(), ended=True)


async def test_a_stream_of_control_messages_only_ends_in_good_order(
    client: aio.Client,
) -> None:
    async with client.watch(frames(), ["dog"]) as stream:
        events = [event async for event in stream]
    assert events[1] == QueriesAck(1, 1, ("dog",))
    assert events[-1] == StreamStats(ended=True)


async def test_half_closing_without_end_ends_the_stream(service: Service) -> None:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call = pb_grpc.VisionAgentStub(channel).Watch()
        await call.done_writing()
        messages = [message async for message in call]
        assert await call.code() is grpc.StatusCode.OK
    assert messages[-1].HasField("stats")


async def test_frames_without_queries_are_answered_with_nothing(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client) as talk:
        talk.send(0)
        result = await talk.next()
        assert isinstance(result, FrameResult)
        assert result.results == ()
        assert result.epoch == 0
    assert service.stages.calls.propose == 0


async def test_a_client_that_vanishes_leaves_nothing_behind(
    client: aio.Client, service: Service
) -> None:
    tasks_before = len(asyncio.all_tasks())
    async with conversation(client, "held") as talk:
        talk.send(0)
        await service.stages.until_asked()
        assert service.metrics.num_open_streams == 1
    # Leaving the context cancelled the call while frame 0 was being answered.
    async with asyncio.timeout(5):
        while service.metrics.num_open_streams:
            await asyncio.sleep(0.01)
        while len(asyncio.all_tasks()) > tasks_before:
            await asyncio.sleep(0.01)
    totals = service.metrics.totals()
    assert (totals.frames_received, totals.frames_abandoned, totals.frames_in_flight) == (1, 1, 0)
    assert (await client.ground(encoded_image(1), ["dog"]))["dog"].detections


async def test_a_draining_replica_warns_and_ends_its_streams(
    client: aio.Client, service: Service
) -> None:
    async with conversation(client, "dog") as talk:
        service.agent.draining.set()
        drain = await talk.next()
        assert isinstance(drain, Drain)
        assert drain.grace_s == SETTINGS.server.drain_grace_s
        talk.send(0)
        assert isinstance(await talk.next(), FrameResult)  # Still answered meanwhile.
        assert await talk.rest() == []
    assert talk.stats[-1].in_flight == 0


async def test_streams_do_not_share_their_state(client: aio.Client) -> None:
    async with conversation(client, "dog") as one, conversation(client, "cat") as two:
        await one.stream.put_query("bird")
        assert isinstance(await one.next(), QueriesAck)
        one.send(0)
        two.send(0)
        first, second = await one.next(), await two.next()
    assert isinstance(first, FrameResult)
    assert isinstance(second, FrameResult)
    assert [answer.query_id for answer in first.results] == ["dog", "bird"]
    assert [answer.query_id for answer in second.results] == ["cat"]
    assert (first.epoch, second.epoch) == (2, 1)


async def test_what_the_frame_iterator_raises_reaches_the_caller(
    client: aio.Client,
) -> None:
    async def broken() -> AsyncIterator[OutgoingFrame]:
        yield OutgoingFrame(encoded_image(1))
        raise InvalidRequest("camera unplugged")

    async with client.watch(broken(), ["dog"]) as stream:
        with pytest.raises(InvalidRequest, match="camera unplugged"):
            async for _ in stream:
                pass


async def test_no_service_is_a_clear_error() -> None:
    async with aio.Client("127.0.0.1:1") as nobody:
        with pytest.raises(ServiceError, match="groundstream serve"):
            await nobody.wait_until_ready(timeout_s=0.3)
        with pytest.raises(ServiceError, match="UNAVAILABLE"):
            await nobody.capabilities()


async def test_the_stages_have_a_frame_while_it_waits_to_be_looked_at(
    client: aio.Client, service: Service
) -> None:
    threads, num_taken = service.agent.scheduler.threads, SETTINGS.stream.sharing.looks_at_once
    async with conversation(client, "dog") as talk:
        for _ in range(num_taken):
            assert await threads.take(0.0, patience_s=None)
        talk.send(0)
        async with asyncio.timeout(10):
            while not service.stages.calls.encode_auxiliary:
                await asyncio.sleep(0.005)
        for _ in range(num_taken):
            threads.give_back()
        result = await talk.next()
        assert isinstance(result, FrameResult)
        assert result.sequence == 0
        talk.end()
        await talk.rest()


async def test_a_damaged_picture_is_refused_by_whoever_sees_it_first(
    client: aio.Client, service: Service
) -> None:
    damaged = encoded_image(0, width=640, height=480)[:-2000]
    async with conversation(client, "dog") as talk:
        talk.send_bytes(0, damaged)
        error = await talk.next()
        assert isinstance(error, StreamError)
        assert (error.code, error.sequence) == ("INVALID_FRAME", 0)
        talk.send(1)
        assert isinstance(await talk.next(), FrameResult)
        talk.end()
        await talk.rest()
    assert (talk.stats[-1].rejected, talk.stats[-1].answered) == (1, 1)
