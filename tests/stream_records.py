"""What a client saw of its stream and when, and whether its books close. Knows no connection."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import TypeVar

from groundstream.events import KeyframeAnswer, StreamError, StreamEvent, StreamOpened, StreamStats
from groundstream.types import FrameResult

T = TypeVar("T")

TYPED = {"STAGE_UNAVAILABLE", "OVERLOADED"}
"""What the frames of a service in trouble may end with."""


@dataclass(frozen=True)
class Asked:
    """A single question about a new picture has come back."""

    error: str
    """Type and message; empty: answered."""
    took_s: float


@dataclass(frozen=True)
class Finished:
    """The stream has ended in good order."""

    num_made: int
    """Frames that the camera made."""
    num_sent: int
    num_unsent: int


@dataclass(frozen=True)
class Seen:
    """One thing the client saw."""

    at_s: float
    """Of `time.monotonic`, which all processes of a machine share."""
    event: StreamEvent | Asked | Finished


@dataclass
class StreamRecord:
    """All that a client saw."""

    entries: list[Seen] = field(default_factory=list)

    def of(self, kind: type[T], since_s: float = 0.0) -> list[T]:
        """Everything of one kind, from some moment on."""
        return [
            entry.event
            for entry in self.entries
            if isinstance(entry.event, kind) and entry.at_s >= since_s
        ]

    def times_s(self, kind: type[T], since_s: float = 0.0) -> list[float]:
        """How long after some moment each of that kind came."""
        return [
            entry.at_s - since_s
            for entry in self.entries
            if isinstance(entry.event, kind) and entry.at_s >= since_s
        ]

    def num_answered(self, since_ns: int) -> int:
        """Frames captured after some moment that the model has answered."""
        answered = [answer.result.capture_time_ns for answer in self.of(KeyframeAnswer)]
        return sum(captured_ns > since_ns for captured_ns in answered)

    @property
    def longest_silence_s(self) -> float:
        """Between two results of frames, one after the other."""
        times = self.times_s(FrameResult)
        return max(after - before for before, after in itertools.pairwise(times))

    def check(self, query: str) -> None:
        """Every frame is in exactly one place, nothing came twice, and identity is kept.

        Args:
            query: has found the same one thing from its first answer to the end.
        """
        self._check_books()
        results = self.of(FrameResult)
        sequences = [result.sequence for result in results]
        assert sequences == sorted(set(sequences))
        # The queries and their epoch are what they were.
        opened = self.of(StreamOpened)
        assert not opened[0].resumed
        assert all(again.resumed and query in again.query_ids for again in opened[1:])
        assert {result.epoch for result in results if result.results} == {1}
        found = [[d.track_id for d in result[query].detections] for result in results]
        known = list(itertools.dropwhile(lambda ids: not ids, found))
        assert known, f"{query} was never found"
        assert known == [[1]] * len(known)

    def _check_books(self) -> None:
        (finished,), books = self.of(Finished), self.of(StreamStats)
        assert all(entry.balanced for entry in books)
        last = books[-1]
        assert (last.received, last.in_flight) == (finished.num_sent, 0)
        assert finished.num_sent + finished.num_unsent == finished.num_made
        delivered = len(self.of(FrameResult))
        in_books = last.answered + last.tracked_only + last.expired
        # A frame whose answer failed may have been tracked before.
        assert in_books <= delivered <= in_books + last.failed
        gaps = [again.gap.num_frames for again in self.of(StreamOpened) if again.gap is not None]
        errors = self.of(StreamError)
        assert {error.code for error in errors} <= TYPED
        # What a snapshot did not know of yet, the client accounts for by the result that it got.
        assert sum(gaps) <= last.failed <= sum(gaps) + len(errors)
