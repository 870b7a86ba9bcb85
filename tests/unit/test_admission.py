"""A call whose place went to a newcomer is told so, and no other end is taken for that."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from deployments.admission import EvictingLimit
from groundstream.errors import Overloaded


def call(
    limit: EvictingLimit, whose: str, work: Callable[[], Awaitable[None]]
) -> asyncio.Task[None]:
    """One that takes a place while it works."""

    async def run() -> None:
        async with limit.taken((whose,)):
            await work()

    return asyncio.create_task(run())


async def forever() -> None:
    await asyncio.Event().wait()


async def newcomer(limit: EvictingLimit) -> asyncio.Task[None]:
    """Somebody who takes a place for good."""
    task = call(limit, "b", forever)
    await asyncio.sleep(0)
    return task


async def test_a_time_limit_of_its_own_is_no_eviction() -> None:
    async def too_long() -> None:
        async with asyncio.timeout(0.01):
            await forever()

    with pytest.raises(TimeoutError):
        await call(EvictingLimit(1, "calls"), "a", too_long)


async def test_who_cancels_a_call_that_is_evicted_has_cancelled_it() -> None:
    limit = EvictingLimit(1, "calls")
    evicted = call(limit, "a", forever)
    await asyncio.sleep(0)
    later = await newcomer(limit)
    evicted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await evicted
    later.cancel()


async def test_an_evicted_call_may_clean_up_and_its_task_goes_on() -> None:
    limit, cleaned = EvictingLimit(1, "calls"), asyncio.Event()

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0.01)
            cleaned.set()

    async def caller() -> int:
        with pytest.raises(Overloaded, match="more than 1 calls"):
            async with limit.taken(("a",)):
                await work()
        await asyncio.sleep(0.01)  # A cancellation that was left behind would end this.
        current = asyncio.current_task()
        assert current is not None
        return current.cancelling()

    evicted = asyncio.create_task(caller())
    await asyncio.sleep(0)
    later = await newcomer(limit)
    assert await evicted == 0
    assert cleaned.is_set()
    later.cancel()


async def test_a_call_that_ends_as_it_is_evicted_has_ended_and_leaves_the_newcomer_its_place() -> (
    None
):
    limit, done = EvictingLimit(1, "calls"), asyncio.Event()

    async def work() -> None:
        await done.wait()

    first = call(limit, "a", work)
    await asyncio.sleep(0)
    second = call(limit, "b", forever)  # Takes the place just before the first call goes on.
    done.set()
    await first
    third = call(limit, "c", forever)
    with pytest.raises(Overloaded):
        await second
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    await asyncio.wait_for(call(limit, "d", done.wait), 1)
