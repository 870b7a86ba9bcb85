"""The page that Prometheus reads, and the dashboard and alerts that rest on it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import threading
import urllib.request
from pathlib import Path

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from agent.features import Generation
from agent.region_cache import CacheStats
from agent.streaming.session import Outcome
from deployments.observability import metrics_page
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.metrics_page import FrontEndCollector, MetricsPage, Sources
from deployments.observability.stage_meter import Served, Written
from deployments.process_resources import ProcessMemory

OBSERVABILITY = Path(__file__).parents[2] / "deployments" / "observability"


def sources(metrics: ServiceMetrics) -> Sources:
    return Sources(
        metrics=metrics,
        strain=lambda: 0.25,
        num_unauthenticated=lambda: 2,
        is_ready=lambda: True,
        is_draining=lambda: False,
        version="1",
        model="pocket",
    )


def busy_metrics() -> ServiceMetrics:
    metrics = ServiceMetrics()
    metrics.count_call(Outcome.ANSWERED)
    metrics.count_call(Outcome.FAILED)
    metrics.failures["INTERNAL"] += 1
    metrics.cache += CacheStats(hits=3, misses=1, read_bytes=5000)
    for number in range(3):
        with metrics.meters.language.call() as served:
            memory = ProcessMemory(f"host:{number}", 100 + number, 7)
            served(Served(None, queue_s=0.02, compute_s=0.3, num_together=4, memory=memory))
    generation = Generation(("a", "b", "c"), (1.0,) * 3, False, 10, 8, 2, 1)
    metrics.meters.writing.add(Written.of(generation))
    return metrics


async def read(page: MetricsPage) -> dict[tuple[str, str], float]:
    """Samples by name and by their labels' values, as a Prometheus reads them."""
    await page.opened
    url = f"http://127.0.0.1:{page.port}/metrics"
    text = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
    return {
        (sample.name, ",".join(sorted(sample.labels.values()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_numbers_arrive_under_their_names() -> None:
    page = MetricsPage(sources(busy_metrics()), host="127.0.0.1", port=0)
    try:
        found = await read(page)
    finally:
        await page.close()
    expected = {
        ("groundstream_frames_received_total", ""): 2.0,
        ("groundstream_frames_total", "answered"): 1.0,
        ("groundstream_frames_total", "failed"): 1.0,
        ("groundstream_frames_total", "superseded"): 0.0,
        ("groundstream_errors_total", "INTERNAL"): 1.0,
        ("groundstream_errors_total", "UNAUTHENTICATED"): 2.0,
        ("groundstream_stage_calls_total", "language"): 3.0,
        ("groundstream_stage_replicas", "language"): 3.0,
        ("groundstream_stage_rss_bytes", "language"): 102.0,
        ("groundstream_stage_device_bytes", "language"): 7.0,
        ("groundstream_stage_rss_bytes", "proposal"): 0.0,
        ("groundstream_stage_queue_seconds_sum", "language"): pytest.approx(0.06),
        ("groundstream_stage_compute_seconds_count", "language"): 3.0,
        ("groundstream_stage_compute_seconds_bucket", "0.25,language"): 0.0,
        ("groundstream_stage_compute_seconds_bucket", "0.5,language"): 3.0,
        ("groundstream_stage_batch_size_bucket", "4.0,language"): 3.0,
        ("groundstream_stage_batch_size_bucket", "2.0,language"): 0.0,
        ("groundstream_answer_passes_count", ""): 1.0,
        ("groundstream_answer_tokens_total", ""): 3.0,
        ("groundstream_drafted_tokens_total", ""): 1.0,
        ("groundstream_prompt_tokens_reused_total", ""): 8.0,
        ("groundstream_cache_hits_total", ""): 3.0,
        ("groundstream_cache_read_bytes_total", ""): 5000.0,
        ("groundstream_strain", ""): 0.25,
        ("groundstream_ready", ""): 1.0,
    }
    assert {name: found.get(name) for name in expected} == expected
    assert found["groundstream_front_end_rss_bytes", ""] > 1e6


async def test_the_page_waits_for_its_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        page = MetricsPage(sources(busy_metrics()), host="127.0.0.1", port=taken.getsockname()[1])
        await asyncio.sleep(0.1)
        assert not page.opened.done()
    try:
        async with asyncio.timeout(10):
            assert ("groundstream_ready", "") in await read(page)
    finally:
        await page.close()


async def test_no_port_no_page() -> None:
    page = MetricsPage(sources(busy_metrics()), host="127.0.0.1", port=None)
    await page.opened
    assert page.port is None
    await page.close()


def exported() -> set[str]:
    """Names of all samples, as queries use them."""
    return {
        sample.name
        for family in FrontEndCollector(sources(busy_metrics())).collect()
        for sample in family.samples
    }


def used_by(expressions: list[str]) -> set[str]:
    return set(re.findall(r"groundstream_\w+", " ".join(expressions)))


def test_the_dashboard_shows_metrics_that_exist() -> None:
    dashboard = json.loads((OBSERVABILITY / "dashboard.json").read_text())
    panels = dashboard["panels"]
    expressions = [target["expr"] for panel in panels for target in panel.get("targets", [])]
    assert len(panels) >= 10
    assert used_by(expressions) <= exported()
    assert len({panel["id"] for panel in panels}) == len(panels)


def test_alerts_watch_metrics_that_exist() -> None:
    (group,) = yaml.safe_load((OBSERVABILITY / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]:
        assert used_by([rule["expr"]]), rule["alert"]
        assert used_by([rule["expr"]]) <= exported(), rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert rule["annotations"]["summary"]
        assert "docs/" in rule["annotations"]["runbook"]


async def test_half_a_request_makes_no_thread_and_keeps_nobody_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_page, "_READ_S", 2.0)
    page = MetricsPage(sources(busy_metrics()), host="127.0.0.1", port=0)
    await page.opened
    try:
        await read(page)
        num_threads = threading.active_count()
        halves = [await asyncio.open_connection("127.0.0.1", page.port) for _ in range(200)]
        for _, writer in halves:
            writer.write(b"GET /metrics HTTP/1.1\r\n")
        assert (await read(page))["groundstream_ready", ""] == 1.0
        assert threading.active_count() <= num_threads + 1
        ends = [asyncio.wait_for(reader.read(), 10) for reader, _ in halves]
        assert await asyncio.gather(*ends) == [b""] * 200
        for _, writer in halves:
            writer.close()
    finally:
        await page.close()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"POST / HTTP/1.1\r\n\r\n", b"HTTP/1.1 405"),
        (b"HEAD / HTTP/1.1\r\n\r\n", b"HTTP/1.1 200"),
        (b"\xff\xfe\r\n\r\n", b"HTTP/1.1 405"),
        (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 10_000, b""),
    ],
)
async def test_other_requests(sent: bytes, said: bytes) -> None:
    page = MetricsPage(sources(busy_metrics()), host="127.0.0.1", port=0)
    await page.opened
    reader, writer = await asyncio.open_connection("127.0.0.1", page.port)
    writer.write(sent)
    with contextlib.suppress(ConnectionError):
        assert (await asyncio.wait_for(reader.read(), 10)).startswith(said)
    writer.close()
    await page.close()
