"""Looking on at somebody's stream: where it is allowed, within the tenant, at nobody's cost."""

from __future__ import annotations

import asyncio
import dataclasses
from typing import Any

import pytest

from deployments.streams.observers import ObservableStreams, ObservedCall
from groundstream import aio
from groundstream.errors import InvalidRequest
from groundstream.events import KeyframeAnswer
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import AnswerStatus, Query, Source, TaskKind
from tests.in_process import FOLLOW, SETTINGS, conversation, running_service
from tests.pictures import encoded_image

OBSERVED = dataclasses.replace(SETTINGS, server=dataclasses.replace(SETTINGS.server, observe=True))


class SilentCall:
    """A call that takes everything and says what it was given."""

    def __init__(self, *messages: Any) -> None:
        self._messages = list(messages)
        self.written: list[Any] = []

    async def read(self) -> Any:
        return self._messages.pop(0)

    async def write(self, message: Any) -> None:
        self.written.append(message)


def frame(number: int) -> pb.WatchRequest:
    return pb.WatchRequest(frame=pb.Frame(sequence=number, encoded_image=b"%d" % number))


def result(number: int) -> pb.WatchResponse:
    return pb.WatchResponse(result=pb.FrameResult(sequence=number))


async def test_somebody_looks_on() -> None:
    async with (
        running_service(settings=OBSERVED) as service,
        aio.Client(service.target) as owner,
        aio.Client(service.target) as other,
        conversation(owner, "dog") as talk,
    ):
        (listed,) = await other.streams()
        assert listed.query_ids == ("dog",)
        looking = other.observe(listed.number)
        first = asyncio.create_task(anext(looking))
        number = 0
        while not first.done():  # from the first frame after the observer has come
            number += 1
            talk.send(number)
            while isinstance(await talk.next(), KeyframeAnswer):
                pass
        seen = await first
        assert seen.encoded == encoded_image(seen.result.sequence)
        assert seen.result["dog"].detections[0].label == "dog"
        talk.end()
        await talk.rest()
        async with asyncio.timeout(10):
            assert [late.result.sequence async for late in looking] in ([], [number])
        assert await other.streams() == []


async def test_an_observer_is_told_the_words_of_a_free_question() -> None:
    question = Query("say all is quiet", id="report", task=TaskKind.CHAT)
    async with (
        running_service(settings=OBSERVED) as service,
        aio.Client(service.target) as owner,
        aio.Client(service.target) as other,
        conversation(owner, question, policy=FOLLOW) as talk,
    ):
        (listed,) = await other.streams()
        looking = other.observe(listed.number)
        async with asyncio.timeout(10):
            answer, number = None, 0
            while answer is None or answer.status is AnswerStatus.PENDING:
                seeing = asyncio.create_task(anext(looking))
                while not seeing.done():
                    number += 1
                    talk.send(number)
                    await asyncio.sleep(0.02)
                answer = (await seeing).result["report"]
        assert answer.source is Source.TRACKED
        assert (answer.status, answer.reply) == (AnswerStatus.OK, "all is quiet")


async def test_nobody_looks_on_where_it_is_not_allowed() -> None:
    async with running_service() as service, aio.Client(service.target) as client:
        with pytest.raises(InvalidRequest, match=r"server\.observe"):
            await client.streams()
        with pytest.raises(InvalidRequest, match=r"server\.observe"):
            await anext(client.observe(1))


def test_another_tenants_stream_does_not_exist() -> None:
    observable = ObservableStreams(allowed=True)
    with observable.watching(SilentCall(), "red") as call:
        assert observable.of_tenant("red") == [call]
        assert observable.of_tenant("blue") == []
        with pytest.raises(InvalidRequest, match="no open stream 1"):
            observable.find("blue", 1)
    with pytest.raises(InvalidRequest, match="no open stream 1"):
        observable.find("red", 1)


async def taken_in(call: ObservedCall) -> None:
    """A frame that its stream reads and finds good."""
    message = await call.read()
    call.keep_picture(message.frame.sequence, message.frame.encoded_image)


async def test_pictures_are_kept_only_while_somebody_looks() -> None:
    call = ObservedCall(SilentCall(*map(frame, range(1, 5))), 1, "t")
    await taken_in(call)
    assert len(call._pending) == 0
    looking = call.responses()
    first = asyncio.create_task(anext(looking))
    await asyncio.sleep(0)
    await taken_in(call)
    await call.write(result(2))
    assert (await first).encoded_image == b"2"
    await taken_in(call)
    await call.read()
    assert len(call._pending) == 1  # What was read only may be no picture at all.
    await looking.aclose()
    assert len(call._pending) == 0


async def test_a_slow_observer_skips_and_the_client_gets_everything() -> None:
    silent = SilentCall(*(frame(number) for number in range(1, 5)))
    call = ObservedCall(silent, 1, "t")
    looking = call.responses()
    first = asyncio.create_task(anext(looking))
    await asyncio.sleep(0)
    for number in range(1, 5):
        await taken_in(call)
        await call.write(result(number))
    assert (await first).result.sequence == 4
    assert [message.result.sequence for message in silent.written] == [1, 2, 3, 4]
    call.close()
    assert [late async for late in looking] == []
