"""One computation for all who come at the same time."""

from __future__ import annotations

import asyncio

import pytest

from agent.single_flight import SingleFlight
from agent.urgency import Limits, SharedLimits, Urgency

LIMITS = Limits()


async def test_those_who_come_together_share_the_work() -> None:
    flights: SingleFlight[int] = SingleFlight()
    count = 0

    async def work(_: SharedLimits) -> int:
        nonlocal count
        count += 1
        await asyncio.sleep(0.01)
        return count

    together = await asyncio.gather(*(flights.run("a", work, LIMITS) for _ in range(5)))
    assert together == [(1, False), *[(1, True)] * 4]
    assert await flights.run("a", work, LIMITS) == (2, False)
    assert await flights.run("b", work, LIMITS) == (3, False)


async def test_one_that_leaves_does_not_take_the_work_along() -> None:
    flights: SingleFlight[str] = SingleFlight()
    release = asyncio.Event()

    async def work(_: SharedLimits) -> str:
        await release.wait()
        return "done"

    first = asyncio.ensure_future(flights.run("a", work, LIMITS))
    second = asyncio.ensure_future(flights.run("a", work, LIMITS))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.sleep(0)
    release.set()
    assert await second == ("done", True)


async def test_work_that_nobody_waits_for_is_given_up_and_can_be_begun_again() -> None:
    flights: SingleFlight[str] = SingleFlight()
    cancelled = asyncio.Event()

    async def forever(_: SharedLimits) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        return "never"

    async def at_once(_: SharedLimits) -> str:
        return "now"

    only = asyncio.ensure_future(flights.run("a", forever, LIMITS))
    await asyncio.sleep(0.01)
    only.cancel()
    with pytest.raises(asyncio.CancelledError):
        await only
    assert await flights.run("a", at_once, LIMITS) == ("now", False)
    await asyncio.wait_for(cancelled.wait(), 1)


async def test_an_error_reaches_everybody() -> None:
    flights: SingleFlight[str] = SingleFlight()

    async def fail(_: SharedLimits) -> str:
        await asyncio.sleep(0.01)
        raise ValueError("no")

    together = await asyncio.gather(
        *(flights.run("a", fail, LIMITS) for _ in range(3)), return_exceptions=True
    )
    assert [str(error) for error in together] == ["no"] * 3


async def test_work_runs_within_the_limits_of_the_most_patient_and_most_urgent_caller() -> None:
    flights: SingleFlight[Limits] = SingleFlight()
    release = asyncio.Event()

    async def work(limits: SharedLimits) -> Limits:
        assert limits.now() == hurried
        await release.wait()
        return limits.now()

    hurried = Limits(deadline_s=1.0, urgency=Urgency.STANDING)
    patient = Limits(deadline_s=60.0, urgency=Urgency.SPARE)
    urgent = Limits(deadline_s=2.0, urgency=Urgency.ONE_OFF)
    calls = []
    for limits in (hurried, patient, urgent):
        calls.append(asyncio.ensure_future(flights.run("a", work, limits)))
        await asyncio.sleep(0)
    assert "a" in flights
    release.set()
    found = await asyncio.gather(*calls)
    assert {limits for limits, _ in found} == {Limits(60.0, Urgency.ONE_OFF)}
    assert "a" not in flights
