"""The runner's figures as a page for Prometheus, read when it is asked for."""

from __future__ import annotations

import contextlib
import importlib.util
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING

from groundstream.cameras.camera_books import CameraBooks
from groundstream.errors import SettingsError

if TYPE_CHECKING:
    from prometheus_client import Metric

    from groundstream.cameras.runner import Runner

_PREFIX = "groundstream_cameras_"


@contextlib.contextmanager
def serve_metrics(runner: Runner, host: str, port: int) -> Iterator[None]:
    """A page on http://HOST:PORT/metrics while the context lasts.

    Raises:
        SettingsError: prometheus-client is missing, or the address cannot be listened on.
    """
    if importlib.util.find_spec("prometheus_client") is None:
        raise SettingsError(
            "`metrics` needs prometheus-client; pip install 'groundstream-client[cameras]'"
        )
    from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    registry.register(_Figures(runner))
    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise SettingsError(f"metrics: {host}:{port}: {error.strerror}") from None
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Figures:
    """Makes the figures of what there is at the moment."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner

    def describe(self) -> list[Metric]:
        """None known in advance: cameras come and go."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Called by the page, in a thread of its own."""
        yield from self._of_cameras()
        yield from self._of_sinks()
        yield from self._of_recordings()
        yield _gauge("file_sound", "0 while the file says something wrong.").of(
            (), float(self._runner.is_file_sound)
        )
        yield _counter("reloads", "Changes of the file that were taken over.").of(
            (), self._runner.num_reloads
        )

    def _of_cameras(self) -> Iterator[Metric]:
        cameras = list(self._runner.cameras.items())
        books = [(name, camera.books) for name, camera in cameras]
        for field in fields(CameraBooks):
            family = _counter(field.name, f"See `{field.name}` in the books.", "camera")
            for name, counts in books:
                family.of((name,), getattr(counts, field.name))
            yield family.metric
        in_flight = _gauge("in_flight", "Pictures sent and not accounted for yet.", "camera")
        frames = _gauge("last_frame_seconds", "When a picture came last.", "camera")
        results = _gauge("last_result_seconds", "When an answer came last.", "camera")
        events = _counter("events", "Events told.", "camera", "kind")
        for (name, camera), (_, counts) in zip(cameras, books, strict=True):
            in_flight.of((name,), counts.in_flight)
            frames.of((name,), camera.last_frame_s)
            results.of((name,), camera.last_result_s)
            for kind, number in list(camera.events.items()):
                events.of((name, kind), number)
        yield from (in_flight.metric, frames.metric, results.metric, events.metric)

    def _of_sinks(self) -> Iterator[Metric]:
        records = _counter("records", "What became of records.", "sink", "outcome")
        waiting = _gauge("records_waiting", "Records still to be sent.", "sink")
        unsaved = _gauge("records_unsaved", "Of these, those that no disk holds.", "sink")
        failures = _counter("sink_failures", "Attempts that delivered nothing.", "sink")
        away = _gauge("sink_away", "1 while the receiver takes nothing.", "sink")
        for name, told in list(self._runner.telling.told.items()):
            books = told.outbox.books
            for outcome in ("accepted", "delivered", "refused", "overflowed"):
                records.of((name, outcome), getattr(books, outcome))
            waiting.of((name,), books.waiting)
            unsaved.of((name,), told.outbox.num_unsaved)
            failures.of((name,), told.delivery.num_failures)
            away.of((name,), float(told.delivery.is_away))
        yield from (
            records.metric, waiting.metric, unsaved.metric, failures.metric, away.metric,
        )  # fmt: skip

    def _of_recordings(self) -> Iterator[Metric]:
        if (recording := self._runner.recording) is None:
            return
        books = recording.library.books
        counts = _counter("recordings", "What became of snapshots and clips.", "outcome")
        counts.of(("written",), books.num_written)
        counts.of(("failed",), books.num_failed)
        counts.of(("dropped",), recording.num_dropped)
        counts.of(("removed",), books.num_removed)
        counts.of(("changed",), books.num_changed)
        yield counts.metric
        yield _gauge("recordings_files", "Files that are kept.").of((), books.num_files)
        yield _gauge("recordings_bytes", "Their size.").of((), books.num_bytes)


class _Family:
    """One metric that is being filled."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric

    def of(self, labels: tuple[str, ...], value: float) -> Metric:
        """Add a value."""
        self.metric.add_metric(labels, value)  # type: ignore[attr-defined]
        return self.metric


def _counter(name: str, words: str, *labels: str) -> _Family:
    from prometheus_client.core import CounterMetricFamily

    return _Family(CounterMetricFamily(_PREFIX + name, words, labels=labels))


def _gauge(name: str, words: str, *labels: str) -> _Family:
    from prometheus_client.core import GaugeMetricFamily

    return _Family(GaugeMetricFamily(_PREFIX + name, words, labels=labels))
