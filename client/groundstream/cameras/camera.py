"""One camera: its source, its stream, its events, and what is said when one of them is lost.

Goes on until it is stopped or its source has ended, whatever happens meanwhile. Runs on the event
loop of the runner; owns its own books.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence

from groundstream import aio
from groundstream.cameras.camera_books import CameraBooks, StreamBooks
from groundstream.cameras.clips import Clips
from groundstream.cameras.delivery import pause_s
from groundstream.cameras.outbox import Record
from groundstream.cameras.pacing import PacedSource
from groundstream.cameras.records import camera_record, event_record
from groundstream.cameras.settings import CameraSettings
from groundstream.errors import AgentError
from groundstream.event_detector import EventDetector
from groundstream.events import (
    Reconnecting,
    SourceClockJumped,
    SourceEnded,
    SourceEvent,
    SourceLost,
    SourceOpened,
    SourceResized,
    StreamError,
    StreamOpened,
)
from groundstream.locations import shown_location
from groundstream.scene_events import SceneEvent
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from groundstream.video.playback import play
from groundstream.video.sources import SourceFrame, open_source
from groundstream.watch_stream import Reconnect, WatchStream

_LOG = logging.getLogger(__name__)
_STEADY_S = 60.0
"""After a stream that held so long the pauses start small again."""
_MAX_SERVICE_PAUSE_S = 5.0
_SAY_AGAIN_S = 60.0
_ANSWERS_S = 5.0
"""How long a camera that is stopped waits for the answers that are under way."""
Tell = Callable[[Sequence[Record]], None]


class Camera:
    """One camera of a runner."""

    def __init__(
        self, settings: CameraSettings, client: aio.Client, tell: Tell, clips: Clips | None
    ) -> None:
        """Nothing is opened yet.

        Args:
            settings: what to look at, and for what.
            client: connected to the service.
            tell: hands records to this camera's sinks; may wait for the disk.
            clips: records events; None: nobody does.
        """
        self.settings = settings
        self.events: Counter[str] = Counter()
        """What was told, by kind."""
        self.last_frame_s = self.last_result_s = 0.0
        """When, seconds since 1970."""
        self.has_ended = False
        """Its source has come to its end."""
        self._client = client
        self._tell = tell
        self._clips = clips
        self._finished = CameraBooks()
        self._stream_books = StreamBooks()
        self._source: PacedSource | None = None
        self._service_lost_s = 0.0
        self._errors_told: dict[str, float] = {}
        """When an error of frames was told last, by its code."""
        self._stopping = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    @property
    def books(self) -> CameraBooks:
        """Where its pictures went until now."""
        return self._finished.plus(self._stream_books.books)

    def stop(self) -> None:
        """Have `run` return; from the event loop."""
        self._stopping.set()
        if self._source is not None:
            self._source.stop()

    async def run(self) -> None:
        """Watch until the source ends or the camera is stopped."""
        self._say("STARTED", source=shown_location(self.settings.source))
        failures = 0
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                await self._watch()
                break
            except AgentError as error:
                reason = str(error)
            except Exception as error:
                # A bug of ours at one camera is no reason to lose the others, or this one.
                _LOG.exception("camera %s", self.settings.name)
                reason = f"{type(error).__name__}: {error}"
            failures = 1 if time.monotonic() - began_s >= _STEADY_S else failures + 1
            retry_s = pause_s(failures)
            reason = shown_location(reason)
            _LOG.warning("camera %s: %s; again in %.1f s", self.settings.name, reason, retry_s)
            self._say("FAILED", reason=reason, attempt=failures, retry_s=round(retry_s, 1))
            self._finished.restarts += 1
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), retry_s)
        self.has_ended = not self._stopping.is_set()
        books = self.books
        self._say(
            "ENDED" if self.has_ended else "STOPPED",
            books={**vars(books), "closed": books.are_closed},
        )

    async def _watch(self) -> None:
        """One stream, from its opening to its end."""
        settings = self.settings
        source = await asyncio.to_thread(open_source, settings.source, on_event=self._hear_source)
        self._source = PacedSource(source, fps=settings.fps, repeat=settings.repeat)
        if self._stopping.is_set():
            self._source.stop()
        # Numbers of frames and tracks begin anew; events of two streams must not share an id.
        detector = EventDetector(
            settings.zones,
            settings.lines,
            settings=settings.events,
            stream=f"{settings.name}/{uuid.uuid4().hex}",
        )
        frames = play(self._source, on_frame=self._send)
        stream = self._client.watch(
            frames,
            settings.queries,
            policy=StreamPolicy(mode=settings.mode, max_age_ms=settings.max_age_ms),
            reconnect=Reconnect(
                patience_s=math.inf,
                max_pause_s=_MAX_SERVICE_PAUSE_S,
                on_attempt=self._hear_service_lost,
            ),
        )
        listening: asyncio.Task[None] | None = None
        try:
            async with stream:
                listening = asyncio.ensure_future(self._listen(stream, detector))
                stopping = asyncio.ensure_future(self._stopping.wait())
                await asyncio.wait({listening, stopping}, return_when=asyncio.FIRST_COMPLETED)
                stopping.cancel()
                if not listening.done():
                    # The frames end now; their answers come, unless the service is away.
                    await asyncio.wait({listening}, timeout=_ANSWERS_S)
                if listening.done():
                    await listening
        finally:
            if listening is not None and not listening.done():
                listening.cancel()
                await asyncio.gather(listening, return_exceptions=True)
            self._source.stop()
            assert isinstance(frames, AsyncGenerator)
            await frames.aclose()
            if self._clips is not None:
                self._clips.close()
            self._close_books(stream)
        await self._tell_events(detector.flush())

    def _close_books(self, stream: WatchStream) -> None:
        num_lost = self._stream_books.close(stream.num_sent)
        if self._source is not None:
            self._stream_books.books.left_out += self._source.num_left_out
        self._finished = self.books
        self._stream_books = StreamBooks()
        self._source = None
        if num_lost:
            self._say("FRAMES_LOST", count=num_lost, reason="the stream ended before their answers")

    # ---- the stream ----

    async def _listen(self, stream: WatchStream, detector: EventDetector) -> None:
        async for event in stream:
            num_lost = self._stream_books.note(event, stream.num_sent, stream.num_unsent)
            match event:
                case FrameResult():
                    self.last_result_s = time.time()
                case StreamOpened():
                    self._hear_opened(event, stream, num_lost)
                case StreamError():
                    self._hear_error(event)
            await self._tell_events(detector.update(event))

    async def _tell_events(self, events: Sequence[SceneEvent]) -> None:
        if not events:
            return
        records = []
        for event in events:
            self.events[event.kind.value] += 1
            recorded = {} if self._clips is None else self._clips.note(event)
            records.append(event_record(self.settings.name, event, recorded))
        # On disk before the next answer is read, and the loop does not wait for the disk.
        await asyncio.to_thread(self._tell, records)

    def _send(self, frame: OutgoingFrame, _picture: SourceFrame) -> None:
        self.last_frame_s = time.time()
        self._stream_books.books.pictures += 1
        if self._clips is not None:
            self._clips.add(frame)

    # ---- what is lost, and comes back ----

    def _say(self, what: str, **fields: object) -> None:
        self._tell([camera_record(self.settings.name, what, **fields)])

    def _hear_opened(self, event: StreamOpened, stream: WatchStream, num_lost: int) -> None:
        if stream.num_reconnects:
            _LOG.warning("camera %s: the service is back", self.settings.name)
            self._say(
                "SERVICE_BACK", resumed=event.resumed,
                lost_s=round(time.monotonic() - self._service_lost_s, 1),
            )  # fmt: skip
        if num_lost:
            self._say("FRAMES_LOST", count=num_lost, reason="the service or the connection broke")

    def _hear_service_lost(self, broken: Reconnecting) -> None:
        if broken.attempt > 1:
            return  # Told already; SERVICE_BACK says how long it took.
        self._finished.service_lost += 1
        self._service_lost_s = time.monotonic()
        _LOG.warning("camera %s: the service is lost: %s", self.settings.name, broken.reason)
        self._say("SERVICE_LOST", reason=broken.reason)

    def _hear_error(self, error: StreamError) -> None:
        now_s = time.monotonic()
        if error.sequence is not None:
            # One of many frames, all of which are counted.
            if now_s - self._errors_told.get(error.code, -math.inf) < _SAY_AGAIN_S:
                return
            self._errors_told[error.code] = now_s
        _LOG.warning("camera %s: %s: %s", self.settings.name, error.code, error.message)
        self._say("ERROR", code=error.code, reason=error.message, sequence=error.sequence)

    def _hear_source(self, event: SourceEvent) -> None:
        """Called in the thread that reads the source."""
        with contextlib.suppress(RuntimeError):  # The loop is gone: nobody looks any more.
            self._loop.call_soon_threadsafe(self._note_source, event)

    def _note_source(self, event: SourceEvent) -> None:
        match event:
            case SourceOpened():
                self._say(
                    "SOURCE_OPENED", width=event.width, height=event.height,
                    attempt=event.attempt, lost_s=round(event.lost_s, 1),
                )  # fmt: skip
            case SourceLost(attempt=1):
                self._finished.source_lost += 1
                _LOG.warning("camera %s: %s", self.settings.name, event.reason)
                self._say("SOURCE_LOST", reason=event.reason)
            case SourceResized():
                self._say("SOURCE_RESIZED", width=event.width, height=event.height)
            case SourceClockJumped():
                self._say("SOURCE_CLOCK_JUMPED", jump_s=round(event.jump_s, 3))
            case SourceEnded():
                self._finished.left_out += event.num_skipped
