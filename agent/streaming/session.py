"""What one stream remembers: its standing queries with their epochs, its inbox and its books.

An epoch counts changes of the standing queries. Every answer carries the epoch of its query, and
an answer whose query was replaced or removed meanwhile is recognised here. Knows no wire.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from agent.errors import InvalidQuery
from agent.prompts import Task
from agent.streaming.latest_frame import LatestFrame

T = TypeVar("T")


@dataclass(frozen=True)
class StandingQuery:
    """One question that is asked about every frame."""

    id: str
    task: Task
    epoch: int
    """When it was last put."""


@dataclass(frozen=True)
class Books:
    """Where every frame of a stream went; each is counted in exactly one place."""

    received: int = 0
    answered: int = 0
    superseded: int = 0
    rejected: int = 0
    failed: int = 0
    in_flight: int = 0
    tracked_only: int = 0
    expired: int = 0

    @property
    def balanced(self) -> bool:
        """True when no frame was lost or counted twice."""
        counts = dataclasses.asdict(self)
        received: int = counts.pop("received")
        return received == sum(counts.values())


class Outcome(Enum):
    """How work on one frame ended; the values are fields of `Books`."""

    ANSWERED = "answered"
    TRACKED_ONLY = "tracked_only"
    EXPIRED = "expired"
    SUPERSEDED = "superseded"
    REJECTED = "rejected"
    FAILED = "failed"


@dataclass(frozen=True)
class Work(Generic[T]):
    """One frame to be answered against the queries that stood when it was taken."""

    item: T
    queries: tuple[StandingQuery, ...]
    epoch: int


class Session(Generic[T]):
    """One stream's state, a plain object on the front end's event loop."""

    def __init__(self, *, max_queries: int) -> None:
        self._max_queries = max_queries
        self._queries: dict[str, StandingQuery] = {}
        self._epoch = 0
        self._inbox: LatestFrame[T] = LatestFrame()
        self._books = Books()
        self._num_working = 0

    @property
    def epoch(self) -> int:
        """Number of changes of the standing queries so far."""
        return self._epoch

    @property
    def query_ids(self) -> tuple[str, ...]:
        """Names of the standing queries, in the order they are answered."""
        return tuple(self._queries)

    @property
    def books(self) -> Books:
        """The counts as they are now."""
        return dataclasses.replace(self._books, in_flight=len(self._inbox) + self._num_working)

    def set_queries(self, queries: Sequence[tuple[str, Task]]) -> int:
        """Replace all standing queries; returns the new epoch.

        Raises:
            InvalidQuery: two have one name, or there are too many; nothing has changed then.
        """
        names = [name for name, _ in queries]
        if len(set(names)) != len(names):
            raise InvalidQuery(f"query ids must differ: {names}")
        self._check_count(len(queries))
        epoch = self._epoch + 1
        self._queries = {name: StandingQuery(name, task, epoch) for name, task in queries}
        self._epoch = epoch
        return epoch

    def put_query(self, name: str, task: Task) -> int:
        """Add a query or replace the one of that name; returns the new epoch.

        Raises:
            InvalidQuery: there are too many.
        """
        if name not in self._queries:
            self._check_count(len(self._queries) + 1)
        self._epoch += 1
        self._queries[name] = StandingQuery(name, task, self._epoch)
        return self._epoch

    def remove_query(self, name: str) -> int:
        """Forget a query; returns the new epoch.

        Raises:
            InvalidQuery: no query has that name.
        """
        if name not in self._queries:
            standing = ", ".join(map(repr, self._queries)) or "none"
            raise InvalidQuery(f"no standing query is called {name!r} (standing: {standing})")
        self._epoch += 1
        del self._queries[name]
        return self._epoch

    def stands(self, query: StandingQuery) -> bool:
        """Whether exactly this query, not a later one of its name, still stands."""
        return self._queries.get(query.id) == query

    @property
    def ended(self) -> bool:
        """True when no more frames are taken."""
        return self._inbox.closed

    def offer(self, item: T) -> None:
        """A new frame; it displaces the unread one. Frames after the end are not counted."""
        if self.ended:
            return
        displaced = self._inbox.put(item)
        self._count(received=1, superseded=0 if displaced is None else 1)

    def reject(self) -> None:
        """A frame came in that cannot be read."""
        self._count(received=1, rejected=1)

    async def take(self) -> Work[T] | None:
        """The newest frame and the queries that stand now; None when the stream has ended."""
        item = await self._inbox.take()
        if item is None:
            return None
        self._num_working += 1
        return Work(item, tuple(self._queries.values()), self._epoch)

    def finish(self, outcome: Outcome) -> None:
        """Work taken earlier has ended."""
        assert self._num_working > 0, "finish() without take()"
        self._num_working -= 1
        self._count(**{outcome.value: 1})

    def end(self) -> None:
        """No more frames will be offered."""
        self._inbox.close()

    def _count(self, **more: int) -> None:
        self._books = dataclasses.replace(
            self._books,
            **{name: getattr(self._books, name) + number for name, number in more.items()},
        )

    def _check_count(self, count: int) -> None:
        if count > self._max_queries:
            raise InvalidQuery(
                f"{count} queries, the limit is {self._max_queries} at a time; remove some"
            )
