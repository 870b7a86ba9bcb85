"""Stages scaled by Serve while calls come and go: replicas and latency over time, as a picture.

    python -m benchmarks.autoscaling --picture docs/autoscaling.png

Stand-ins of 20 ms, so that it is not the processors that limit. One caller, then many, then one
again; the three vision stages may have one or two replicas each. Prints a table and, last, one
JSON line; the picture needs matplotlib (the `train` extra).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console
from rich.table import Table

from agent.interrupts import interruptible
from benchmarks.driver import camera_pictures
from benchmarks.scaling import Caller
from benchmarks.standin_stages import changed_config
from deployments.local.service_process import ServiceProcess
from groundstream import aio

_SCALED = ("Proposal", "PrimaryEncoder")
_STAGE = "PrimaryEncoder"
"""The one whose replicas are counted."""
_READY_S = 120.0
_SAMPLE_S = 0.5
_AUTOSCALING = {
    "min_replicas": 1, "max_replicas": 2,
    "upscale_delay_s": 2.0, "downscale_delay_s": 8.0, "metrics_interval_s": 1.0,
    "look_back_period_s": 4.0,
    "target_ongoing_requests": 1.5,
}  # fmt: skip


@dataclass(frozen=True)
class Phase:
    """So many callers for so long."""

    callers: int
    seconds: float


PHASES = (Phase(1, 12.0), Phase(8, 40.0), Phase(1, 45.0))


@dataclass
class Record:
    """What was seen, in seconds since the first call."""

    calls: list[tuple[float, float]] = field(default_factory=list)
    """When a call began and how long it took."""
    replicas: list[tuple[float, int]] = field(default_factory=list)

    def first_with(self, count: int, *, after_s: float) -> float | None:
        """When there were first so many replicas, counted from `after_s`."""
        times = [at for at, now in self.replicas if at >= after_s and now == count]
        return times[0] - after_s if times else None

    def latency_ms(self, begin_s: float, end_s: float) -> tuple[float, float]:
        """p50 and p95 of the calls that began in that time."""
        took = [1e3 * took for at, took in self.calls if begin_s <= at < end_s]
        p50, p95 = np.percentile(took, (50, 95)) if took else (float("nan"), float("nan"))
        return float(p50), float(p95)


async def watched(service: ServiceProcess, phases: Sequence[Phase]) -> Record:
    """Run the phases and sample meanwhile."""
    record = Record()
    async with aio.Client(service.target) as client:
        await client.wait_until_ready(_READY_S)
        caller = Caller(client, camera_pictures(30, every=3))
        await caller.keep_busy(2.0)
        started_s = time.monotonic()

        async def ask_on(until_s: float) -> None:
            while (now := time.monotonic()) < until_s:
                await caller.ask()
                record.calls.append((now - started_s, time.monotonic() - now))

        async def sample() -> None:
            while True:
                count = service.num_processes(_STAGE)
                record.replicas.append((time.monotonic() - started_s, count))
                await asyncio.sleep(_SAMPLE_S)

        sampling = asyncio.create_task(sample())
        for phase in phases:
            until_s = time.monotonic() + phase.seconds
            await asyncio.gather(*(ask_on(until_s) for _ in range(phase.callers)))
        sampling.cancel()
    return record


@contextlib.contextmanager
def scaled_config() -> Iterator[Path]:
    """The shipped settings with stand-ins and stages that scale."""
    with changed_config(
        standin=True, local_cluster={"num_cpus": 8}, stream={"overlap_stages": False}
    ) as path:
        loaded = yaml.safe_load(path.read_text())
        for deployment in loaded["applications"][0]["deployments"]:
            if deployment["name"] in _SCALED:
                del deployment["num_replicas"]
                deployment |= {"autoscaling_config": _AUTOSCALING}
        path.write_text(yaml.safe_dump(loaded))
        yield path


def figures_of(record: Record, phases: Sequence[Phase]) -> dict[str, Any]:
    """When replicas came and went, and how long calls took before and after."""
    rise_s = phases[0].seconds
    fall_s = rise_s + phases[1].seconds
    up_s = record.first_with(2, after_s=rise_s)
    down_s = record.first_with(1, after_s=fall_s)
    seen_s = rise_s + (up_s if up_s is not None else phases[1].seconds / 2)
    settled_s = min(seen_s + 6.0, fall_s - 1.0)
    return {
        "second_replica_after_s": up_s,
        "one_replica_again_after_s": down_s,
        "one_caller_ms": record.latency_ms(0.0, rise_s),
        "many_callers_one_replica_ms": record.latency_ms(rise_s, seen_s),
        "many_callers_two_replicas_ms": record.latency_ms(settled_s, fall_s),
        "one_caller_again_ms": record.latency_ms(fall_s, fall_s + phases[2].seconds),
    }


def draw(record: Record, phases: Sequence[Phase], path: Path) -> None:
    """Replicas above, latency of every call below."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(
        2, sharex=True, figsize=(9, 5), height_ratios=(1, 2), layout="constrained"
    )
    above.step(*zip(*record.replicas, strict=True), where="post", color="tab:blue")
    above.set(title=_STAGE, ylabel="replicas", yticks=(1, 2), ylim=(0.5, 2.5))
    below.scatter([at for at, _ in record.calls], [1e3 * took for _, took in record.calls], s=3,
                  color="tab:orange", alpha=0.4)  # fmt: skip
    below.set(xlabel="seconds", ylabel="latency of a call, ms", ylim=(0, None))
    begin_s = 0.0
    for phase in phases:
        for axes in (above, below):
            axes.axvline(begin_s, color="grey", linewidth=0.6)
        callers = "1 caller" if phase.callers == 1 else f"{phase.callers} callers"
        above.text(begin_s + 0.5, 2.3, callers, va="top", color="dimgrey")
        begin_s += phase.seconds
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run, print, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="write the picture here")
    options = parser.parse_args()
    with (
        interruptible(),
        scaled_config() as path,
        ServiceProcess(["--config", str(path)]) as service,
    ):
        record = asyncio.run(watched(service, PHASES))
    figures = figures_of(record, PHASES)
    table = Table("figure", "seconds or p50, p95 ms", title=f"{_STAGE}: one or two replicas")
    for name, value in figures.items():
        table.add_row(name, ", ".join(f"{one:.1f}" for one in np.atleast_1d(value or np.nan)))
    Console().print(table)
    if options.picture is not None:
        draw(record, PHASES, options.picture)
    print(json.dumps({"benchmark": "autoscaling", **figures}))


if __name__ == "__main__":
    main()
