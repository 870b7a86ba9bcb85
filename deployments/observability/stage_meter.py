"""What calls to one stage cost, and how long the next one would take; refuses what is hopeless.

A language replica measures the stages that it calls, and tells the front end of each call what
became of its work (`WorkDone`); front ends add that up. An exponentially weighted mean of what a
call computes, and of the time between two answers while the stage is never idle: that gap is what
each call in flight costs those behind it, however many replicas, batches or threads the stage has.
Knows no stage and no wire.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from agent.features import Generation
from agent.urgency import Limits, Urgency
from deployments.observability.histogram import COUNTS, SECONDS, Histogram
from deployments.process_resources import ProcessMemory
from groundstream.errors import Overloaded

T = TypeVar("T")

_NEW_SHARE = 0.2
"""Weight of the newest measurement in the means."""
_HALF_LIFE_S = 10.0
"""What is known about an idle stage counts half after this long, so that no slow moment makes it
refuse all calls for ever."""
_LEAST_RETRY_S = 0.05
_MOST_RETRY_S = 30.0
_LEAST_ATTEMPT_S = 3.0
_MANY_TIMES = 8.0
_FORGET_REPLICA_S = 60.0
"""A replica that has answered nothing for so long may be gone; its memory is no longer shown."""


@dataclass(frozen=True)
class Served(Generic[T]):
    """A stage's result and how it came about; times are of the replica alone, in seconds."""

    value: T
    queue_s: float = 0.0
    """In the replica's queue."""
    compute_s: float = 0.0
    num_together: int = 1
    """Calls that were computed in one go, this one included."""
    memory: ProcessMemory | None = None
    """Of the replica, as it was a moment ago."""


@dataclass(frozen=True)
class WorkDone:
    """One stage's part in one call of a front end's."""

    stage: str
    method: str
    """Which count of `CallCounts` it is one of; empty: of none."""
    began_s: float = 0.0
    """Since the call arrived at the language replica."""
    took_s: float = 0.0
    served: Served[Any] | None = None
    """Without its value; None: it failed."""
    written: Written | None = None
    """Set where an answer was written."""
    is_refused: bool = False
    """It was not begun: it would have come too late, or too many waited."""
    in_flight: int = 0
    """Calls of this stage that were under way when it was done."""


@dataclass(frozen=True)
class Written:
    """What one answer cost the language model."""

    num_passes: int
    num_tokens: int
    num_drafted_tokens: int
    num_prompt_tokens: int
    num_prompt_tokens_reused: int
    truncated: bool

    @classmethod
    def of(cls, generation: Generation) -> Written:
        """The answer's numbers without the answer."""
        return cls(
            num_passes=generation.num_passes,
            num_tokens=len(generation.pieces),
            num_drafted_tokens=generation.num_drafted_tokens,
            num_prompt_tokens=generation.num_prompt_tokens,
            num_prompt_tokens_reused=generation.num_prefix_tokens_reused,
            truncated=generation.truncated,
        )


@dataclass
class StageCounts:
    """Sums since the start; seconds."""

    num_done: int = 0
    num_refused: int = 0
    in_flight: int = 0
    most_at_once: int = 0
    call_s: float = 0.0
    queue_s: float = 0.0
    compute_s: float = 0.0


class StageMeter:
    """Measures one stage as its caller sees it."""

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.counts = StageCounts()
        self.queue_times = Histogram(SECONDS)
        self.compute_times = Histogram(SECONDS)
        self.batches = Histogram(COUNTS)
        self._replicas: dict[str, tuple[ProcessMemory, float]] = {}
        self._clock = clock
        self._service_s: float | None = None
        self._gap_s: float | None = None
        self._last_done_s = -math.inf
        self._idle = True
        """No call has been under way without pause since the last one ended."""
        self._line_gone_s = -math.inf
        """When the line that the last call found at its replica, other front ends' calls
        included, will be gone."""

    def expected_s(self) -> float:
        """How long one more call would take; zero while nothing is known."""
        if self._service_s is None:
            return 0.0
        now_s, waiting = self._clock(), self.counts.in_flight
        gap_s = self._service_s if self._gap_s is None else min(self._gap_s, self._service_s)
        if not waiting:
            age_s = now_s - self._last_done_s
            return float(self._service_s * 0.5 ** (age_s / _HALF_LIFE_S))
        return self._service_s + max(waiting * gap_s, self._line_gone_s - now_s, 0.0)

    def check(self, limits: Limits, *, beside_s: float = 0.0) -> None:
        """Let a call pass, unless it cannot be answered in time.

        Args:
            limits: of the call.
            beside_s: what else must be done before the deadline.

        Raises:
            Overloaded: at once, with the time after which it is worth trying again.
        """
        needed_s, left_s = self.expected_s() + beside_s, limits.left_s
        if needed_s <= left_s:
            return
        self.counts.num_refused += 1
        raise Overloaded(
            f"the answer would take about {needed_s:.2f} s and {max(left_s, 0.0):.2f} s are left; "
            "allow more time, send less or try again later",
            retry_after_s=min(max(needed_s - left_s, _LEAST_RETRY_S), _MOST_RETRY_S),
        )

    def replicas(self) -> list[ProcessMemory]:
        """What each replica that answered lately held when it did."""
        self._forget_replicas()
        return [memory for memory, _ in self._replicas.values()]

    def refused(self) -> None:
        """A call found the stage's queue full."""
        self.counts.num_refused += 1

    @contextlib.contextmanager
    def call(self) -> Iterator[Callable[[Served[object]], None]]:
        """Counts a call as in flight while inside; call what it gives with the result."""
        counts, started_s = self.counts, self._clock()
        counts.in_flight += 1
        counts.most_at_once = max(counts.most_at_once, counts.in_flight)

        try:
            yield lambda result: self._add(result, self._clock() - started_s)
        finally:
            counts.in_flight -= 1
            self._idle = self._idle or counts.in_flight == 0

    def note(self, work: WorkDone) -> None:
        """A call that another process made."""
        self.counts.num_refused += work.is_refused
        self.counts.in_flight = work.in_flight
        self.counts.most_at_once = max(self.counts.most_at_once, work.in_flight)
        if work.served is not None:
            self._add(work.served, work.took_s)
        self._idle = self._idle or work.in_flight == 0

    def silence_s(self, limits: Limits, least_s: float) -> float:
        """How long a call may be waited for: until its deadline, which is its asker's business.

        A stream has another frame to ask about, and must not wait for ever for a stage that will
        never answer: its calls end after `least_s` too, or after eight times as long as calls
        have taken, where that is longer. One that ended so counts as one that took so long.
        """
        if limits.urgency is Urgency.ONE_OFF or not math.isinf(limits.deadline_s):
            return limits.left_s
        return max(least_s, _MANY_TIMES * (self._service_s or 0.0))

    def fell_silent(self, after_s: float) -> None:
        """A call was given up after so long: on a slow machine the next one is given longer."""
        self._service_s = max(self._service_s or 0.0, after_s)

    def attempt_s(self) -> float:
        """A call that is silent for so long may have been sent to a replica that is gone."""
        if self._service_s is None:
            return math.inf
        return max(_LEAST_ATTEMPT_S, _MANY_TIMES * self.expected_s())

    def _add(self, result: Served[Any], call_s: float) -> None:
        counts, now_s = self.counts, self._clock()
        counts.num_done += 1
        counts.call_s += call_s
        counts.queue_s += result.queue_s
        counts.compute_s += result.compute_s
        self.queue_times.add(result.queue_s)
        self.compute_times.add(result.compute_s)
        self.batches.add(result.num_together)
        if result.memory is not None:
            self._saw_replica(result.memory)
        self._service_s = _mean(self._service_s, result.compute_s)
        if not self._idle:
            self._gap_s = _mean(self._gap_s, now_s - self._last_done_s)
        self._last_done_s, self._idle = now_s, False
        self._line_gone_s = now_s + result.queue_s

    def _saw_replica(self, memory: ProcessMemory) -> None:
        if memory.process not in self._replicas:
            self._forget_replicas()  # Old ones go even where no page is read.
        self._replicas[memory.process] = memory, self._clock()

    def _forget_replicas(self) -> None:
        earliest_s = self._clock() - _FORGET_REPLICA_S
        self._replicas = {
            name: seen for name, seen in self._replicas.items() if seen[1] >= earliest_s
        }


class WritingMeter:
    """What the language model's answers cost, and what drafts and shared prefixes saved."""

    def __init__(self) -> None:
        self.passes = Histogram(COUNTS)
        self.num_tokens = 0
        self.num_drafted_tokens = 0
        """Tokens that a draft had right."""
        self.num_prompt_tokens = 0
        self.num_prompt_tokens_reused = 0
        self.num_truncated = 0

    def add(self, written: Written) -> None:
        """One answer more."""
        self.passes.add(written.num_passes)
        self.num_tokens += written.num_tokens
        self.num_drafted_tokens += written.num_drafted_tokens
        self.num_prompt_tokens += written.num_prompt_tokens
        self.num_prompt_tokens_reused += written.num_prompt_tokens_reused
        self.num_truncated += written.truncated


@dataclass(frozen=True)
class StageMeters:
    """What is known about the load of the stages; lives as long as the process."""

    proposal: StageMeter = field(default_factory=lambda: StageMeter("proposal"))
    primary_encoder: StageMeter = field(default_factory=lambda: StageMeter("primary_encoder"))
    auxiliary_encoder: StageMeter | None = field(
        default_factory=lambda: StageMeter("auxiliary_encoder")
    )
    """None: the model has no such stage."""
    language: StageMeter = field(default_factory=lambda: StageMeter("language"))
    writing: WritingMeter = field(default_factory=WritingMeter)

    def __iter__(self) -> Iterator[StageMeter]:
        yield from (self.proposal, *self._encoders, self.language)

    @property
    def _encoders(self) -> tuple[StageMeter, ...]:
        auxiliary = self.auxiliary_encoder
        return (self.primary_encoder,) if auxiliary is None else (self.primary_encoder, auxiliary)

    def encoding_s(self) -> float:
        """All encoders, which work side by side."""
        return max(meter.expected_s() for meter in self._encoders)


def _mean(old: float | None, new: float) -> float:
    return new if old is None else old + _NEW_SHARE * (new - old)
