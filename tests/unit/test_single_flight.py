"""One computation for all who come at the same time."""

from __future__ import annotations

import asyncio

import pytest

from agent.single_flight import SingleFlight


async def test_those_who_come_together_share_the_work() -> None:
    flights: SingleFlight[int] = SingleFlight()
    count = 0

    async def work() -> int:
        nonlocal count
        count += 1
        await asyncio.sleep(0.01)
        return count

    together = await asyncio.gather(*(flights.run("a", work) for _ in range(5)))
    assert together == [(1, False), *[(1, True)] * 4]
    assert await flights.run("a", work) == (2, False)
    assert await flights.run("b", work) == (3, False)


async def test_one_that_leaves_does_not_take_the_work_along() -> None:
    flights: SingleFlight[str] = SingleFlight()
    release = asyncio.Event()

    async def work() -> str:
        await release.wait()
        return "done"

    first = asyncio.ensure_future(flights.run("a", work))
    second = asyncio.ensure_future(flights.run("a", work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await second == ("done", True)


async def test_work_that_nobody_waits_for_is_given_up_and_can_be_begun_again() -> None:
    flights: SingleFlight[str] = SingleFlight()
    cancelled = asyncio.Event()

    async def forever() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    async def at_once() -> str:
        return "now"

    only = asyncio.ensure_future(flights.run("a", forever))
    await asyncio.sleep(0.01)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert await flights.run("a", at_once) == ("now", False)
    await asyncio.wait_for(cancelled.wait(), 1)


async def test_an_error_reaches_everybody() -> None:
    flights: SingleFlight[str] = SingleFlight()

    async def fail() -> str:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    together = await asyncio.gather(
        *(flights.run("a", fail) for _ in range(3)), return_exceptions=True
    )
    assert [str(error) for error in together] == ["no"] * 3
