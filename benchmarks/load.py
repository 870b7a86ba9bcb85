"""The whole service under a fleet of cameras: who is answered in time, and where the time goes.

    python -m benchmarks.load                     # 1, 8, 16, 32, 64 streams, 30 s each
    python -m benchmarks.load 32 --duration-s 120

Starts a service for each number of streams (or takes `--target`), drives it open-loop
(benchmarks/driver.py), prints tables and, last, one JSON line. Goodput counts the answers that
reached the client within `--max-age-ms` of their frame's capture, as a share of all frames due.
The cameras' clients run beside the service on the same machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import psutil
from rich.console import Console
from rich.table import Table

from agent.interrupts import interruptible
from benchmarks.driver import Camera, Journal, camera_pictures, drive
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.events import adds_up
from groundstream.types import ServiceStats, StageLoad

_READY_S = 300.0
_SETTLE_S = 3.0
_SAMPLE_S = 5.0
_MIB = 2**20
_QUERIES = ("dog", "automobile")


@dataclass
class Resources:
    """What the service's processes used while the cameras ran."""

    rss_mib: list[float] = field(default_factory=list)
    by_process: list[dict[str, float]] = field(default_factory=list)
    """Resident MiB of each kind of process, at each sample."""
    pss_mib: list[float] = field(default_factory=list)
    cores: float = 0.0
    """Processors that the service kept busy, on average."""
    client_cores: float = 0.0


async def watch_resources(service: ServiceProcess | None, resources: Resources) -> None:
    """Note memory every few seconds, until cancelled."""
    while service is not None:
        memory = await asyncio.to_thread(service.memory)
        resources.rss_mib.append(memory.rss_bytes / _MIB)
        resources.pss_mib.append(memory.pss_bytes / _MIB)
        named = await asyncio.to_thread(service.rss_by_process)
        resources.by_process.append({name: size / _MIB for name, size in named.items()})
        await asyncio.sleep(_SAMPLE_S)


async def measure(
    target: str, service: ServiceProcess | None, camera: Camera, *, num_streams: int
) -> dict[str, Any]:
    """One fleet against a service; the figures of its table."""
    pictures = camera_pictures(60, every=max(1, round(30 / camera.fps)))
    resources = Resources()
    async with aio.Client(target) as client:
        await client.wait_until_ready(_READY_S)
        await asyncio.sleep(_SETTLE_S)
        before = await client.stats()
        watching = asyncio.create_task(watch_resources(service, resources))
        started_s, used_s = time.monotonic(), (_cpu_s(service), _own_cpu_s(), _idle_s())
        journals = await drive(target, camera, pictures, num_streams=num_streams)
        took_s = time.monotonic() - started_s
        resources.cores = (_cpu_s(service) - used_s[0]) / took_s
        resources.client_cores = (_own_cpu_s() - used_s[1]) / took_s
        idle_cores = (_idle_s() - used_s[2]) / took_s
        watching.cancel()
        after = await client.stats()
    return {
        "streams": num_streams,
        **seen_by_clients(journals, camera),
        **books_of(journals, before, after),
        "stages": stage_figures(before.stages, after.stages, took_s),
        "service_cores": round(resources.cores, 2),
        "client_cores": round(resources.client_cores, 2),
        "cores_left_by_neighbours": round(resources.cores + resources.client_cores + idle_cores, 2),
        "rss_mib": [round(value) for value in resources.rss_mib],
        "pss_mib": [round(value) for value in resources.pss_mib],
        "growth_mib": growth(resources.by_process),
    }


def seen_by_clients(journals: Sequence[Journal], camera: Camera) -> dict[str, Any]:
    """Goodput, ages and where the age of a result was spent."""
    ages = _joined(journal.age_ms for journal in journals)
    queue = _joined(journal.queue_ms for journal in journals)
    follow = _joined(journal.follow_ms for journal in journals)
    num_due = sum(journal.num_due for journal in journals)
    in_time = [sum(age <= camera.max_age_ms for age in journal.age_ms) for journal in journals]
    return {
        "frames_due": num_due,
        "results": len(ages),
        "goodput": round(sum(in_time) / max(1, num_due), 4),
        "goodput_of_worst_stream": round(
            min(good / max(1, j.num_due) for good, j in zip(in_time, journals, strict=True)), 4
        ),
        **_quantiles("age", ages),
        **_quantiles("queue", queue),
        **_quantiles("follow", follow),
        **_quantiles("shell", ages - queue - follow),
        **_quantiles("there", _joined(journal.there_ms for journal in journals)),
        **_quantiles("back", _joined(journal.back_ms for journal in journals)),
        **_quantiles("evidence_age", _joined(j.evidence_age_ms for j in journals)),
        **_quantiles("keyframe", _joined(j.keyframe_ms for j in journals)),
        "keyframes_per_stream_min_max": [
            min(len(j.keyframe_ms) for j in journals), max(len(j.keyframe_ms) for j in journals)
        ],
        "max_age_ms": camera.max_age_ms,
    }  # fmt: skip


def growth(samples: Sequence[dict[str, float]]) -> dict[str, list[int]]:
    """Resident MiB of each kind of process that grew: first, in the middle, last."""
    if not samples:
        return {}
    chosen = (samples[0], samples[len(samples) // 2], samples[-1])
    return {
        name: [round(sample.get(name, 0.0)) for sample in chosen]
        for name in samples[-1]
        if samples[-1][name] - samples[0].get(name, 0.0) >= 1.0
    }


def books_of(
    journals: Sequence[Journal], before: ServiceStats, after: ServiceStats
) -> dict[str, Any]:
    """Where all frames went, by the streams' own books and by the replica's."""
    names = ("received", "answered", "tracked_only", "superseded", "expired", "rejected", "failed")
    total = {name: sum(getattr(j.books, name) for j in journals) for name in names}
    errors: dict[str, int] = {}
    for journal in journals:
        for name, count in journal.errors.items():
            errors[name] = errors.get(name, 0) + count
    return {
        "books": total,
        "errors": errors,
        "every_frame_accounted_for": all(
            j.ended
            and adds_up(j.books)
            and j.books.in_flight == 0
            and j.books.received == j.num_due
            and not j.unbalanced
            for j in journals
        )
        and after.frames_received - before.frames_received == total["received"],
        "streams_that_did_not_end": sum(not j.ended for j in journals),
        "most_in_flight_of_a_stream": max(j.most_in_flight for j in journals),
    }


def stage_figures(
    before: Sequence[StageLoad], after: Sequence[StageLoad], took_s: float
) -> dict[str, dict[str, float]]:
    """Per stage, on average: how long a call waited there, computed and what else it took.

    The rest is the way there and back; an encoder also waits for the boxes.
    """
    earlier = {stage.name: stage for stage in before}
    figures = {}
    for stage in after:
        old = earlier.get(stage.name, StageLoad(stage.name))
        calls = max(1, stage.num_done - old.num_done)
        waited, computed, whole = (
            (getattr(stage, name) - getattr(old, name)) / calls
            for name in ("queue_ms", "compute_ms", "call_ms")
        )
        figures[stage.name] = {
            "calls_per_s": round((stage.num_done - old.num_done) / took_s, 2),
            "queue_ms": round(waited, 1),
            "compute_ms": round(computed, 1),
            "rest_ms": round(max(0.0, whole - waited - computed), 1),
            "refused": stage.num_refused - old.num_refused,
            "most_at_once": stage.most_at_once,
        }
    return figures


def show(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    """Two tables: what the clients saw, and the stages behind it."""
    seen = Table("figure", *(f"{row['streams']} streams" for row in rows), title="seen by clients")
    for name in rows[0]:
        if name not in ("streams", "stages", "rss_mib", "pss_mib", "books"):
            seen.add_row(name, *(str(row[name]) for row in rows))
    for name in ("rss_mib", "pss_mib"):
        ends = (f"{row[name][0]} .. {row[name][-1]}" if row[name] else "-" for row in rows)
        seen.add_row(f"{name} first .. last", *ends)
    console.print(seen)
    columns = ("calls_per_s", "queue_ms", "compute_ms", "rest_ms", "refused", "most_at_once")
    stages = Table("streams", "stage", *columns, title="behind key frames, mean per call")
    for row in rows:
        for name, figures in row["stages"].items():
            stages.add_row(str(row["streams"]), name, *(str(figures[c]) for c in columns))
    console.print(stages)


def _joined(parts: Iterable[Sequence[float]]) -> np.ndarray:
    return np.concatenate([np.asarray(part, dtype=float) for part in parts])


def _quantiles(name: str, values: np.ndarray) -> dict[str, float | None]:
    shares = (50, 99)
    if not len(values):
        return {f"{name}_p{share}_ms": None for share in shares}
    return {f"{name}_p{s}_ms": round(float(np.percentile(values, s)), 1) for s in shares}


def _own_cpu_s() -> float:
    times = psutil.Process().cpu_times()
    return float(times.user + times.system)


def _idle_s() -> float:
    return float(psutil.cpu_times().idle)


def _cpu_s(service: ServiceProcess | None) -> float:
    return 0.0 if service is None else service.cpu_s()


def main() -> None:
    """Measure a list of fleets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("streams", type=int, nargs="*", default=[1, 8, 16, 32, 64])
    parser.add_argument("--target", help="a running service; default: start one per row")
    parser.add_argument("--fps", type=float, default=10.0)
    parser.add_argument("--duration-s", type=float, default=30.0)
    parser.add_argument("--max-age-ms", type=float, default=500.0)
    parser.add_argument("--config", help="Serve config file of the service that is started")
    options = parser.parse_args()
    camera = Camera(options.fps, options.duration_s, _QUERIES, options.max_age_ms)
    arguments = ["--config", options.config] if options.config else []
    rows = []
    with interruptible():
        for num_streams in options.streams:
            with contextlib.ExitStack() as stack:
                service = None
                if options.target is None:
                    service = stack.enter_context(ServiceProcess(arguments))
                target = options.target or (service.target if service else "")
                rows.append(asyncio.run(measure(target, service, camera, num_streams=num_streams)))
    show(Console(), rows)
    print(json.dumps({"benchmark": "load", "fps": camera.fps, "rows": rows}))


if __name__ == "__main__":
    main()
