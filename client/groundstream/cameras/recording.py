"""The thread that writes snapshots and clips, one after the other, so that sending never waits.

What waits for it is bounded; what there is no room for, or what the disk does not take, is told by
a record and counted.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from groundstream.cameras.clips import Clip, Shot
from groundstream.cameras.library import Library
from groundstream.cameras.outbox import Record
from groundstream.errors import AgentError, reason_of
from groundstream.video.drawing import LabelledBox, draw_boxes
from groundstream.video.pictures import decode_picture, encode_jpeg
from groundstream.video.writer import VideoWriter

_LOG = logging.getLogger(__name__)
_MAX_BYTES = 256 * 1024 * 1024
_MAX_JOBS = 1000
_LOOK_S = 30.0
_NS = 1_000_000_000
_JPEG_QUALITY = 90
_PRESET = "veryfast"
_DEFAULT_FPS = 25.0


class Recording:
    """Takes what is to be written and says what became of it."""

    def __init__(self, library: Library, tell: Callable[[Record], None]) -> None:
        """Begin to write.

        Args:
            library: where to; belongs to the recording from here on.
            tell: told of every clip, and of what could not be written; called from both threads.
        """
        self.library = library
        self.num_dropped = 0
        """What there was no room for."""
        self._tell = tell
        self._changed = threading.Condition()
        self._jobs: deque[Shot | Clip] = deque()
        self._num_bytes = 0
        """Of the jobs that wait and of the one that is being written."""
        self._is_stopping = False
        self._thread = threading.Thread(target=self._run, name="recording", daemon=True)
        self._thread.start()

    def submit(self, job: Shot | Clip) -> None:
        """Have it written, or told that it is not; does not wait."""
        with self._changed:
            has_room = (
                len(self._jobs) < _MAX_JOBS
                and self._num_bytes + _size(job) <= _MAX_BYTES
                and not self._is_stopping
            )
            if has_room:
                self._jobs.append(job)
                self._num_bytes += _size(job)
                self._changed.notify_all()
            else:
                self.num_dropped += 1
        if not has_room:
            self._tell(_record(job, error="more is to be written than this machine can"))

    def stop(self, grace_s: float) -> None:
        """Write what waits for so long at most; the rest is told as not written."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()
        self._thread.join(grace_s)
        with self._changed:
            left, self._jobs = list(self._jobs), deque()
            self.num_dropped += len(left)
        for job in left:
            self._tell(_record(job, error="the runner was stopped before it was written"))
        self._thread.join(grace_s)
        self.library.close()

    def _run(self) -> None:
        self.library.remove_old()
        while True:
            with self._changed:
                if not self._jobs and not self._is_stopping:
                    self._changed.wait(_LOOK_S)
                if not self._jobs and self._is_stopping:
                    return
                job = self._jobs.popleft() if self._jobs else None
            if job is None:
                self.library.remove_old()
                continue
            self._write(job)
            with self._changed:
                self._num_bytes -= _size(job)

    def _write(self, job: Shot | Clip) -> None:
        try:
            if isinstance(job, Shot):
                self.library.write(job.name, lambda path: _write_shot(job, path))
                return
            size = self.library.write(job.name, lambda path: _write_clip(job, path))
            self._tell(_record(job, num_bytes=size))
        except (OSError, sqlite3.Error, AgentError, ValueError, MemoryError) as error:
            words = reason_of(error)
            _LOG.warning("%s was not written: %s", job.name, words)
            self._tell(_record(job, error=words))


def _write_shot(shot: Shot, path: Path) -> None:
    if shot.box is None:
        path.write_bytes(shot.frame.encoded)
        return
    drawn = draw_boxes(decode_picture(shot.frame.encoded), [LabelledBox(shot.box, shot.label)])
    path.write_bytes(encode_jpeg(drawn, _JPEG_QUALITY))


def _write_clip(clip: Clip, path: Path) -> None:
    first_ns = clip.frames[0].capture_time_ns
    length_s = (clip.frames[-1].capture_time_ns - first_ns) / _NS
    fps = (len(clip.frames) - 1) / length_s if length_s > 0 else _DEFAULT_FPS
    # One thread: a camera that is being answered is more urgent than a clip.
    writer = VideoWriter(path, fps=max(1.0, fps), preset=_PRESET, num_threads=1)
    try:
        for frame in clip.frames:
            writer.write(decode_picture(frame.encoded), (frame.capture_time_ns - first_ns) / _NS)
    except BaseException:
        with contextlib.suppress(OSError):
            writer.close()
        raise
    writer.close()


def _size(job: Shot | Clip) -> int:
    return len(job.frame.encoded) if isinstance(job, Shot) else job.num_bytes


def _record(job: Shot | Clip, *, num_bytes: int = 0, error: str = "") -> Record:
    """What is told of a finished clip, or of what was not written."""
    events = [job.event_id] if isinstance(job, Shot) else job.event_ids
    record: Record = {
        "id": f"recording-{job.name}", "type": "recording", "camera": job.camera,
        "time_ns": time.time_ns(), "name": job.name, "events": list(events),
    }  # fmt: skip
    if isinstance(job, Clip):
        first, last = job.frames[0], job.frames[-1]
        record["frames"] = len(job.frames)
        record["began_time_ns"] = first.capture_time_ns
        record["seconds"] = round((last.capture_time_ns - first.capture_time_ns) / _NS, 3)
        record["cut"] = job.is_cut
    if error:
        record["error"] = error
    else:
        record["bytes"] = num_bytes
    return record
