"""What it costs to hand something to another deployment, by value and by reference.

    python -m benchmarks.handle_hops

Replica to replica on this machine through Serve's handles, one call at a time, after a warm-up.
Bytes of several sizes; then a frame for three stages at once: as the JPEG it came as, decoded by
each, or decoded once and sent as an array. Prints two tables and, last, one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from multiprocessing import shared_memory
from typing import Any

import numpy as np
import ray
from ray import serve
from ray.serve.handle import DeploymentHandle
from rich.console import Console
from rich.table import Table

from agent.frame import frame_from_rgb, read_frame
from agent.interrupts import interruptible
from benchmarks.driver import VIDEO
from deployments.local import process_session
from deployments.local.ray_cluster import ENVIRONMENT
from groundstream.video.sources import open_source

_SIZES = (1_000, 10_000, 100_000, 500_000, 1_000_000, 5_000_000)
_FRAMES = ((640, 480), (1920, 1080))
_NUM_WARM_UP = 15
_NUM_RECEIVERS = 3
_INSIDE = "--inside"
_SERVE_LIMIT = "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH"


class Receiver:
    """Takes what it is given and says how much that was."""

    async def take(self, payload: bytes | np.ndarray) -> int:
        """Bytes and arrays as they came."""
        return len(payload)

    async def decode(self, encoded: bytes) -> int:
        """A JPEG, decoded as a stage would."""
        return int(read_frame(encoded).rgb().shape[0])

    async def attach(self, name: str, shape: tuple[int, int, int]) -> int:
        """An array in shared memory, read where it lies."""
        untracked: dict[str, Any] = {"track": False} if _CAN_LEAVE_TRACKING else {}
        block = shared_memory.SharedMemory(name=name, **untracked)
        try:
            return len(np.ndarray(shape, dtype=np.uint8, buffer=block.buf))
        finally:
            block.close()


_CAN_LEAVE_TRACKING = sys.version_info >= (3, 13)


class Sender:
    """Measures calls of its receivers."""

    def __init__(self, *receivers: DeploymentHandle[Any]) -> None:
        self._receivers = receivers

    async def hops(self, size_bytes: int, num: int) -> dict[str, list[float]]:
        """Milliseconds of each call with so many bytes."""
        payload, first = os.urandom(size_bytes), self._receivers[0]
        ways: dict[str, Callable[[bytes], Awaitable[object]]] = {
            "by value": first.options(method_name="take", _by_reference=False).remote,
            "by reference": first.options(method_name="take").remote,
        }
        return {way: await _timed(partial(call, payload), num) for way, call in ways.items()}

    async def frames(self, width: int, height: int, num: int) -> dict[str, list[float]]:
        """Milliseconds until all receivers have the pixels of one frame."""
        rgb = _picture(width, height)
        encoded = frame_from_rgb(rgb, jpeg_quality=90).encoded

        async def to_all(method: str, *arguments: object, by_reference: bool) -> None:
            options = {} if by_reference else {"_by_reference": False}
            await asyncio.gather(
                *(
                    receiver.options(method_name=method, **options).remote(*arguments)
                    for receiver in self._receivers
                )
            )

        def decoded() -> np.ndarray:
            return read_frame(encoded).rgb()

        async def shared() -> None:
            array = decoded()
            block = shared_memory.SharedMemory(create=True, size=array.nbytes)
            try:
                np.ndarray(array.shape, dtype=np.uint8, buffer=block.buf)[:] = array
                await to_all("attach", block.name, array.shape, by_reference=False)
            finally:
                block.close()
                block.unlink()

        async def object_store() -> None:
            await to_all("take", ray.put(decoded()), by_reference=True)

        ways: dict[str, Callable[[], Awaitable[None]]] = {
            "JPEG by value, each decodes": lambda: to_all("decode", encoded, by_reference=False),
            "JPEG by reference, each decodes": lambda: to_all(
                "decode", ray.put(encoded), by_reference=True
            ),
            "array by value, decoded once": lambda: to_all("take", decoded(), by_reference=False),
            "array in the object store, decoded once": object_store,
            "array in shared memory, decoded once": shared,
        }
        return {"": [float(len(encoded))]} | {
            way: await _timed(call, num) for way, call in ways.items()
        }


async def _timed(call: Callable[[], Awaitable[object]], num: int) -> list[float]:
    for _ in range(_NUM_WARM_UP):
        await call()
    taken_ms = []
    for _ in range(num):
        started_s = time.perf_counter()
        await call()
        taken_ms.append(1e3 * (time.perf_counter() - started_s))
    return taken_ms


def _picture(width: int, height: int) -> np.ndarray:
    from PIL import Image

    rgb = next(iter(open_source(str(VIDEO)))).rgb
    return np.asarray(Image.fromarray(rgb).resize((width, height)))


def inside(num: int) -> dict[str, Any]:
    """Start a cluster as the service does, measure, stop it."""
    # By value Serve takes 4 MB by default.
    for key, value in (ENVIRONMENT | {_SERVE_LIMIT: str(64 * 1024 * 1024)}).items():
        os.environ.setdefault(key, value)
    ray.init(address="local", num_cpus=4, object_store_memory=300_000_000,
             include_dashboard=False, log_to_driver=False, logging_level="WARNING")  # fmt: skip
    serve.start(proxy_location="Disabled", logging_config={"log_level": "WARNING"})
    small: dict[str, Any] = {"ray_actor_options": {"num_cpus": 0.1}}
    receivers = [
        serve.deployment(Receiver).options(name=f"Receiver{i}", **small).bind()
        for i in range(_NUM_RECEIVERS)
    ]
    sender = serve.run(
        serve.deployment(Sender).options(**small).bind(*receivers), name="hops", route_prefix=None
    )
    found = {
        "hops": {size: sender.hops.remote(size, num).result() for size in _SIZES},
        "frames": {
            f"{width}x{height}": sender.frames.remote(width, height, num).result()
            for width, height in _FRAMES
        },
    }
    ray.shutdown()
    return found


def p50_p99(values: list[float]) -> list[float]:
    """Milliseconds."""
    return [round(float(np.percentile(values, share)), 2) for share in (50, 99)]


def measured(num: int) -> dict[str, Any]:
    """`inside`, run in a session of its own, of which nothing is left afterwards."""
    environment = os.environ | {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    command = [sys.executable, "-m", "benchmarks.handle_hops", _INSIDE, "--num", str(num)]
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, env=environment, text=True, start_new_session=True
    )
    try:
        output, _ = child.communicate()
    finally:
        process_session.kill(child.pid)
    if child.returncode:
        raise SystemExit("the cluster failed; see its messages above")
    found: dict[str, Any] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=80, help="calls per figure")
    parser.add_argument(_INSIDE, action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        print(json.dumps(inside(options.num)))
        return
    with interruptible():
        raw = measured(options.num)
    hops = {
        size: {way: p50_p99(values) for way, values in ways.items()}
        for size, ways in raw["hops"].items()
    }
    frames = {
        f"{name}, JPEG of {ways.pop('')[0]:.0f} bytes": {
            way: p50_p99(values) for way, values in ways.items()
        }
        for name, ways in raw["frames"].items()
    }
    console = Console()
    for title, first, rows in (
        ("one hop, p50 / p99 ms", "bytes", hops),
        (f"a frame for {_NUM_RECEIVERS} stages, p50 / p99 ms", "frame", frames),
    ):
        ways = list(next(iter(rows.values())))
        table = Table(first, *ways, title=title)
        for name, values in rows.items():
            table.add_row(name, *(f"{p50} / {p99}" for p50, p99 in values.values()))
        console.print(table)
    print(json.dumps({"benchmark": "handle_hops", "hops": hops, "frames": frames}))


if __name__ == "__main__":
    main()
