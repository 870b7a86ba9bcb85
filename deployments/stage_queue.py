"""The line before a stage replica's one thread: most urgent first, nothing that comes too late.

Forward passes of one replica never overlap. A pass that runs is never interrupted, so a one-off
question waits at most for one pass of a key frame. Knows no stage.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from agent.errors import Overloaded
from agent.urgency import Limits
from deployments.thread_priority import FORWARD_PASS, give_way

T = TypeVar("T")


@dataclass(frozen=True)
class Served(Generic[T]):
    """A stage's result and how it came about; times are of the replica alone, in seconds."""

    value: T
    queue_s: float = 0.0
    """In this line."""
    compute_s: float = 0.0


@dataclass(frozen=True)
class Ticket:
    """A call's place in the line; what it does later keeps that place."""

    limits: Limits
    number: int


@dataclass(order=True)
class _Job:
    """Sorted by urgency, then by who came first."""

    urgency: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    ticket: Ticket = field(compare=False)
    future: Future[Served[Any]] = field(compare=False, default_factory=Future)
    put_s: float = field(compare=False, default_factory=time.monotonic)


class StageQueue:
    """One daemon thread and the jobs that wait for it."""

    def __init__(self) -> None:
        self._jobs: queue.PriorityQueue[_Job] = queue.PriorityQueue()
        self._numbers = itertools.count()
        threading.Thread(target=self._loop, name="stage", daemon=True).start()

    def ticket(self, limits: Limits) -> Ticket:
        """A place at the end of its class."""
        return Ticket(limits, next(self._numbers))

    async def run(self, ticket: Ticket, method: Callable[..., T], *arguments: object) -> Served[T]:
        """A blocking call in the thread; cancelling it before its turn takes it out.

        Raises:
            Overloaded: its deadline passed before its turn came.
        """
        job = _Job(ticket.limits.urgency, ticket.number, lambda: method(*arguments), ticket)
        self._jobs.put(job)
        return await asyncio.wrap_future(job.future)

    def _loop(self) -> None:
        give_way(FORWARD_PASS)
        while True:
            job = self._jobs.get()
            if not job.future.set_running_or_notify_cancel():
                continue
            started_s = time.monotonic()
            try:
                if job.ticket.limits.left_s < 0.0:
                    raise Overloaded("the deadline passed while the call waited for its turn")
                value = job.work()
            except BaseException as error:
                job.future.set_exception(error)
            else:
                done_s = time.monotonic()
                job.future.set_result(
                    Served(value, queue_s=started_s - job.put_s, compute_s=done_s - started_s)
                )
            # Nothing of this job, least of all its result, is kept alive while waiting.
            del job
