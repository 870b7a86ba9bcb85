"""What gRPC and Serve add to an answer, and where: stages of fixed 20 ms stand in for the model's.

    python -m benchmarks.shell

One stream in GROUND mode, one frame of 100 KB at a time, every frame new: each goes through all
stages. The shell is all that the client waits beyond the stand-ins' own time: gRPC, Serve, and the
front end's own work on the frame, but for the look at it, which happens meanwhile. Prints a table
and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.frame import frame_from_rgb
from agent.interrupts import interruptible
from benchmarks.driver import VIDEO, with_comment
from benchmarks.standin_stages import STAGE_S, changed_config
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.types import AnswerMode, FrameResult, OutgoingFrame, StageLoad, StreamPolicy
from groundstream.video.sources import open_source

GOAL_MS = 15.0
_FRAME_BYTES = 100_000
_READY_S = 300.0
_NUM_WARM_UP = 20
_TRANSPORT = "(of it gRPC and Serve: both ways and the calls)"


def noisy_picture(size_bytes: int) -> bytes:
    """A JPEG of the demo video with as much noise as makes it about so large."""
    rgb = next(iter(open_source(str(VIDEO)))).rgb
    noise = np.random.default_rng(0).normal(size=rgb.shape)
    encoded = b""
    for strength in range(0, 120, 2):
        noisy = np.clip(rgb + strength * noise, 0, 255).astype(np.uint8)
        encoded = frame_from_rgb(noisy, jpeg_quality=85).encoded
        if len(encoded) >= size_bytes:
            break
    return encoded


async def ping_pong(
    client: aio.Client, picture: bytes, *, num: int
) -> tuple[list[FrameResult], list[float]]:
    """One frame after the other; results and how long the client waited for each, ms."""
    ready = asyncio.Event()
    ready.set()

    async def frames() -> AsyncIterator[OutgoingFrame]:
        for number in range(num):
            await ready.wait()
            ready.clear()
            encoded = with_comment(picture, f"{time.time_ns()}")
            yield OutgoingFrame(encoded, number, capture_time_ns=time.time_ns())

    results, waited_ms = [], []
    policy = StreamPolicy(mode=AnswerMode.GROUND)
    async with client.watch(frames(), ["dog"], policy=policy) as stream:
        async for result in stream.results():
            waited_ms.append((time.time_ns() - result.capture_time_ns) / 1e6)
            results.append(result)
            ready.set()
    return results[_NUM_WARM_UP:], waited_ms[_NUM_WARM_UP:]


def where_it_goes(
    results: Sequence[FrameResult], waited_ms: Sequence[float], stages_ms: float
) -> dict[str, np.ndarray]:
    """Milliseconds of each frame by part; the parts of the shell add up to it."""
    there = np.array([(r.received_time_ns - r.capture_time_ns) / 1e6 for r in results])
    inside = np.array([(r.answered_time_ns - r.received_time_ns) / 1e6 for r in results])
    follow = np.array([r.timings.follow_ms for r in results])
    cache = np.array([r.timings.cache_ms for r in results])
    total = np.array([r.timings.total_ms for r in results])
    back, calls = np.asarray(waited_ms) - there - inside, total - cache - stages_ms
    return {
        "to the front end: write, gRPC, parse": there,
        "front end: header, digest, session, answer": inside - total,
        "cache look-up": cache,
        "calls of the stages and back": calls,
        "to the client: write, gRPC, parse": back,
        "shell": np.asarray(waited_ms) - stages_ms,
        _TRANSPORT: there + calls + back,
        "(look at the picture, meanwhile)": follow,
    }


def hop_ms(stage: StageLoad) -> float:
    """Mean time of a call of this stage that it neither waited for its turn nor computed."""
    done = max(1, stage.num_done)
    return (stage.call_ms - stage.queue_ms - stage.compute_ms) / done


async def measure(target: str, *, overlap: bool, num: int) -> dict[str, Any]:
    """The parts of the shell, p50 and p99, and each stage's hop."""
    picture = noisy_picture(_FRAME_BYTES)
    async with aio.Client(target) as client:
        await client.wait_until_ready(_READY_S)
        results, waited_ms = await ping_pong(client, picture, num=num + _NUM_WARM_UP)
        stages = (await client.stats()).stages
        unary_ms = []
        for _ in range(num):
            encoded, started_s = with_comment(picture, f"{time.time_ns()}"), time.perf_counter()
            await client.ground(encoded, ["dog"])
            unary_ms.append(1e3 * (time.perf_counter() - started_s))
    # Boxes and maps side by side, or one after the other; then the language stage.
    computed = {s.name: s.compute_ms / max(1, s.num_done) for s in stages}
    language_ms, boxes_ms = computed.pop("language"), computed.pop("proposal")
    maps_ms = max(computed.values())
    stages_ms = (max(boxes_ms, maps_ms) if overlap else boxes_ms + maps_ms) + language_ms
    parts = where_it_goes(results, waited_ms, stages_ms)
    return {
        "frame_bytes": len(picture),
        "stages_ms": round(stages_ms, 1),
        "parts_ms": {
            name: [round(float(np.percentile(part, share)), 2) for share in (50, 99)]
            for name, part in parts.items()
        },
        "shell_p50_ms": round(float(np.percentile(parts["shell"], 50)), 2),
        "grpc_and_serve_p50_ms": round(float(np.percentile(parts[_TRANSPORT], 50)), 2),
        "shell_p50_ms_of_ground_call": round(float(np.percentile(unary_ms, 50)) - stages_ms, 2),
        "hop_ms": {stage.name: round(hop_ms(stage), 2) for stage in stages},
    }


def main() -> None:
    """Both ways of calling the encoders."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--frames", type=int, default=200)
    options = parser.parse_args()
    figures = {}
    with interruptible():
        for name, overlap in (("overlapping", True), ("one after the other", False)):
            with contextlib.ExitStack() as stack:
                path = stack.enter_context(
                    changed_config(standin=True, stream={"overlap_stages": overlap})
                )
                service = stack.enter_context(ServiceProcess(["--config", str(path)]))
                figures[name] = asyncio.run(
                    measure(service.target, overlap=overlap, num=options.frames)
                )
    console = Console()
    for name, found in figures.items():
        title = f"stages {name}: {found['stages_ms']} ms; frame of {found['frame_bytes']} bytes"
        table = Table("part", "p50 ms", "p99 ms", title=title)
        for part, (p50, p99) in found["parts_ms"].items():
            table.add_row(part, str(p50), str(p99))
        table.add_row("shell of a Ground call", str(found["shell_p50_ms_of_ground_call"]), "")
        for stage, value in found["hop_ms"].items():
            table.add_row(f"hop to {stage} and back, mean", str(value), "")
        console.print(table)
    reached = {
        part: figures["overlapping"][f"{part}_p50_ms"] <= GOAL_MS
        for part in ("grpc_and_serve", "shell")
    }
    print(json.dumps({"benchmark": "shell", "stage_ms": 1e3 * STAGE_S, "goal_ms": GOAL_MS,
                      "reached": reached, **figures}))  # fmt: skip


if __name__ == "__main__":
    main()
