"""`groundstream watch`: a source streamed to a service, its answers shown as they come."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import math
import time
from collections import deque
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from agent.prompts import clean_query
from deployments.local.event_file import EventFile
from groundstream import aio
from groundstream.errors import InvalidQuery
from groundstream.events import (
    KeyframeAnswer,
    Reconnecting,
    SourceClockJumped,
    SourceEnded,
    SourceEvent,
    SourceLost,
    SourceOpened,
    SourceResized,
    StreamError,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.locations import shown_location
from groundstream.types import (
    AnswerMode,
    FrameResult,
    OutgoingFrame,
    QueryResult,
    StreamPolicy,
    VideoCodec,
)
from groundstream.video.annotated_video import AnnotatedVideo
from groundstream.video.detection_bag import DetectionBag
from groundstream.video.playback import play, play_packets
from groundstream.video.rerun_recording import RerunRecording
from groundstream.video.sources import ImageFolder, Reopen, SourceFrame, open_source
from groundstream.watch_stream import Reconnect

_FIRST_CHANGE = 1
"""The queries that a stream begins with."""
_START_S = 10.0
"""Without a word about patience: so long for a service that is not there at the start, ..."""
_PATIENCE_S = 180.0
"""... and so long for one that went away; a large model is loaded in that time."""
_MAX_ERRORS_SHOWN = 3


async def watch_source(
    client: aio.Client,
    source: str,
    queries: list[str],
    *,
    policy: StreamPolicy | None = None,
    output: Path | None = None,
    rerun: Path | None = None,
    bag: Path | None = None,
    events: EventFile | None = None,
    as_json: bool = False,
    patience_s: float | None = None,
    reopen: Reopen | None = None,
    decode: bool = False,
) -> None:
    """Stream a source until it ends and show every answer.

    Args:
        client: connected to a service.
        source: see `groundstream.video.sources.open_source`.
        queries: what to look for.
        policy: how to answer.
        output: where to write the annotated video, if anywhere.
        rerun: where to write a Rerun recording, if anywhere.
        bag: where to write a robot's recording (rosbag2 with MCAP), if anywhere.
        events: where to write what happens in front of the camera, if anywhere.
        as_json: print one JSON object per event instead of a table.
        patience_s: how long to wait for a service that is not there, or not any more; infinity:
            for ever.
        reopen: what to do when a live source is lost; by default it is opened again, for ever.
        decode: send pictures even where the source's packets could be passed on.

    Raises:
        SourceError: the source cannot be read, or was lost for longer than `reopen` allows.
        InvalidQuery: one of the queries cannot be asked.
        SettingsError: a recording is wanted that cannot be written, or what writes it (rerun-sdk,
            rosbags) is not installed.
        EventsError: a zone or line of `events` does not lie in the source's pictures.
        ServiceError: there is no service, or the stream broke.
    """
    for query in queries:
        clean_query(query)  # A stream would only say so in-band, and play on.
    loop = asyncio.get_running_loop()
    view: _JsonLines | _LiveTable = _JsonLines() if as_json else _LiveTable(source)

    def on_event(event: SourceEvent) -> None:
        with contextlib.suppress(RuntimeError):  # The loop is gone: nobody looks any more.
            loop.call_soon_threadsafe(view.show, event)

    # What is on the web is opened to know what it is, and that takes time.
    opened = await asyncio.to_thread(open_source, source, reopen=reopen, on_event=on_event)
    policy = policy or StreamPolicy()
    if isinstance(opened, ImageFolder) and len(opened) == 1:
        # There is no later frame to which what the model says could be carried.
        policy = dataclasses.replace(policy, mode=AnswerMode.GROUND)
    with contextlib.ExitStack() as stack:
        recordings: list[AnnotatedVideo | RerunRecording | DetectionBag] = []
        if output is not None:
            recordings.append(stack.enter_context(AnnotatedVideo(output, fps=opened.fps)))
        if rerun is not None:
            recordings.append(stack.enter_context(RerunRecording(rerun)))
        if bag is not None:
            recordings.append(stack.enter_context(DetectionBag(bag)))
        stack.enter_context(view)

        def record(frame: OutgoingFrame, picture: SourceFrame) -> None:
            for recording in recordings:
                if isinstance(recording, DetectionBag):
                    recording.add_frame(frame, picture.capture_time_ns)
                else:
                    recording.add_frame(frame, picture.rgb, picture.pts_s)

        start_s, lost_s = (
            (_START_S, _PATIENCE_S) if patience_s is None else (patience_s, patience_s)
        )
        reconnect = Reconnect(patience_s=lost_s, on_attempt=view.show)
        await client.wait_until_ready(timeout_s=None if math.isinf(start_s) else start_s)
        codecs: tuple[VideoCodec, ...] = ()
        if not (decode or recordings):
            codecs = (await client.capabilities()).video_codecs
        frames = play_packets(opened, codecs) if codecs else play(opened, on_frame=record)
        async with client.watch(frames, queries, policy=policy, reconnect=reconnect) as stream:
            async for event in stream:
                if isinstance(event, FrameResult):
                    for recording in recordings:
                        recording.add_result(event)
                if events is not None:
                    events.show(event)
                view.show(event)
                if isinstance(event, StreamError) and event.change_id == _FIRST_CHANGE:
                    raise InvalidQuery(event.message)


class _JsonLines(contextlib.AbstractContextManager["_JsonLines"]):
    """One JSON object per event, its kind under "event"."""

    def __init__(self) -> None:
        self._console = Console(soft_wrap=True, highlight=False)

    def __exit__(self, *_error: object) -> None:
        return None

    def show(self, event: StreamEvent | Reconnecting | SourceEvent) -> None:
        """Print the event."""
        line = {"event": type(event).__name__, **dataclasses.asdict(event)}
        line.pop("resume_token", None)  # A secret, and logs are read by many.
        self._console.out(json.dumps(line, default=_plain), highlight=False)


class _LiveTable(contextlib.AbstractContextManager["_LiveTable"]):
    """The newest answer to each query, the delay, and where the frames went."""

    def __init__(self, source: str) -> None:
        self._title = shown_location(source)
        self._result: FrameResult | None = None
        self._delay_ms = 0.0
        self._keyframe: KeyframeAnswer | None = None
        self._num_resumed = 0
        self._broken: Reconnecting | None = None
        self._is_open = False
        self._source = ""
        self._num_reopened = 0
        self._stats: StreamStats | None = None
        self._errors: deque[StreamError] = deque(maxlen=_MAX_ERRORS_SHOWN)
        self._live = Live(get_renderable=self._render, refresh_per_second=8)

    def __enter__(self) -> _LiveTable:
        self._live.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._live.stop()

    def show(self, event: StreamEvent | Reconnecting | SourceEvent) -> None:
        """Keep the event for the next refresh."""
        if not isinstance(event, SourceEvent):
            self._broken = event if isinstance(event, Reconnecting) else None
        match event:
            case SourceOpened():
                self._source = ""
                self._num_reopened += event.lost_s > 0 and self._result is not None
            case SourceLost():
                again = "given up" if event.retry_s is None else f"again in {event.retry_s:.0f} s"
                self._source = f"{event.reason}; {again}, attempt {event.attempt}"
            case SourceResized():
                self._source = f"the pictures are {event.width}x{event.height} now"
            case SourceClockJumped():
                self._source = f"the source's clock jumped by {event.jump_s:.1f} s"
            case SourceEnded():
                self._source = (
                    f"the source has ended: {event.num_pictures} pictures, "
                    f"{event.num_skipped} skipped, lost {event.num_lost} times"
                )
            case FrameResult():
                self._result = event
                self._delay_ms = (time.time_ns() - event.capture_time_ns) / 1e6
            case KeyframeAnswer():
                self._keyframe = event
            case StreamStats():
                self._stats = event
            case StreamError():
                self._errors.append(event)
            case StreamOpened():
                self._is_open = True
                self._num_resumed += event.resumed

    def _render(self) -> Table:
        table = Table(title=self._title, caption=self._caption())
        for column in ("query", "status", "boxes", "ids", "best", "where", "evidence"):
            table.add_column(column)
        for answer in self._result.results if self._result else ():
            ids = " ".join(str(d.track_id) for d in answer.detections if d.track_id is not None)
            age = f"{answer.source.value.lower()}, {answer.evidence_age_ms / 1e3:.1f} s"
            query, status, count, best, where = answer_row(answer)
            table.add_row(query, status, count, ids, best, where, age)
        return table

    def _caption(self) -> str:
        lines = []
        if self._result is not None:
            lines.append(f"frame {self._result.sequence}, {self._delay_ms:.0f} ms old")
        if self._keyframe is not None:
            result, reason = self._keyframe.result, self._keyframe.reason
            why = reason.lower().replace("_", " ")
            hit = ", from cache" if result.cache_hit else ""
            spent_ms = (result.answered_time_ns - result.received_time_ns) / 1e6
            lines.append(f"key frame {result.sequence} ({why}), {spent_ms:.0f} ms{hit}")
        if self._stats is not None:
            books = self._stats
            lines.append(
                f"{books.received} received: {books.answered} answered, "
                f"{books.tracked_only} tracked, {books.superseded} superseded, "
                f"{books.expired} expired, {books.rejected} rejected, {books.failed} failed"
            )
        if self._num_resumed:
            lines.append(f"resumed {self._num_resumed} times")
        lines += [f"{error.code}: {error.message}" for error in self._errors]
        if self._broken is not None:
            lost = self._broken
            lines.append(
                f"the stream broke {lost.broken_s:.0f} s ago ({lost.reason}); "
                f"opening it again, attempt {lost.attempt} ..."
            )
        if self._num_reopened:
            lines.append(f"the source was opened again {self._num_reopened} times")
        if self._source:
            lines.append(self._source)
        waiting = "the first answer" if self._is_open else "the service"
        return "\n".join(lines) or f"waiting for {waiting} ..."


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
