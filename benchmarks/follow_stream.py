"""A real service followed at camera rate: who is answered in time, and from how old evidence.

    python -m benchmarks.follow_stream moving        # the demo video, 30 frames a second
    python -m benchmarks.follow_stream still         # one picture for ten seconds
    python -m benchmarks.follow_stream slow-reader   # nobody reads for a minute

Starts a service (or takes `--target`), prints a table and, last, one JSON line. Frames are sent
when they are due, whatever comes back; latency runs from when a frame was due, so that a sender
held back does not look like a quick service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.frame import frame_from_rgb
from agent.interrupts import interruptible
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.events import KeyframeAnswer, StreamStats
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from groundstream.video.sources import open_source

_VIDEO = Path(__file__).parents[1] / "demo" / "scene.mp4"
_QUERIES = ("dog", "automobile")
_IN_TIME_MS = 50.0
_READY_S = 300.0
_MIB = 2**20


@dataclass
class Seen:
    """What a client saw of one stream."""

    latency_ms: list[float] = field(default_factory=list)
    """Due to answered, as the client received it."""
    age_ms: list[float] = field(default_factory=list)
    grounding_ms: list[float] = field(default_factory=list)
    stats: StreamStats | None = None
    num_due: int = 0
    memory_mib: list[float] = field(default_factory=list)


def pictures(mode: str) -> list[bytes]:
    """Encoded pictures: a second of the video and back, or its first picture."""
    source = iter(open_source(str(_VIDEO)))
    count = 1 if mode == "still" else 90
    chosen = [
        frame_from_rgb(p.rgb, jpeg_quality=90).encoded for p in itertools.islice(source, count)
    ]
    return chosen


async def due_frames(
    encoded: list[bytes], seen: Seen, *, fps: float, duration_s: float
) -> AsyncIterator[OutgoingFrame]:
    """Frames at a fixed rate; one whose time has passed is sent at once, none is left out."""
    forth_and_back: Iterator[bytes] = itertools.cycle(encoded + encoded[-2:0:-1])
    started_s = time.monotonic()
    started_ns = time.time_ns()
    for number in range(round(fps * duration_s)):
        due_s = number / fps
        await asyncio.sleep(max(0.0, started_s + due_s - time.monotonic()))
        seen.num_due += 1
        yield OutgoingFrame(next(forth_and_back), number, started_ns + round(due_s * 1e9))


async def follow(
    target: str, mode: str, service: ServiceProcess | None, *, fps: float, duration_s: float
) -> Seen:
    """One stream."""
    seen = Seen()
    async with aio.Client(target) as client:
        await client.wait_until_ready(_READY_S)
        frames = due_frames(pictures(mode), seen, fps=fps, duration_s=duration_s)
        async with client.watch(frames, _QUERIES, policy=StreamPolicy(ack_window=8)) as stream:
            async for event in stream:
                match event:
                    case FrameResult():
                        seen.latency_ms.append((time.time_ns() - event.capture_time_ns) / 1e6)
                        seen.age_ms += [
                            a.evidence_age_ms for a in event.results if a.status.value != "PENDING"
                        ]
                        if mode == "slow-reader" and len(seen.latency_ms) == 1:
                            await read_nothing(seen, service, duration_s)
                    case KeyframeAnswer(result=result):
                        spent_ns = result.answered_time_ns - result.received_time_ns
                        seen.grounding_ms.append(spent_ns / 1e6)
                    case StreamStats():
                        seen.stats = event
    return seen


async def read_nothing(seen: Seen, service: ServiceProcess | None, duration_s: float) -> None:
    """Note the service's memory every few seconds and ask for no event."""
    for _ in range(int(duration_s // 5)):
        await asyncio.sleep(5.0)
        if service is not None:
            memory = await asyncio.to_thread(service.memory)
            seen.memory_mib.append(memory.pss_bytes / _MIB)


def figures(seen: Seen) -> dict[str, object]:
    """What is shown and printed."""
    quantiles = {}
    measured = {
        "latency": seen.latency_ms,
        "evidence_age": seen.age_ms,
        "grounding": seen.grounding_ms,
    }
    for name, values in measured.items():
        for share in (50, 95, 99):
            value = float(np.percentile(values, share)) if values else None
            quantiles[f"{name}_p{share}_ms"] = None if value is None else round(value, 1)
    stats = seen.stats or StreamStats()
    in_time = sum(value <= _IN_TIME_MS for value in seen.latency_ms)
    return {
        "frames_due": seen.num_due,
        "frames_answered": len(seen.latency_ms),
        "share_within_50_ms": round(in_time / max(1, seen.num_due), 4),
        **quantiles,
        "model_answers": stats.activity.num_answers,
        "frames_encoded": stats.activity.num_encoded_frames,
        "superseded": stats.superseded,
        "books_balanced": stats.balanced,
        "memory_mib_first_last": [
            round(m, 1) for m in (*seen.memory_mib[:1], *seen.memory_mib[-1:])
        ],
    }


def main() -> None:
    """Measure one mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("mode", choices=("moving", "still", "slow-reader"))
    parser.add_argument("--target", help="a running service; default: start one")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--duration-s", type=float, help="default: 10, for slow-reader 60")
    options = parser.parse_args()
    duration_s = options.duration_s or (60.0 if options.mode == "slow-reader" else 10.0)
    with interruptible(), contextlib.ExitStack() as stack:
        service = None if options.target else stack.enter_context(ServiceProcess())
        target = options.target or (service.target if service else "")
        seen = asyncio.run(
            follow(target, options.mode, service, fps=options.fps, duration_s=duration_s)
        )
    result = figures(seen)
    table = Table("figure", "value", title=f"{options.mode}, {options.fps:g} frames a second")
    for name, value in result.items():
        table.add_row(name, str(value))
    Console().print(table)
    print(json.dumps({"benchmark": "follow_stream", "mode": options.mode, **result}))


if __name__ == "__main__":
    main()
