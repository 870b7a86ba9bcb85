"""The streams that are open through this console: last picture, last answers, books, drafts.

Each stream keeps one picture; a viewer that is slower than the stream skips. Knows no HTTP.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from deployments.console.views import books_view, result_view
from deployments.streams.buffers import LatestValue, PictureBuffer
from groundstream.errors import Overloaded
from groundstream.events import KeyframeAnswer, StreamError, StreamEvent, StreamOpened, StreamStats
from groundstream.types import FrameResult, OutgoingFrame, QueryResult


@dataclass
class DraftFigures:
    """What the language model's drafts saved, over the answers seen through this console."""

    num_answers: int = 0
    num_passes: int = 0
    num_drafted_tokens: int = 0
    num_prefix_tokens_reused: int = 0

    def add(self, answer: QueryResult) -> None:
        """Count one answer of the language model."""
        self.num_answers += 1
        self.num_passes += answer.num_passes
        self.num_drafted_tokens += answer.num_drafted_tokens
        self.num_prefix_tokens_reused += answer.num_prefix_tokens_reused


@dataclass(frozen=True)
class Shown:
    """A picture and what was said about it."""

    encoded: bytes
    """As it was sent."""
    result: Mapping[str, Any]


@dataclass
class BoardStream:
    """One open stream."""

    number: int
    """From 1, of this console."""
    name: str
    """Where its frames come from."""
    drafts: DraftFigures
    queries: tuple[str, ...] = ()
    books: dict[str, Any] = field(default_factory=dict)
    keyframe_ms: float | None = None
    """From the last key frame's arrival to what the model said about it."""
    error: str = ""
    """The last that went wrong."""
    _pending: PictureBuffer = field(default_factory=PictureBuffer)
    _shown: LatestValue[Shown] = field(default_factory=LatestValue)

    def note_sent(self, frame: OutgoingFrame) -> None:
        """A frame goes out; its picture is kept until something is said about it."""
        self._pending.put(frame.sequence, frame.encoded)

    def note_event(self, event: StreamEvent) -> None:
        """The service said something."""
        match event:
            case FrameResult():
                self._show(event)
                if event.timings.language_ms:
                    self._count(event)
            case KeyframeAnswer():
                self.keyframe_ms = event.result.timings.total_ms
                self._count(event.result)
            case StreamStats():
                self.books = books_view(event)
            case StreamOpened():
                self.error = ""  # What kept it from being open is over.
            case StreamError():
                self.error = f"{event.code}: {event.message}"

    def close(self) -> None:
        """No more will come."""
        self._shown.close()

    def pictures(self) -> AsyncIterator[Shown]:
        """Each time there is a newer picture: the newest; ends with the stream."""
        return self._shown.values()

    def summary(self) -> dict[str, Any]:
        """A row of the list of streams."""
        return {
            "number": self.number,
            "name": self.name,
            "queries": list(self.queries),
            "books": self.books,
            "keyframe_ms": self.keyframe_ms,
            "error": self.error,
        }

    def _show(self, result: FrameResult) -> None:
        encoded = self._pending.pop(result.sequence)
        if encoded is not None:
            self._shown.put(Shown(encoded, result_view(result)))

    def _count(self, result: FrameResult) -> None:
        for answer in result.results:
            self.drafts.add(answer)


class Board:
    """All of them."""

    def __init__(self, *, max_streams: int) -> None:
        self.drafts = DraftFigures()
        self._max_streams = max_streams
        self._numbers = itertools.count(1)
        self._streams: dict[int, BoardStream] = {}

    def open(self, name: str, queries: tuple[str, ...]) -> BoardStream:
        """A new stream.

        Raises:
            Overloaded: as many are open as this console may have.
        """
        if len(self._streams) >= self._max_streams:
            raise Overloaded(f"this console has {self._max_streams} streams open; close one first")
        stream = BoardStream(next(self._numbers), name, self.drafts, queries)
        self._streams[stream.number] = stream
        return stream

    def close(self, stream: BoardStream) -> None:
        """The stream has ended; its viewers are told."""
        stream.close()
        self._streams.pop(stream.number, None)

    def get(self, number: int) -> BoardStream | None:
        """The stream of that number, while it is open."""
        return self._streams.get(number)

    def summaries(self) -> list[dict[str, Any]]:
        """All that are open, oldest first."""
        return [stream.summary() for stream in self._streams.values()]
