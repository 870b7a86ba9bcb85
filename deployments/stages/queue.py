"""The line before a stage replica's one thread: most urgent first, nothing that comes too late.

Forward passes of one replica never overlap. A pass that runs is never interrupted, so a one-off
question waits at most for one pass of a key frame. Among calls of one urgency tenants take turns,
however many calls each has in the line. Knows no stage.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

from agent import progress
from agent.batching import compute_together
from agent.urgency import Limits
from deployments.observability.stage_meter import Served
from deployments.process_resources import FORWARD_PASS, lower_priority
from groundstream.errors import Overloaded

A = TypeVar("A")
T = TypeVar("T")


@dataclass(frozen=True)
class Ticket:
    """A call's place in the line; what it does later keeps that place."""

    limits: Limits
    turn: int
    number: int


@dataclass(order=True)
class _Job:
    """Sorted by urgency, then by turns, then by who came first."""

    urgency: int
    turn: int
    number: int
    method: Callable[[list[Any]], list[Any]] = field(compare=False)
    item: Any = field(compare=False)
    limit: int = field(compare=False)
    """Jobs of this method that may be one call."""
    limits: Limits = field(compare=False)
    future: Future[Served[Any]] = field(compare=False, default_factory=Future)
    put_s: float = field(compare=False, default_factory=time.monotonic)


class StageQueue:
    """One daemon thread and the jobs that wait for it."""

    def __init__(self) -> None:
        self._jobs: list[_Job] = []
        self._changed = threading.Condition()
        self._numbers = itertools.count()
        self._turns: dict[int, int] = {}
        """By urgency: the latest turn of which a call was taken."""
        self._last_turns: dict[tuple[int, str], int] = {}
        """By urgency and owner: the turn of its last call."""
        self._busy_since_s: float | None = None
        threading.Thread(target=self._loop, name="stage", daemon=True).start()

    def stalled_s(self) -> float:
        """Seconds for which no layer of the jobs under way has ended; zero when there are none."""
        since_s = self._busy_since_s
        return 0.0 if since_s is None else progress.still_since_s(since_s)

    def ticket(self, limits: Limits, owner: str = "") -> Ticket:
        """A place among calls of its urgency: each turn holds one call of every owner."""
        urgency = limits.urgency
        with self._changed:
            now = self._turns.get(urgency, 0)
            self._last_turns = {
                whose: last
                for whose, last in self._last_turns.items()
                if last >= self._turns.get(whose[0], 0)
            }
            turn = max(now, self._last_turns.get((urgency, owner), now - 1) + 1)
            self._last_turns[urgency, owner] = turn
        return Ticket(limits, turn, next(self._numbers))

    async def run(self, ticket: Ticket, method: Callable[..., T], *arguments: object) -> Served[T]:
        """A blocking call in the thread; cancelling it before its turn takes it out.

        Raises:
            Overloaded: its deadline passed before its turn came.
        """
        return await self._served(ticket, lambda _: [method(*arguments)], None, limit=1)

    async def run_together(
        self, ticket: Ticket, method: Callable[[list[A]], list[T]], item: A, *, limit: int
    ) -> Served[T]:
        """As `run`, for a method of a list: up to `limit` that stand next in line go together.

        Nothing waits for company, and a bad item fails alone.
        """
        return await self._served(ticket, method, item, limit=limit)

    async def _served(
        self, ticket: Ticket, method: Callable[[list[Any]], list[T]], item: Any, *, limit: int
    ) -> Served[T]:
        limits = ticket.limits
        job = _Job(limits.urgency, ticket.turn, ticket.number, method, item, limit, limits)
        with self._changed:
            heapq.heappush(self._jobs, job)
            self._changed.notify()
        return await asyncio.wrap_future(job.future)

    def _loop(self) -> None:
        lower_priority(FORWARD_PASS)
        while True:
            # In a call of its own, so that no result is kept alive while waiting.
            self._serve(self._next_together())
            self._busy_since_s = None

    def _next_together(self) -> list[_Job]:
        """The first in line, and those behind it that may go with it."""
        with self._changed:
            self._changed.wait_for(lambda: bool(self._jobs))
            together = [heapq.heappop(self._jobs)]
            first = together[0]
            while (
                len(together) < first.limit and self._jobs and self._jobs[0].method == first.method
            ):
                together.append(heapq.heappop(self._jobs))
            for job in together:
                self._turns[job.urgency] = max(self._turns.get(job.urgency, 0), job.turn)
        return together

    def _serve(self, jobs: list[_Job]) -> None:
        self._busy_since_s = time.monotonic()
        progress.layer_done()
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        late = [job for job in wanted if job.limits.left_s < 0.0]
        for job in late:
            job.future.set_exception(
                Overloaded("the deadline passed while the call waited for its turn")
            )
        if in_time := [job for job in wanted if job not in late]:
            compute_together(in_time, _compute, lambda job, error: job.future.set_exception(error))


def _compute(jobs: Sequence[_Job]) -> None:
    started_s = time.monotonic()
    values = jobs[0].method([job.item for job in jobs])
    took_s = time.monotonic() - started_s
    for job, value in zip(jobs, values, strict=True):
        job.future.set_result(
            Served(value, queue_s=started_s - job.put_s, compute_s=took_s, num_together=len(jobs))
        )
