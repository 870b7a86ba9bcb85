"""How long a call of a stage is waited for, and what is said where it came too late or found none.

Knows no stage and no handle.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import TypeVar

from agent.urgency import CurrentLimits, Limits
from deployments.observability.stage_meter import StageMeter
from deployments.stages.calls import StageFull
from groundstream.errors import Overloaded, StageUnavailable

T = TypeVar("T")

_CLOCK_S = 0.001
"""A time limit may end this much early."""


@contextlib.contextmanager
def in_time(
    meter: StageMeter, limits: Limits, timeout_s: float, *, measured: StageMeter | None = None
) -> Iterator[float]:
    """Gives the seconds after which the call inside has been silent for too long.

    Args:
        meter: of the stage that is called.
        limits: of the call.
        timeout_s: see `StageMeter.silence_s`.
        measured: knows how long calls like it take; None: the stage's own meter.

    Raises:
        Overloaded: the deadline came first, or too many calls wait.
        StageUnavailable: the stage was silent for too long.
    """
    measured = measured or meter
    silence_s = measured.silence_s(limits, timeout_s)
    try:
        yield silence_s
    except TimeoutError:
        if limits.left_s <= _CLOCK_S:
            raise Overloaded(
                f"the {meter.name} stage was not done before the deadline; allow more time, "
                "send less or try again later",
                retry_after_s=meter.expected_s(),
            ) from None
        measured.fell_silent(silence_s)
        raise StageUnavailable(
            f"the {meter.name} stage did not answer within {silence_s:g} s; try again later"
        ) from None
    except StageFull:
        meter.refused()
        raise Overloaded(
            f"the {meter.name} stage's queue is full; send less or try again later",
            retry_after_s=meter.expected_s(),
        ) from None


async def each_in_time(
    pieces: AsyncIterator[T], meter: StageMeter, limits: CurrentLimits, timeout_s: float
) -> AsyncIterator[T]:
    """What a call yields, as it comes; TimeoutError: not in time.

    Time that the reader takes between two pieces is its own: it counts to the deadline, but not as
    the stage's. No time limit is open then, which would cancel the reader.
    """
    waited_s = 0.0
    while True:
        asked_s, now = time.monotonic(), limits.now()
        left_s = min(now.left_s, meter.silence_s(now, timeout_s) - waited_s)
        if left_s < 0.0:
            raise TimeoutError  # Though the next piece may be there already.
        try:
            async with asyncio.timeout(left_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        waited_s += time.monotonic() - asked_s
        yield piece
