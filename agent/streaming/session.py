"""What one stream promises: its standing queries with their epochs, its policy and its books.

An epoch counts changes of the standing queries. Every answer carries the epoch of its query, and
an answer whose query was replaced or removed meanwhile is recognised here. Results leave in the
order of their frames. Knows no wire and no picture.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from agent.prompts import Task
from agent.streaming.inbox import Inbox
from agent.streaming.policy import Priority, StreamPolicy
from groundstream.errors import InvalidQuery, InvalidRequest, Overloaded

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
    """Seen by the language model."""
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
        received = counts.pop("received")
        return bool(received == sum(counts.values()))


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


@dataclass(frozen=True)
class Seen:
    """What a client that comes back has seen of its session."""

    num_sent: int = 0
    num_results: int = 0
    last_result_sequence: int | None = None
    last_sent_sequence: int | None = None


@dataclass(frozen=True)
class Gap:
    """Frames that went down with a replica, counted as failed."""

    num_frames: int
    first_sequence: int
    last_sequence: int


def check_names(names: Sequence[str]) -> None:
    """Refuse queries that nobody could tell apart.

    Raises:
        InvalidQuery: two have one name.
    """
    name, count = next(iter(Counter(names).most_common(1)), ("", 0))
    if count > 1:
        raise InvalidQuery(
            f"{count} queries are called {name!r}; query ids must differ, and a query without an "
            "id is called by its position"
        )


class Session(Generic[T]):
    """One stream's state, a plain object on the front end's event loop."""

    def __init__(
        self,
        *,
        max_queries: int,
        policy: StreamPolicy | None = None,
        max_window_bytes: int | None = None,
    ) -> None:
        self._max_queries = max_queries
        self._queries: dict[str, StandingQuery] = {}
        self._epoch = 0
        self._policy = policy or StreamPolicy()
        self._inbox: Inbox[T] = Inbox(
            self._policy.drop, self._policy.window, max_bytes=max_window_bytes
        )
        self._books = Books()
        self._inherited = Books()
        self._num_working = 0
        self._num_decoding = 0
        self._num_results = 0
        self._last_received: int | None = None
        self._last_delivered: int | None = None
        self._unacknowledged: deque[int] = deque()
        self._changed = asyncio.Event()
        self.ended = False
        """True when no more frames are taken in."""
        self.paused = False

    # ---- standing queries ----

    @property
    def epoch(self) -> int:
        """Number of changes of the standing queries so far."""
        return self._epoch

    @property
    def queries(self) -> tuple[StandingQuery, ...]:
        """The standing queries, in the order they are answered."""
        return tuple(self._queries.values())

    @property
    def query_ids(self) -> tuple[str, ...]:
        """Names of the standing queries, in the order they are answered."""
        return tuple(self._queries)

    def set_queries(self, queries: Sequence[tuple[str, Task]]) -> int:
        """Replace all standing queries; returns the new epoch.

        Raises:
            InvalidQuery: two have one name, or there are too many; nothing has changed then.
        """
        self.check_count(len(queries))
        check_names([name for name, _ in queries])
        epoch = self._epoch + 1
        self._queries = {name: StandingQuery(name, task, epoch) for name, task in queries}
        self._epoch = epoch
        return epoch

    def check_count(self, count: int) -> None:
        """Refuses more queries than may stand; ask before anything is made of them.

        Raises:
            InvalidQuery: too many.
        """
        if count > self._max_queries:
            raise InvalidQuery(
                f"{count} queries, the limit is {self._max_queries} at a time; remove some"
            )

    def put_query(self, name: str, task: Task) -> int:
        """Add a query or replace the one of that name; returns the new epoch.

        Raises:
            InvalidQuery: there are too many.
        """
        if name not in self._queries:
            self.check_count(len(self._queries) + 1)
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

    # ---- policy ----

    @property
    def policy(self) -> StreamPolicy:
        """How frames are answered now."""
        return self._policy

    def set_policy(self, policy: StreamPolicy) -> None:
        """Answer otherwise from here on; frames the new policy has no room for are superseded."""
        self._policy = policy
        self._count(superseded=len(self._inbox.configure(policy.drop, policy.window)))
        self._changed.set()

    def pause(self) -> None:
        """Answer nothing until `resume`; frames that come meanwhile are superseded."""
        self.paused = True
        self._count(superseded=len(self._inbox.clear()))

    def resume(self) -> None:
        """Answer again."""
        self.paused = False
        self._changed.set()

    # ---- frames in ----

    def begin_decoding(self) -> None:
        """A packet came in; `offer` or `reject` says later what became of its picture."""
        self._count(received=1)
        self._num_decoding += 1

    def supersede_decoding(self, count: int) -> None:
        """So many packets that came in go, undecoded, for a newer one that needs none of them."""
        self._num_decoding -= count
        self._count(superseded=count)

    def offer(
        self,
        item: T,
        sequence: int,
        priority: Priority = Priority.NORMAL,
        *,
        num_bytes: int = 0,
        decoded: bool = False,
    ) -> None:
        """A new frame of so many bytes. Frames that come after the end are not counted.

        Args:
            item: the frame.
            sequence: its number.
            priority: what may make it go.
            num_bytes: what it takes while it waits.
            decoded: it came in with `begin_decoding`.

        Raises:
            InvalidRequest: its sequence number does not increase; counted as rejected.
            Overloaded: the window of a lossless stream is full; counted as rejected.
        """
        if self.ended:
            if decoded:
                self._num_decoding -= 1
                self._count(superseded=1)
            return
        if decoded:
            self._num_decoding -= 1
        else:
            self._count(received=1)
        try:
            self._check_sequence(sequence)
            self._last_received = sequence
            gone = [item] if self.paused else self._inbox.put(item, priority, num_bytes)
        except (InvalidRequest, Overloaded):
            self._count(rejected=1)
            raise
        self._count(superseded=len(gone))
        self._changed.set()

    def reject(self, *, decoding: bool = False, ours: bool = False) -> None:
        """A frame cannot be read.

        Args:
            decoding: it came in with `begin_decoding`; else it comes in now.
            ours: the fault is the service's.
        """
        if decoding:
            self._num_decoding -= 1
        else:
            self._count(received=1)
        self._count(**{"failed" if ours else "rejected": 1})

    def end(self) -> None:
        """No more frames will be offered."""
        self.ended = True
        self._changed.set()

    # ---- frames out ----

    async def take(self) -> Work[T] | None:
        """The next frame and the queries that stand now; None when the stream has ended.

        Waits while nothing is there, while the client has not acknowledged enough results, and
        while the stream is paused.
        """
        while True:
            if self._has_room():
                work = self.take_now()
                if work is not None:
                    return work
            if self.ended and (self.paused or not len(self._inbox)):
                return None
            self._changed.clear()
            await self._changed.wait()

    def take_now(self) -> Work[T] | None:
        """The next frame, if one waits."""
        item = self._inbox.take()
        if item is None:
            return None
        self._num_working += 1
        return Work(item, self.queries, self._epoch)

    def deliver(self, sequence: int) -> None:
        """A result is about to be sent."""
        last = self._last_delivered
        assert last is None or sequence > last, f"result {sequence} after {last}"
        self._last_delivered = sequence
        self._num_results += 1
        if self._policy.ack_window is not None:
            self._unacknowledged.append(sequence)

    def finish(self, outcome: Outcome) -> None:
        """Work taken earlier has ended."""
        assert self._num_working > 0, "finish() without take()"
        self._num_working -= 1
        self._count(**{outcome.value: 1})

    def acknowledge(self, sequence: int) -> None:
        """The client has dealt with all results up to this one."""
        while self._unacknowledged and self._unacknowledged[0] <= sequence:
            self._unacknowledged.popleft()
        self._changed.set()

    @property
    def num_unacknowledged(self) -> int:
        """Results sent that the client has not dealt with, where it wants them counted."""
        return len(self._unacknowledged)

    @property
    def is_answering(self) -> bool:
        """Whether a frame is worked on, or will be without another word of the client's."""
        will_take = len(self._inbox) > 0 and self._has_room()
        return self._num_working > 0 or self._num_decoding > 0 or will_take

    # ---- the books ----

    @property
    def books(self) -> Books:
        """The counts as they are now."""
        in_flight = self._num_decoding + len(self._inbox) + self._num_working
        return dataclasses.replace(self._books, in_flight=in_flight)

    @property
    def own_books(self) -> Books:
        """The books without what was inherited from the stream that this one goes on from."""
        now, before = dataclasses.asdict(self.books), dataclasses.asdict(self._inherited)
        return Books(**{name: count - before[name] for name, count in now.items()})

    @property
    def num_results(self) -> int:
        """Results sent so far."""
        return self._num_results

    def restore(
        self, queries: Sequence[StandingQuery], epoch: int, books: Books, num_results: int
    ) -> None:
        """Go on where a snapshot of this session was taken; for a session that is new."""
        assert self._books == Books(), "restore() of a session in use"
        self._queries = {query.id: query for query in queries}
        self._epoch = epoch
        self._books = books
        self._num_results = num_results

    def catch_up(self, seen: Seen) -> Gap | None:
        """Close the books over the time between the snapshot and now.

        What the client got since is counted as tracked, what it sent and nobody accounts for as
        failed.
        """
        books = dataclasses.replace(self._books, in_flight=0)
        accounted = sum(dataclasses.asdict(books).values()) - books.received
        num_delivered = max(0, seen.num_results - self._num_results)
        num_sent = max(seen.num_sent, accounted + num_delivered)
        num_lost = num_sent - accounted - num_delivered
        self._books = dataclasses.replace(
            books,
            received=num_sent,
            tracked_only=books.tracked_only + num_delivered,
            failed=books.failed + num_lost,
        )
        self._inherited = self._books
        self._num_results = max(self._num_results, seen.num_results)
        self._last_received = seen.last_sent_sequence
        self._last_delivered = seen.last_result_sequence
        if not num_lost or seen.last_sent_sequence is None:
            return None
        last = seen.last_sent_sequence
        first = 0 if seen.last_result_sequence is None else seen.last_result_sequence + 1
        # Frames given up before the last result may be among them: the range has room for all.
        return Gap(num_lost, max(0, min(first, last + 1 - num_lost)), last)

    def _has_room(self) -> bool:
        window = self._policy.ack_window
        # A client that has ended its side can acknowledge nothing more.
        open_ = self.ended or window is None or len(self._unacknowledged) < window
        return not self.paused and open_

    def _count(self, **more: int) -> None:
        self._books = dataclasses.replace(
            self._books,
            **{name: getattr(self._books, name) + number for name, number in more.items()},
        )

    def _check_sequence(self, sequence: int) -> None:
        if self._last_received is not None and sequence <= self._last_received:
            raise InvalidRequest(
                f"frame {sequence} came after frame {self._last_received}; sequence numbers must "
                "increase along a stream"
            )
