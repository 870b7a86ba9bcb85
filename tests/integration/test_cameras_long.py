"""Sixteen cameras at ten pictures a second, while all that they need is killed and comes back.

Runs where CAMERAS_MINUTES says for how long (`make test-long`: two; memory is judged from eight
on). Its last line says what was measured.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import yaml

from tests.camera_runs import (
    RunnerProcess,
    check_numbers,
    check_story,
    events_of,
    figures,
    light_service,
    lines,
    of_what,
    write_light,
)
from tests.integration.test_sources import Camera
from tests.receivers import Broker, WebReceiver, free_port

_MINUTES = float(os.environ.get("CAMERAS_MINUTES", "0"))
_CAMERAS = 16
_FPS = 10
_SETTLED_S = min(240.0, 30.0 * _MINUTES)
"""Memory counts from here on. Detectors remember 2,048 frames, which takes 205 seconds to fill."""
_SLOPE_MINUTES = 8.0
"""A run that is shorter says nothing about the slope."""
_AWAY_S = 5.0
_MAX_SLOPE_MB_PER_MIN = 2.0
_MAX_MEMORY_MB = 500.0

pytestmark = [
    pytest.mark.slow,
    pytest.mark.integration,
    pytest.mark.skipif(not _MINUTES, reason="CAMERAS_MINUTES says nothing"),
    pytest.mark.timeout(60.0 * _MINUTES + 600.0),
]


@contextlib.asynccontextmanager
async def switched(port: int) -> AsyncIterator[list[int]]:
    """A service that is killed for a while in the middle of each third of the time."""
    kills: list[int] = []

    async def keep() -> None:
        while True:
            async with light_service(port):
                await asyncio.sleep(60.0 * _MINUTES / 3)
                kills.append(time.time_ns())
            await asyncio.sleep(_AWAY_S)

    task = asyncio.ensure_future(keep())
    try:
        yield kills
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def slope(samples: list[tuple[float, float]]) -> float:
    """Megabytes a minute, by least squares."""
    times = [moment / 60.0 for moment, _ in samples]
    return statistics.linear_regression(times, [memory for _, memory in samples]).slope


async def test_sixteen_cameras(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("paho.mqtt.client")
    names = [f"camera-{number}" for number in range(_CAMERAS)]
    videos = [
        write_light(tmp_path / f"{name}.mp4", seed=number, seconds=8.0 + number % 3)
        for number, name in enumerate(names)
    ]
    rtsp = Camera(videos[0])
    rtsp.start()
    web, broker = WebReceiver().start(), Broker().start()
    port, metrics_port = free_port(), free_port()
    path = tmp_path / "cameras.yaml"
    content = {
        "service": {"target": f"127.0.0.1:{port}"},
        "metrics": f"127.0.0.1:{metrics_port}",
        "recordings": {
            "folder": "kept", "before_s": 1, "after_s": 1, "kinds": ["APPEARED"],
            "keep_gigabytes": 0.002,
        },
        "cameras": {
            name: {
                "source": str(video) if number else rtsp.url(), "queries": ["light"],
                "repeat": True, "fps": _FPS, "events": {"appear_s": 0.2, "leave_s": 0.5},
            }
            for number, (name, video) in enumerate(zip(names, videos, strict=True))
        },
        "sinks": {
            "log": {"type": "jsonl", "path": "events.jsonl"},
            "office": {"type": "webhook", "url": web.url, "timeout_s": 2},
            "home": {"type": "mqtt", "host": "127.0.0.1", "port": broker.port, "timeout_s": 2},
        },
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    runner = RunnerProcess(path)
    samples: list[tuple[float, float]] = []
    found: dict[str, float] = {}
    try:
        async with switched(port) as kills:
            runner.start()
            began_s = time.monotonic()
            # When what is taken away, and given back _AWAY_S later.
            ways = [(0.25, rtsp.kill, rtsp.start), (0.45, web.stop, web.start)]
            ways += [(0.7, broker.stop, broker.start)]
            pending = [(60.0 * _MINUTES * share, stop, start) for share, stop, start in ways]
            while (passed_s := time.monotonic() - began_s) < 60.0 * _MINUTES:
                assert not runner.has_ended(), runner.log[-3000:]
                if passed_s > _SETTLED_S:
                    samples.append((passed_s, runner.memory_mb))
                if pending and passed_s >= pending[0][0]:
                    _, stop, start = pending.pop(0)
                    await asyncio.to_thread(stop)
                    await asyncio.sleep(_AWAY_S)
                    await asyncio.to_thread(start)
                await asyncio.sleep(1.0)
            found = await asyncio.to_thread(figures, metrics_port)
            status = await asyncio.to_thread(runner.end, 120.0)
        assert status == 0, runner.log[-3000:]
    finally:
        runner.kill()
        rtsp.kill()
        web.stop()
        broker.stop()
    told = lines(tmp_path / "events.jsonl")
    everything = {record["id"] for record in told}
    for records in (told, web.records, broker.records):
        check_numbers(records)
        check_story(records)
        assert {record["id"] for record in records} == everything
    books = {
        record["camera"]: record["books"]
        for record in of_what(told, "STOPPED")
        if record["type"] == "camera"
    }
    assert set(books) == set(names) == set(events_of(told))
    assert all(one["closed"] for one in books.values()), books
    assert len(kills) >= 2
    assert all(one["service_lost"] >= 2 for one in books.values())
    assert books[names[0]]["source_lost"] >= 1
    assert of_what(told, "SOURCE_LOST")
    size = sum(file.stat().st_size for file in (tmp_path / "kept").rglob("*.*"))
    assert size <= 2_000_000
    measured = {
        "minutes": _MINUTES,
        "cameras": _CAMERAS,
        "pictures": sum(one["pictures"] for one in books.values()),
        "answered": sum(one["answered"] for one in books.values()),
        "superseded": sum(one["superseded"] for one in books.values()),
        "unsent": sum(one["unsent"] for one in books.values()),
        "lost": sum(one["lost"] for one in books.values()),
        "events": sum(len(events) for events in events_of(told).values()),
        "records": len(everything),
        "duplicates": [
            len(records) - len(everything) for records in (told, web.records, broker.records)
        ],
        "clips": sum(r["type"] == "recording" and "bytes" in r for r in told),
        "recording_failures": sum(r["type"] == "recording" and "error" in r for r in told),
        "memory_mb": [round(memory, 1) for _, memory in samples[:: max(1, len(samples) // 10)]],
        "slope_mb_per_min": round(slope(samples), 3),
        "cpu_s": found["process_cpu_seconds_total"],
    }
    with capsys.disabled():
        print(json.dumps(measured), flush=True)
    assert max(memory for _, memory in samples) < _MAX_MEMORY_MB
    if _MINUTES >= _SLOPE_MINUTES:
        assert slope(samples) < _MAX_SLOPE_MB_PER_MIN
