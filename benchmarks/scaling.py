"""Throughput with one and two replicas of each stage, and what the queueing model says of it.

    python -m benchmarks.scaling

Two kinds of stages: stand-ins that take 20 ms and no processor, as stages on devices of their own
do, and pocket on this machine's processors. Callers with new frames keep the service busy; then
frames arrive at random at a share of that rate, and the time they wait before the stages is
compared with the model's (benchmarks/queueing.py). Two replicas are predicted from what was
measured with one. Prints tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from agent.interrupts import interruptible
from benchmarks.driver import camera_pictures, with_comment
from benchmarks.queueing import Machine, mean_wait_s, most_throughput
from benchmarks.standin_stages import changed_config
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.types import StageLoad

_STAGES = ("Proposal", "PrimaryEncoder", "Language")
_SERIAL = ("proposal", "primary_encoder")
"""Stages whose replicas serve one call at a time."""
_READY_S = 300.0
_CALLERS = 12
_WARM_UP_S = 3.0
_SHARE = 0.6
_LOGICAL_CPUS = 8


@dataclass(frozen=True)
class Run:
    """One service under calls for a while."""

    frames_per_s: float
    cpu_s_per_frame: float
    front_end_s_per_frame: float
    cores_left: float
    """Processors that nobody else on this machine used meanwhile."""
    service_s: dict[str, float]
    wait_s: dict[str, float]


class Caller:
    """Asks about frames nobody has seen."""

    def __init__(self, client: aio.Client, pictures: Sequence[bytes]) -> None:
        self._client = client
        self._pictures = itertools.cycle(pictures)
        self._numbers = itertools.count()

    async def ask(self) -> None:
        """One frame through all stages."""
        unseen = with_comment(next(self._pictures), f"{os.getpid()} {next(self._numbers)}")
        await self._client.ground(unseen, ["dog"])

    async def ask_on(self, until_s: float) -> None:
        """One frame after the other."""
        while time.monotonic() < until_s:
            await self.ask()

    async def keep_busy(self, seconds: float) -> None:
        """Several callers at once, each waiting for its answer."""
        until_s = time.monotonic() + seconds
        await asyncio.gather(*(self.ask_on(until_s) for _ in range(_CALLERS)))

    async def arrive(self, rate: float, seconds: float) -> None:
        """Frames at random moments, whatever becomes of those before."""
        arrivals, until_s = random.Random(0), time.monotonic() + seconds
        due_s, calls = time.monotonic(), []
        while due_s < until_s:
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            calls.append(asyncio.create_task(self.ask()))
            due_s += arrivals.expovariate(rate)
        await asyncio.gather(*calls)


async def measured(client: aio.Client, service: ServiceProcess, work: Any) -> Run:
    """What a service does while `work` runs."""
    before, started_s = await client.stats(), time.monotonic()
    used, idle_s = service.cpu_s_by_process(), psutil.cpu_times().idle
    await work
    took_s = time.monotonic() - started_s
    now = service.cpu_s_by_process()
    spent = {name: cpu_s - used.get(name, 0.0) for name, cpu_s in now.items()}
    idle_s = psutil.cpu_times().idle - idle_s
    after = await client.stats()
    num = after.frames_answered - before.frames_answered
    old = {stage.name: stage for stage in before.stages}

    def mean_s(stage: StageLoad, name: str) -> float:
        done = max(1, stage.num_done - old[stage.name].num_done)
        return float((getattr(stage, name) - getattr(old[stage.name], name)) / done / 1e3)

    return Run(
        num / took_s,
        sum(spent.values()) / max(1, num),
        spent["Ingress"] / max(1, num),
        (sum(spent.values()) + idle_s) / took_s,
        {stage.name: mean_s(stage, "compute_ms") for stage in after.stages},
        {stage.name: mean_s(stage, "queue_ms") for stage in after.stages},
    )


async def runs_of(service: ServiceProcess, seconds: float) -> tuple[Run, Run, Run]:
    """One caller alone, as many as it takes, and frames that come at random."""
    async with aio.Client(service.target) as client:
        await client.wait_until_ready(_READY_S)
        caller = Caller(client, camera_pictures(30, every=3))
        await caller.keep_busy(_WARM_UP_S)
        alone = await measured(client, service, caller.ask_on(time.monotonic() + seconds / 2))
        busy = await measured(client, service, caller.keep_busy(seconds))
        rate = _SHARE * busy.frames_per_s
        at_random = await measured(client, service, caller.arrive(rate, seconds))
    return alone, busy, at_random


def compared(runs: dict[int, tuple[Run, Run, Run]]) -> dict[str, Any]:
    """Predicted against measured; what is predicted comes from one replica's figures.

    Only how much of the machine its neighbours left is taken from each run itself.
    """
    alone, busy, _ = runs[1]
    service_s = {name: alone.service_s[name] for name in _SERIAL}
    figures: dict[str, Any] = {
        "service_ms": {name: round(1e3 * mean, 1) for name, mean in alone.service_s.items()},
        "cpu_ms_per_frame": round(1e3 * busy.cpu_s_per_frame, 1),
        "front_end_ms_per_frame": round(1e3 * busy.front_end_s_per_frame, 1),
    }
    for replicas, (_, busy_now, at_random) in runs.items():
        machine = Machine(busy_now.cores_left, busy.cpu_s_per_frame, busy.front_end_s_per_frame)
        predicted = most_throughput(dict.fromkeys(_SERIAL, replicas), service_s, machine)
        bottleneck = max(service_s, key=lambda name: service_s[name])
        wait_s = mean_wait_s(
            replicas, at_random.frames_per_s, at_random.service_s[bottleneck], variation=0.0
        )
        figures[f"{replicas} of each"] = {
            "frames_per_s": round(busy_now.frames_per_s, 1),
            "predicted_frames_per_s": round(predicted, 1),
            "wait_ms": round(1e3 * at_random.wait_s[bottleneck], 1),
            "predicted_wait_ms": round(1e3 * wait_s, 1),
            "cores_left": round(busy_now.cores_left, 2),
            "at_frames_per_s": round(at_random.frames_per_s, 1),
            "runs": {"busy": asdict(busy_now), "at_random": asdict(at_random)},
        }
    return figures


def main() -> None:
    """Both kinds of stages with one and two replicas."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=12.0, help="per measurement")
    options = parser.parse_args()
    figures = {}
    with interruptible():
        for kind in ("stand-ins", "pocket"):
            runs = {}
            for replicas in (1, 2):
                with contextlib.ExitStack() as stack:
                    config = changed_config(
                        standin=kind == "stand-ins",
                        replicas=dict.fromkeys(_STAGES, replicas),
                        local_cluster={"num_cpus": _LOGICAL_CPUS},
                        stream={"overlap_stages": False},
                    )
                    path = stack.enter_context(config)
                    service = stack.enter_context(ServiceProcess(["--config", str(path)]))
                    runs[replicas] = asyncio.run(runs_of(service, options.seconds))
            figures[kind] = compared(runs)
    show(Console(), figures)
    print(json.dumps({"benchmark": "scaling", **figures}))


def show(console: Console, figures: dict[str, Any]) -> None:
    """Predicted against measured."""
    names = ("cores_left", "frames_per_s", "predicted_frames_per_s", "at_frames_per_s", "wait_ms",
             "predicted_wait_ms")  # fmt: skip
    table = Table("stages", "replicas", *names, title="one and two replicas of each stage")
    for kind, found in figures.items():
        for replicas in (1, 2):
            row = found[f"{replicas} of each"]
            table.add_row(kind, str(replicas), *(str(row[name]) for name in names))
    console.print(table)
    for kind, found in figures.items():
        whole, front_end = found["cpu_ms_per_frame"], found["front_end_ms_per_frame"]
        console.print(f"{kind}: {found['service_ms']} ms alone; {whole} ms of processor per frame")
        console.print(f"{kind}: {front_end} ms of that are the front end's")


if __name__ == "__main__":
    main()
