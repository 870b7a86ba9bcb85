"""Calls through a handle: results and errors, replicas that go, and replicas that say nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from ray.exceptions import ActorDiedError

from agent.frame import read_frame
from agent.settings import ServiceSettings
from agent.stage_settings import StageFactories
from deployments.stages.calls import StageCalls, StageFull
from deployments.stages.requests import Refused, Wanted, revision_of
from deployments.stages.vision import AuxiliaryEncoder, refusing
from groundstream.errors import InvalidFrame, Overloaded, StageUnavailable
from tests.handles import Handle
from tests.pictures import encoded_image


class Replica:
    """Does as it is asked."""

    def __init__(self, dies: int = 0) -> None:
        self.dies = dies
        """So many calls take it along."""
        self.num_calls = 0
        self.num_cancelled = 0
        self.may_end = asyncio.Event()

    @refusing
    async def answer(self, wanted: Any) -> Any:
        """What was sent; raises what is an error."""
        self.num_calls += 1
        if self.num_calls <= self.dies:
            raise ActorDiedError
        if isinstance(wanted, Exception):
            raise wanted
        return wanted

    async def propose(self) -> str:
        """Waits until it may end."""
        self.num_calls += 1
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return "done"

    async def ask(self, num: int) -> AsyncIterator[object]:
        """Some pieces, an error where none are wanted, and no more where it dies."""
        for number in range(num):
            yield f"piece {number}"
        if self.dies:
            raise ActorDiedError
        if not num:
            yield Refused(InvalidFrame("nothing to write about"))


def calls_to(*replicas: Replica) -> tuple[StageCalls, Handle]:
    """Calls and the handle they go through."""
    handle = Handle(*replicas)
    return StageCalls(handle), handle  # type: ignore[arg-type]


async def test_results_and_errors_come_back_as_they_are() -> None:
    calls, _ = calls_to(Replica())
    assert await calls.call("answer", {"a": (1, 2.5)}) == {"a": (1, 2.5)}
    with pytest.raises(Overloaded, match="later") as raised:
        await calls.call("answer", Overloaded("later", retry_after_s=0.25))
    assert raised.value.retry_after_s == 0.25
    with pytest.raises(ValueError, match="a bug"):
        await calls.call("answer", ValueError("a bug"))


async def test_a_call_is_made_once_more_where_its_replica_dies() -> None:
    replica = Replica(dies=1)
    calls, _ = calls_to(replica)
    assert await calls.call("answer", 7) == 7
    assert replica.num_calls == 2


async def test_a_call_that_kills_two_replicas_kills_no_third() -> None:
    replica = Replica(dies=9)
    calls, _ = calls_to(replica)
    with pytest.raises(StageUnavailable, match="went away"):
        await calls.call("answer", 7)
    assert replica.num_calls == 2


async def test_another_replica_is_asked_where_one_is_silent() -> None:
    silent, well = Replica(), Replica()
    well.may_end.set()
    calls, handle = calls_to(silent, well)
    assert await calls.call("propose", attempt_s=0.05) == "done"
    assert (silent.num_calls, well.num_calls) == (1, 1)
    async with asyncio.timeout(5):
        while not silent.num_cancelled:
            await asyncio.sleep(0.01)
    assert not handle.under_way


async def test_an_overloaded_stage_does_not_get_twice_its_load() -> None:
    slow = Replica()
    calls, _ = calls_to(slow)
    together = [asyncio.ensure_future(calls.call("propose", attempt_s=0.01)) for _ in range(40)]
    await asyncio.sleep(0.3)
    assert 40 < slow.num_calls <= 45
    slow.may_end.set()
    assert set(await asyncio.gather(*together)) == {"done"}


async def test_a_caller_that_leaves_takes_its_call_along() -> None:
    replica = Replica()
    calls, _ = calls_to(replica)
    call = asyncio.ensure_future(calls.call("propose"))
    await asyncio.sleep(0.05)
    call.cancel()
    async with asyncio.timeout(5):
        while not replica.num_cancelled:
            await asyncio.sleep(0.01)


async def test_too_many_calls_are_told_so() -> None:
    calls, handle = calls_to(Replica())
    handle.max_calls = 0
    with pytest.raises(StageFull):
        await calls.call("answer", 1)


async def test_pieces_come_as_they_are_written_and_not_twice() -> None:
    calls, _ = calls_to(Replica())
    assert [piece async for piece in calls.stream("ask", 2)] == ["piece 0", "piece 1"]
    with pytest.raises(InvalidFrame, match="nothing to write"):
        [piece async for piece in calls.stream("ask", 0)]
    calls, _ = calls_to(Replica(dies=1))
    pieces = calls.stream("ask", 1)
    assert await anext(pieces) == "piece 0"
    with pytest.raises(StageUnavailable, match="went away"):
        await anext(pieces)


async def test_an_encoder_whose_boxes_are_lost_says_so_by_type() -> None:
    fakes = StageFactories(auxiliary_encoder="tests.fakes:FakeAuxiliaryEncoder")
    settings = ServiceSettings(stages=fakes)
    encoder = AuxiliaryEncoder(settings)
    lost: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    lost.set_exception(ActorDiedError())
    refused = await encoder.encode(
        read_frame(encoded_image()), Wanted(model=revision_of(settings)), [lost]
    )
    assert isinstance(refused, Refused)
    assert isinstance(refused.error, StageUnavailable)
