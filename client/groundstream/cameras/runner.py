"""All cameras of a file in one process, kept as the file says while it changes."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from groundstream import aio
from groundstream.cameras.camera import Camera
from groundstream.cameras.clips import Clips
from groundstream.cameras.library import Library
from groundstream.cameras.outbox import Record
from groundstream.cameras.recording import Recording
from groundstream.cameras.records import runner_record
from groundstream.cameras.schema import read_runner_file
from groundstream.cameras.settings import CameraSettings, RunnerSettings
from groundstream.cameras.telling import Prepared, Telling
from groundstream.errors import SettingsError

_LOG = logging.getLogger(__name__)
_LOOK_S = 1.0
_GRACE_S = 5.0
"""For what waits when a sink or the runner is stopped."""


class Runner:
    """One file's cameras; make it and `run` it on one event loop."""

    def __init__(self, path: Path) -> None:
        """Read the file.

        Raises:
            SettingsError: something in it is wrong.
        """
        self.settings = read_runner_file(path)
        self.cameras: dict[str, Camera] = {}
        self._state = self.settings.state
        """As it was at the start; it cannot change while it is in use."""
        self.telling = Telling(self._state)
        self.recording: Recording | None = None
        self.is_file_sound = True
        """False while the file says something wrong and what it said before goes on."""
        self.num_reloads = 0
        self._path = path
        self._seen = _signature(path)
        self._changing: tuple[int, ...] | None = None
        self._client: aio.Client | None = None
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._stopping = asyncio.Event()
        self._must_read = False

    def stop(self) -> None:
        """Have `run` return; from the event loop."""
        self._stopping.set()

    def read_again(self) -> None:
        """Read the file, whether it has changed or not: secrets may have."""
        self._must_read = True

    async def run(self) -> None:
        """Run until stopped, or until the sources of all cameras have ended.

        Raises:
            SettingsError: the state folder, a sink or the metrics page cannot be used.
        """
        from groundstream.cameras.metrics import serve_metrics  # It needs a package of its own.

        loop = asyncio.get_running_loop()
        with _state_folder(self._state) as ended_well, contextlib.ExitStack() as stack:
            if self.settings.metrics is not None:
                stack.enter_context(serve_metrics(self, *self.settings.metrics))
            prepared = self.telling.prepare(self.settings.sinks)
            self.telling.change(prepared, _GRACE_S)
            for number, act in (
                (signal.SIGTERM, self.stop), (signal.SIGINT, self.stop),
                (signal.SIGHUP, self.read_again),
            ):  # fmt: skip
                loop.add_signal_handler(number, act)
                stack.callback(loop.remove_signal_handler, number)
            self.telling.tell([runner_record("STARTED", ended_well=ended_well)])
            if not ended_well:
                _LOG.warning(
                    "the run before did not end in good order; what happened in its last moments "
                    "may be missing"
                )
            try:
                library = self._open_library(self.settings)
                if library is not None:
                    library.remove_partial()
                    self.recording = Recording(library, self._tell_recorded)
                self._client = _open_client(self.settings)
                for settings in self.settings.cameras.values():
                    self._start(settings)
                await self._look_after()
            finally:
                await self._close()

    async def _look_after(self) -> None:
        while not self._stopping.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _LOOK_S)
            if not self._stopping.is_set() and self._has_changed():
                await self._reload()
            if self.cameras and all(camera.has_ended for camera in self.cameras.values()):
                _LOG.info("all sources have ended")
                return

    def _has_changed(self) -> bool:
        """Whether the file was written, and is not being written any more."""
        must_read, self._must_read = self._must_read, False
        found = _signature(self._path)
        if must_read:
            self._seen = found
            return True
        if found == self._seen:
            self._changing = None
            return False
        if found != self._changing:
            self._changing = found
            return False
        self._seen, self._changing = found, None
        return True

    async def _reload(self) -> None:
        library: Library | None = None
        try:
            wanted = await asyncio.to_thread(read_runner_file, self._path)
            client = _open_client(wanted)
            library = self._open_library(wanted)
            prepared = await asyncio.to_thread(self.telling.prepare, wanted.sinks)
        except SettingsError as error:
            if library is not None:
                library.close()
            self.is_file_sound = False
            _LOG.error("the file was changed and cannot be used; all goes on as before:\n%s", error)
            await self._tell_runner("RELOAD_REFUSED", reason=str(error))
            return
        self.is_file_sound = True
        await self._change(wanted, prepared, client, library)

    async def _change(
        self,
        wanted: RunnerSettings,
        prepared: Prepared,
        client: aio.Client,
        library: Library | None,
    ) -> None:
        """Go over to a file whose parts have been opened; what stays the same goes on."""
        before, self.settings = self.settings, wanted
        self.num_reloads += 1
        for name in ("state", "metrics"):
            if getattr(before, name) != getattr(wanted, name):
                _LOG.warning("`%s` has changed; it is used after the next start", name)
        kept = {
            name
            for name, settings in wanted.cameras.items()
            if before.cameras.get(name) == settings
            and before.service == wanted.service
            and before.recordings == wanted.recordings
        }
        await self._stop_cameras([name for name in self.cameras if name not in kept])
        if before.recordings != wanted.recordings:
            await self._close_recording()
            if library is not None:
                self.recording = Recording(library, self._tell_recorded)
        elif library is not None:
            library.close()
        if before.service != wanted.service:
            assert self._client is not None
            client, self._client = self._client, client
        await client.close()
        await asyncio.to_thread(self.telling.change, prepared, _GRACE_S)
        await self._tell_runner(
            "RELOADED",
            added=sorted(set(wanted.cameras) - set(before.cameras)),
            removed=sorted(set(before.cameras) - set(wanted.cameras)),
            changed=sorted(set(wanted.cameras) & set(before.cameras) - kept),
        )
        for name, settings in wanted.cameras.items():
            if name not in kept:
                self._start(settings)

    # ---- parts ----

    def _start(self, settings: CameraSettings) -> None:
        clips = None
        if self.recording is not None and settings.record:
            assert self.settings.recordings is not None
            clips = Clips(settings.name, self.settings.recordings, self.recording.submit)

        def tell(records: Sequence[Record]) -> None:
            self.telling.tell(records, settings.sinks)

        assert self._client is not None
        camera = Camera(settings, self._client, tell, clips)
        self.cameras[settings.name] = camera
        self._tasks[settings.name] = asyncio.ensure_future(camera.run())

    async def _stop_cameras(self, names: list[str]) -> None:
        for name in names:
            self.cameras[name].stop()
        ended = await asyncio.gather(
            *(self._tasks.pop(name) for name in names), return_exceptions=True
        )
        for name, result in zip(names, ended, strict=True):
            del self.cameras[name]
            if isinstance(result, Exception):
                _LOG.error("camera %s", name, exc_info=result)

    def _open_library(self, settings: RunnerSettings) -> Library | None:
        if (wanted := settings.recordings) is None:
            return None
        return Library(
            wanted.folder,
            self._state / "recordings.sqlite",
            keep_days=wanted.keep_days,
            keep_bytes=wanted.keep_bytes,
        )

    async def _close_recording(self) -> None:
        recording, self.recording = self.recording, None
        if recording is not None:
            await asyncio.to_thread(recording.stop, 4 * _GRACE_S)

    def _tell_recorded(self, record: Record) -> None:
        camera = self.settings.cameras.get(str(record["camera"]))
        self.telling.tell([record], None if camera is None else camera.sinks)

    async def _tell_runner(self, what: str, **fields: object) -> None:
        await asyncio.to_thread(self.telling.tell, [runner_record(what, **fields)])

    async def _close(self) -> None:
        await self._stop_cameras(list(self.cameras))
        await self._close_recording()
        if self._client is not None:
            await self._client.close()
        await self._tell_runner("STOPPED")
        await asyncio.to_thread(self.telling.stop, _GRACE_S)


@contextlib.contextmanager
def _state_folder(folder: Path) -> Iterator[bool]:
    """The folder, ours alone; whether the run before ended in good order.

    Raises:
        SettingsError: it cannot be written, or another runner uses it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise SettingsError(f"the state folder {folder}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SettingsError(
                f"another runner uses {folder}; stop it, or give this one another `state`"
            ) from None
        marker = folder / "running"
        ended_well = not marker.exists()
        with contextlib.suppress(OSError):
            marker.write_text(f"{os.getpid()} {time.time():.0f}\n")
        yield ended_well
        marker.unlink(missing_ok=True)
    finally:
        os.close(lock)


def _open_client(settings: RunnerSettings) -> aio.Client:
    """A client for a file's service; connects with the first call."""
    service = settings.service
    return aio.Client(service.target, tls=service.tls, token=service.token)


def _signature(path: Path) -> tuple[int, ...]:
    """What changes when a file is written, or another takes its place."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return (found.st_mtime_ns, found.st_size, found.st_ino)
