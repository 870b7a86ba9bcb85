"""What a robot sees over a network: capture to box by delay, loss, mode and form of the video.

    sudo python -m benchmarks.robot_network

Starts a service and a client in a network namespace of their own, joined by `lossy_link`, and
sends the demo's street video at its own pace, as JPEG of quality 90 and in packets of H.264, in
FOLLOW and in GROUND mode. Latency runs from when a picture was taken to when the client has its
boxes; in GROUND mode only frames that the model saw are answered, the rest is superseded. The delay
is that of each direction, the loss that of every packet of at most 1500 bytes. Prints a table and
one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import sys
import time
from dataclasses import dataclass, field

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.interrupts import interruptible
from benchmarks.lossy_link import FAR, NEAR, Condition, LossyLink, lossy_link
from benchmarks.video_wire import QUERIES, READY_S, VIDEO, Item, due_items, ways
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.events import StreamError, StreamStats
from groundstream.types import AnswerMode, FrameResult, StreamPolicy

_CONDITIONS = (
    Condition(),
    Condition(20.0),
    Condition(20.0, 0.01),
    Condition(50.0, 0.02),
)
_FPS = 10.0
"""The demo's own pace."""
_INSIDE = "GROUNDSTREAM_ROBOT_NETWORK"


@dataclass
class Seen:
    """What came of one stream after another under equal conditions."""

    latency_ms: list[float] = field(default_factory=list)
    age_ms: list[float] = field(default_factory=list)
    num_due: int = 0
    num_errors: int = 0
    """Frames refused or failed."""
    num_dropped: int = 0
    num_packets: int = 0


async def stream(client: aio.Client, items: list[Item], mode: AnswerMode, seen: Seen) -> None:
    """One stream of the whole video."""
    frames = due_items(items, fps=_FPS, rounds=1)
    async with client.watch(frames, QUERIES, policy=StreamPolicy(mode=mode)) as watched:
        async for event in watched:
            match event:
                case FrameResult():
                    seen.latency_ms.append((time.time_ns() - event.capture_time_ns) / 1e6)
                    found = [one for answer in event.results for one in answer.detections]
                    seen.age_ms += [one.evidence_age_ms for one in found]
                case StreamError():
                    seen.num_errors += 1
                case StreamStats(ended=True):
                    assert event.balanced
                    seen.num_due += event.received


async def measure(link: LossyLink, target: str, rounds: int) -> list[dict[str, object]]:
    """All rows, each measured in turns with the others."""
    sent = ways(VIDEO)
    cases = [
        (mode, name, condition)
        for mode in (AnswerMode.FOLLOW, AnswerMode.GROUND)
        for name in sent
        for condition in _CONDITIONS
    ]
    seen = [Seen() for _ in cases]
    async with aio.Client(target) as client:
        await client.wait_until_ready(READY_S)
        for mode, name, _ in cases[:: len(_CONDITIONS)]:  # Nobody pays for what happens once.
            await stream(client, sent[name].items, mode, Seen())
        for _ in range(rounds):
            for (mode, name, condition), one in zip(cases, seen, strict=True):
                link.condition = condition
                passed, dropped = link.num_passed, link.num_dropped
                await stream(client, sent[name].items, mode, one)
                one.num_packets += link.num_passed - passed + link.num_dropped - dropped
                one.num_dropped += link.num_dropped - dropped
                print(f"{mode.value} {name} {condition}: {_figures(one)}", file=sys.stderr)
    return [
        {"mode": mode.value, "sent": name, "delay_ms": condition.delay_ms, "loss": condition.loss,
         **_figures(one)}
        for (mode, name, condition), one in zip(cases, seen, strict=True)
    ]  # fmt: skip


def _figures(seen: Seen) -> dict[str, object]:
    return {
        **{
            f"latency_p{share}_ms": round(float(np.percentile(seen.latency_ms, share)), 1)
            for share in (50, 95, 99)
        },
        "box_age_p50_ms": round(float(np.median(seen.age_ms)), 1) if seen.age_ms else None,
        "frames_due": seen.num_due,
        "frames_answered": len(seen.latency_ms),
        "errors": seen.num_errors,
        "packets_dropped": round(seen.num_dropped / max(1, seen.num_packets), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2, help="turns of each row")
    options = parser.parse_args()
    if _INSIDE not in os.environ:
        # Ray and gRPC see nothing but this namespace, and leave nothing in ours.
        own = ["-m", "benchmarks.robot_network", *sys.argv[1:]]
        inside = 'ip link set lo up && exec "$@"'
        os.environ[_INSIDE] = "1"
        os.execvp("unshare", ["unshare", "--net", "sh", "-c", inside, "sh", sys.executable, *own])
    with interruptible(), contextlib.ExitStack() as stack:
        link = stack.enter_context(lossy_link())
        service = stack.enter_context(ServiceProcess(["--host", NEAR, "--insecure"]))
        target = f"{FAR}:{service.target.rpartition(':')[2]}"
        rows = asyncio.run(measure(link, target, options.rounds))
    columns = list(rows[0])
    table = Table(*columns, title=f"{_FPS:g} frames a second")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    Console(width=160).print(table)
    print(json.dumps({"benchmark": "robot_network", "rows": rows}))


if __name__ == "__main__":
    main()
