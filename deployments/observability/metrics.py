"""What one front-end replica counts: what stages did for its calls, and where frames went.

Plain numbers on one event loop; `GetStats` reads them. Knows no wire and no Ray.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from agent.region_cache import CacheStats
from agent.streaming.session import Books, Outcome
from deployments.observability.stage_meter import StageMeter, StageMeters, WorkDone


@dataclass
class CallCounts:
    """Calls made to each stage."""

    propose: int = 0
    encode_primary: int = 0
    encode_auxiliary: int = 0
    answer: int = 0


@dataclass
class Activity:
    """What a stream did so far, beside its books."""

    num_answers: int = 0
    """Questions the language model answered."""
    num_encoded_frames: int = 0
    num_keyframes: int = 0


@dataclass(frozen=True)
class ServiceTotals:
    """A snapshot; each frame is counted in exactly one place besides `frames_received`."""

    uptime_s: float
    open_streams: int
    frames_received: int
    frames_answered: int
    frames_superseded: int
    frames_rejected: int
    frames_failed: int
    frames_abandoned: int
    """Unfinished when their client went away."""
    frames_in_flight: int
    frames_tracked_only: int = 0
    frames_expired: int = 0


class ServiceMetrics:
    """Sums the books of all calls and streams, open and ended."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        *,
        meters: StageMeters | None = None,
    ) -> None:
        self.stage_calls = CallCounts()
        self.meters = meters or StageMeters()
        self.frames = StageMeter("frame")
        """Calls of the language replicas, with all that these do for them."""
        self.cache = CacheStats()
        """What their caches did."""
        self.failures: Counter[str] = Counter()
        """Errors told to clients, by the name of their code."""
        self._clock = clock
        self._started_s = clock()
        self._open: dict[int, Callable[[], Books]] = {}
        self._ended = Books()
        self._num_abandoned = 0
        self._num_opened = 0

    @contextlib.contextmanager
    def stream(self, books: Callable[[], Books]) -> Iterator[None]:
        """Counts a stream as open while inside, and keeps its books afterwards."""
        number = self._num_opened
        self._num_opened += 1
        self._open[number] = books
        try:
            yield
        finally:
            del self._open[number]
            last = books()
            self._num_abandoned += last.in_flight
            self._ended = _sum(self._ended, last, in_flight=0)

    def note(self, work: Iterable[WorkDone]) -> None:
        """What the stages did for one call."""
        meters = {meter.name: meter for meter in self.meters}
        for done in work:
            meters[done.stage].note(done)
            if done.method:
                count = getattr(self.stage_calls, done.method) + 1
                setattr(self.stage_calls, done.method, count)
            if done.written is not None:
                self.meters.writing.add(done.written)

    def count_call(self, outcome: Outcome) -> None:
        """One unary call has ended."""
        self._ended = _sum(self._ended, Books(received=1, **{outcome.value: 1}), in_flight=0)

    @property
    def num_open_streams(self) -> int:
        """Streams open now."""
        return len(self._open)

    def totals(self) -> ServiceTotals:
        """The counts as they are now."""
        books = self._ended
        for current in self._open.values():
            now = current()
            books = _sum(books, now, in_flight=books.in_flight + now.in_flight)
        return ServiceTotals(
            uptime_s=self._clock() - self._started_s,
            open_streams=self.num_open_streams,
            frames_abandoned=self._num_abandoned,
            **{f"frames_{name}": count for name, count in dataclasses.asdict(books).items()},
        )


def _sum(a: Books, b: Books, *, in_flight: int) -> Books:
    total = {f.name: getattr(a, f.name) + getattr(b, f.name) for f in dataclasses.fields(Books)}
    return Books(**{**total, "in_flight": in_flight})
