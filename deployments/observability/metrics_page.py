"""The page that Prometheus reads: one front-end replica's numbers under their public names.

Everything on it is a count or a size; no label holds what a client sent, and the values of every
label are known beforehand. Numbers are gathered on the front end's event loop, where they change,
and written in a thread. A connection has a few seconds. Knows no streams and no Ray.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from agent.region_cache import CacheStats
from deployments.admission import EvictingLimit
from deployments.observability.histogram import Histogram
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.stage_meter import StageMeter, WritingMeter
from deployments.process_resources import MemoryReader
from groundstream.errors import Overloaded

_logger = logging.getLogger(__name__)
_MAX_READERS = 16
_MAX_HEAD_BYTES = 16_384
_READ_S = 5.0
"""From connecting to the last byte of the page."""
_PORT_RETRY_S = 2.0
_PREFIX = "groundstream_"


@dataclasses.dataclass(frozen=True)
class Sources:
    """Where a front end's numbers come from."""

    metrics: ServiceMetrics
    strain: Callable[[], float]
    """0..1, see `deployments.streams.scheduler`."""
    num_unauthenticated: Callable[[], int]
    is_ready: Callable[[], bool]
    is_draining: Callable[[], bool]
    version: str
    model: str


class FrontEndCollector(Collector):
    """Turns the numbers into Prometheus' families."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources
        self._memory = MemoryReader()

    def collect(self) -> Iterator[Metric]:
        """All families; called on the thread that owns the numbers, see `MetricsPage`."""
        sources = self._sources
        yield _gauge("info", "What runs here", 1.0, version=sources.version, model=sources.model)
        yield _gauge("ready", "1 once a frame has gone all the way", sources.is_ready())
        yield _gauge("draining", "1 while the replica goes away", sources.is_draining())
        memory = self._memory.read()
        yield _gauge("front_end_rss_bytes", "Resident memory", memory.rss_bytes)
        yield _gauge("strain", "Share of recent frames nobody could look at", sources.strain())
        yield from self._frames()
        yield from _stages(tuple(sources.metrics.meters))
        yield from _writing(sources.metrics.meters.writing)
        yield from _cache(sources.metrics.cache)

    def _frames(self) -> Iterator[Metric]:
        totals = dataclasses.asdict(self._sources.metrics.totals())
        yield _gauge("uptime_seconds", "Since the replica started", totals.pop("uptime_s"))
        yield _gauge("open_streams", "Streams open now", totals.pop("open_streams"))
        yield _gauge("frames_in_flight", "Unfinished frames", totals.pop("frames_in_flight"))
        received = totals.pop("frames_received")
        yield _counter("frames_received", "Frames and calls that arrived", received)
        outcomes = CounterMetricFamily(
            f"{_PREFIX}frames", "Frames and calls by how they ended", labels=["outcome"]
        )
        for name, value in totals.items():
            outcomes.add_metric([name.removeprefix("frames_")], value)
        yield outcomes
        errors = CounterMetricFamily(
            f"{_PREFIX}errors", "Errors told to clients, by ErrorCode", labels=["code"]
        )
        failures = dict(self._sources.metrics.failures)
        failures["UNAUTHENTICATED"] = (
            failures.get("UNAUTHENTICATED", 0) + self._sources.num_unauthenticated()
        )
        for code, value in failures.items():
            errors.add_metric([code], value)
        yield errors


class MetricsPage:
    """Listens; several front ends of one machine take the port one after the other."""

    def __init__(self, sources: Sources, *, host: str, port: int | None) -> None:
        """Start to listen, on the running event loop, which is where the numbers change.

        Args:
            sources: the numbers.
            host: address.
            port: 0: any, see `port`; None: there is no page.
        """
        self.port = port
        """Where it listens, once `opened` is done."""
        self._host = host
        self._collector = FrontEndCollector(sources)
        self._readers = EvictingLimit(_MAX_READERS, "connections to the metrics page are open")
        self._server: asyncio.Server | None = None
        self.opened = asyncio.create_task(self._open())

    async def close(self) -> None:
        """Stop listening."""
        self.opened.cancel()
        await asyncio.gather(self.opened, return_exceptions=True)
        if self._server is not None:
            self._server.close()

    async def _open(self) -> None:
        """As soon as the port is free: during an update two front ends share a machine."""
        said = False
        while self.port is not None and self._server is None:
            try:
                self._server = await asyncio.start_server(
                    self._read_by, self._host, self.port, limit=_MAX_HEAD_BYTES
                )
                self.port = self._server.sockets[0].getsockname()[1]
            except OSError as error:
                if not said:
                    _logger.warning(
                        "no metrics on %s:%d yet (%s); trying again every %.0f s",
                        self._host, self.port, error.strerror, _PORT_RETRY_S,
                    )  # fmt: skip
                said = True
                await asyncio.sleep(_PORT_RETRY_S)

    async def _read_by(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection: one request, a few seconds, and no other waits for a slow one."""
        peer = writer.get_extra_info("peername")
        whose = str(peer[0]) if peer else ""
        with contextlib.suppress(OSError, TimeoutError, Overloaded, asyncio.IncompleteReadError):
            try:
                async with asyncio.timeout(_READ_S), self._readers.taken((whose,)):
                    await self._answer(reader, writer)
            except (asyncio.LimitOverrunError, UnicodeDecodeError):
                pass
            finally:
                writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        method = head.split(" ", 1)[0]
        if method not in ("GET", "HEAD"):
            writer.write(_http("405 Method Not Allowed", "text/plain", b""))
        else:
            encode, kind = choose_encoder(_accepted(head))
            gathered = _Gathered(list(self._collector.collect()))
            page = await asyncio.to_thread(encode, gathered)
            writer.write(_http("200 OK", kind, page if method == "GET" else b""))
        await writer.drain()


class _Gathered(CollectorRegistry):
    """Numbers of one moment, to be written elsewhere."""

    def __init__(self, families: list[Metric]) -> None:
        super().__init__(auto_describe=False)
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """As gathered."""
        return iter(self._families)


def _accepted(head: str) -> str:
    """The value of the header `Accept`."""
    for line in head.split("\r\n")[1:]:
        name, _, value = line.partition(":")
        if name.strip().lower() == "accept":
            return value.strip()
    return ""


def _http(status: str, kind: str, body: bytes) -> bytes:
    lines = (
        f"HTTP/1.1 {status}", f"Content-Type: {kind}", f"Content-Length: {len(body)}",
        "Connection: close", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode("latin-1") + body


def _stages(meters: Sequence[StageMeter]) -> Iterator[Metric]:
    numbers: tuple[tuple[type[Any], str, str, Callable[[StageMeter], float]], ...] = (
        (CounterMetricFamily, "calls", "Calls answered", lambda m: m.counts.num_done),
        (CounterMetricFamily, "refused", "Calls refused as hopeless or for a full queue",
         lambda m: m.counts.num_refused),
        (CounterMetricFamily, "call_seconds", "Waited for answers, with the way there and back",
         lambda m: m.counts.call_s),
        (GaugeMetricFamily, "in_flight", "Calls under way", lambda m: m.counts.in_flight),
        (GaugeMetricFamily, "expected_seconds", "What one more call would take",
         StageMeter.expected_s),
        (GaugeMetricFamily, "replicas", "Replicas that answered in the last minute",
         lambda m: len(m.replicas())),
        (GaugeMetricFamily, "rss_bytes", "Resident memory of the largest replica",
         lambda m: max((memory.rss_bytes for memory in m.replicas()), default=0)),
        (GaugeMetricFamily, "device_bytes", "Device memory of the largest replica",
         lambda m: max((memory.device_bytes for memory in m.replicas()), default=0)),
    )  # fmt: skip
    for kind, name, text, number in numbers:
        family = kind(f"{_PREFIX}stage_{name}", text, labels=["stage"])
        for meter in meters:
            family.add_metric([meter.name], number(meter))
        yield family
    spreads: tuple[tuple[str, str, Callable[[StageMeter], Histogram]], ...] = (
        ("queue_seconds", "In the line before the stage", lambda m: m.queue_times),
        ("compute_seconds", "Computing", lambda m: m.compute_times),
        ("batch_size", "Calls computed together", lambda m: m.batches),
    )
    for name, text, spread in spreads:
        family = HistogramMetricFamily(f"{_PREFIX}stage_{name}", text, labels=["stage"])
        for meter in meters:
            family.add_metric([meter.name], *_buckets(spread(meter)))
        yield family


def _writing(writing: WritingMeter) -> Iterator[Metric]:
    family = HistogramMetricFamily(f"{_PREFIX}answer_passes", "Forward passes of one answer")
    family.add_metric([], *_buckets(writing.passes))
    yield family
    for name, text, value in (
        ("answer_tokens", "Tokens written", writing.num_tokens),
        ("drafted_tokens", "Tokens a draft had right", writing.num_drafted_tokens),
        ("prompt_tokens", "Tokens of prompts", writing.num_prompt_tokens),
        (
            "prompt_tokens_reused",
            "Tokens of prompts whose keys and values were there already",
            writing.num_prompt_tokens_reused,
        ),
        ("truncated_answers", "Answers that met their token limit", writing.num_truncated),
    ):
        yield _counter(name, text, value)


def _cache(stats: CacheStats) -> Iterator[Metric]:
    for name, text, value in (
        ("hits", "Frames whose features were there", stats.hits),
        ("misses", "Frames whose features were not", stats.misses),
        ("stored", "Entries written", stats.stored),
        ("errors", "Calls that failed or timed out", stats.errors),
        ("corrupt", "Entries whose check failed", stats.corrupt),
        ("skipped", "Calls not made while the cache was down", stats.skipped),
        ("read_bytes", "Of entries that were found", stats.read_bytes),
        ("written_bytes", "Of entries that were written", stats.written_bytes),
    ):
        yield _counter(f"cache_{name}", text, value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, text, value=value)


def _gauge(name: str, text: str, value: float, **labels: str) -> Metric:
    family = GaugeMetricFamily(_PREFIX + name, text, labels=list(labels))
    family.add_metric(list(labels.values()), float(value))
    return family


def _buckets(spread: Histogram) -> tuple[list[tuple[str, float]], float]:
    buckets = [
        ("+Inf" if bound == float("inf") else str(bound), float(count))
        for bound, count in spread.cumulative()
    ]
    return buckets, spread.total
