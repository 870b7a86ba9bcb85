"""What a console costs: its memory, its processor time, and what its wall sends to visitors.

    groundstream serve
    python -m benchmarks.console --seconds 90

Starts `groundstream console` with the shipped street video as each of its cameras, beside a service
that runs already, and looks at its wall as pages do that draw at once. Prints a line every ten
seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import psutil

from deployments.local.service_process import free_port
from groundstream.types import DEFAULT_TARGET

_VIDEO = Path(__file__).parents[1] / "deployments" / "demo" / "data" / "pedestrians.mp4"
_READING_S = 10.0
_COLUMNS = ("after s", "memory MB", "processor s", "answers", "pictures", "MB/s", "age ms", "most")


@dataclass
class Seen:
    """What visitors of the wall were sent since the last reading."""

    num_answers: int = 0
    num_bytes: int = 0
    """Of pictures and of what was said about them."""
    ages_ms: list[float] = field(default_factory=list)
    """Of every picture, when it left."""


class Visitors:
    """Pages that show the wall."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._seen = Seen()

    async def look(self) -> None:
        """One more of them, until cancelled."""
        async with (
            aiohttp.ClientSession(self._url) as session,
            session.ws_connect("/api/wall", origin=self._url) as wall,
        ):
            while True:
                await wall.send_str("next")
                said = await wall.receive_str()
                pictures = json.loads(said)["pictures"]
                images = [await wall.receive_bytes() for _ in pictures]
                self._seen.num_answers += 1
                self._seen.num_bytes += len(said) + sum(map(len, images))
                self._seen.ages_ms += [picture["age_ms"] for picture in pictures]

    def take_reading(self) -> Seen:
        """What they were sent since the last one."""
        seen, self._seen = self._seen, Seen()
        return seen


async def measure(target: str, *, num_cameras: int, num_visitors: int, seconds: float) -> None:
    """Run the console for so long."""
    port = free_port()
    command = [sys.executable, "-m", "deployments.cli", "console", "--stop-with-parent"]
    command += ["--target", target, "--port", str(port), "--query", "person"]
    command += num_cameras * ["--source", str(_VIDEO)]
    console = psutil.Popen(command, stdout=subprocess.DEVNULL)
    try:
        await _until_listening(port)
        visitors = Visitors(f"http://127.0.0.1:{port}")
        async with asyncio.TaskGroup() as group:
            looking = [group.create_task(visitors.look()) for _ in range(num_visitors)]
            await _report(console, visitors, seconds)
            for task in looking:
                task.cancel()
    finally:
        console.terminate()
        console.wait()


async def _report(console: psutil.Popen, visitors: Visitors, seconds: float) -> None:
    print(*_COLUMNS, sep=" | ")
    started_s = time.monotonic()
    while (spent_s := time.monotonic() - started_s) < seconds:
        await asyncio.sleep(_READING_S)
        seen, processor = visitors.take_reading(), console.cpu_times()
        ages = seen.ages_ms or [0.0]
        readings = (
            spent_s + _READING_S,
            console.memory_info().rss / 1e6,
            processor.user + processor.system,
            seen.num_answers,
            len(seen.ages_ms),
            seen.num_bytes / 1e6 / _READING_S,
            statistics.median(ages),
            max(ages),
        )
        print(*(f"{value:.3g}" for value in readings), sep=" | ", flush=True)


async def _until_listening(port: int) -> None:
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            await asyncio.sleep(0.1)
        else:
            writer.close()
            return


def main() -> None:
    """From the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--target", default=DEFAULT_TARGET, help="The service, host:port.")
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--visitors", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=90.0)
    given = parser.parse_args()
    asyncio.run(
        measure(
            given.target, num_cameras=given.cameras, num_visitors=given.visitors,
            seconds=given.seconds,
        )
    )  # fmt: skip


if __name__ == "__main__":
    main()
