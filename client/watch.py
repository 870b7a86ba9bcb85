"""`groundstream watch`: a source streamed to a service, its answers shown as they come."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
from collections import deque
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agent.streaming.video_source import open_source
from client.annotated_video import AnnotatedVideo
from client.playback import play
from client.types import FrameResult, QueryResult, StreamError, StreamEvent, StreamStats
from client.vision_agent_client import VisionAgentClient

_MAX_ERRORS_SHOWN = 3


async def watch_source(
    source: str, queries: list[str], *, target: str, output: Path | None, as_json: bool
) -> None:
    """Stream a source until it ends and show every answer.

    Args:
        source: see `agent.streaming.video_source.open_source`.
        queries: what to look for.
        target: the service, host:port.
        output: where to write the annotated video, if anywhere.
        as_json: print one JSON object per event instead of a table.

    Raises:
        SourceError: the source cannot be read.
        ServiceError: there is no service, or the stream broke.
    """
    opened = open_source(source)
    view: _JsonLines | _LiveTable = _JsonLines() if as_json else _LiveTable(source)
    with contextlib.ExitStack() as stack:
        video = None
        if output is not None:
            video = stack.enter_context(AnnotatedVideo(output, fps=opened.fps))
        client = VisionAgentClient(target)
        stack.enter_context(view)
        async with client:
            await client.wait_until_ready(timeout_s=10.0)
            frames = play(opened, on_frame=video.add_frame if video else None)
            async with client.watch(frames, queries) as stream:
                async for event in stream:
                    if video is not None and isinstance(event, FrameResult):
                        video.add_result(event)
                    view.show(event)


class _JsonLines(contextlib.AbstractContextManager["_JsonLines"]):
    """One JSON object per event, its kind under "event"."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)

    def __exit__(self, *_error: object) -> None:
        return None

    def show(self, event: StreamEvent) -> None:
        """Print the event."""
        line = {"event": type(event).__name__, **dataclasses.asdict(event)}
        self._console.out(json.dumps(line, default=_plain), highlight=False)


class _LiveTable(contextlib.AbstractContextManager["_LiveTable"]):
    """The newest answer to each query, the delay, and where the frames went."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._result: FrameResult | None = None
        self._delay_ms = 0.0
        self._stats: StreamStats | None = None
        self._errors: deque[StreamError] = deque(maxlen=_MAX_ERRORS_SHOWN)
        self._live = Live(get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> _LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def show(self, event: StreamEvent) -> None:
        """Keep the event for the next refresh."""
        if isinstance(event, FrameResult):
            self._result = event
            self._delay_ms = (time.time_ns() - event.capture_time_ns) / 1e6
        elif isinstance(event, StreamStats):
            self._stats = event
        elif isinstance(event, StreamError):
            self._errors.append(event)

    def _render(self) -> Table:
        table = Table(title=self._title, caption=self._caption())
        for column in ("query", "status", "boxes", "best", "where"):
            table.add_column(column)
        for answer in self._result.results if self._result else ():
            table.add_row(*answer_row(answer))
        return table

    def _caption(self) -> str:
        lines = []
        if self._result is not None:
            hit = ", from cache" if self._result.cache_hit else ""
            lines.append(f"frame {self._result.sequence}, {self._delay_ms:.0f} ms old{hit}")
        if self._stats is not None:
            lines.append(
                f"{self._stats.received} received, {self._stats.answered} answered, "
                f"{self._stats.superseded} superseded, {self._stats.rejected} rejected, "
                f"{self._stats.failed} failed"
            )
        lines += [f"{error.code}: {error.message}" for error in self._errors]
        return "\n".join(lines) or "waiting for the first answer ..."


def answer_row(answer: QueryResult) -> tuple[str, str, str, str, str]:
    """Query, status, number of boxes, best confidence, and the best box in whole pixels."""
    if not answer.detections:
        return answer.query_id, answer.status.value, "0", "", ""
    best = max(answer.detections, key=lambda detection: detection.confidence)
    where = ", ".join(f"{value:.0f}" for value in best.box)
    count = str(len(answer.detections))
    return answer.query_id, answer.status.value, count, f"{best.confidence:.2f}", where


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
