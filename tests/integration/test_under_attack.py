"""What a good caller waits while somebody does harm: at most three times what it waits else.

Three processes: a front end over fakes, the attacker, the good caller. With `-s` the test prints
the figures of docs/hardening.md.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from deployments.front_end.api_keys import add_api_key
from deployments.local.service_process import free_port
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from tests.attacks import ATTACKS
from tests.pictures import encoded_image

_NUM_CALLS = 40
_GRACE_S = 0.1
"""Noise of a machine that others use, too."""


@dataclass(frozen=True)
class Service:
    """The front end's process."""

    target: str
    pid: int


@contextlib.contextmanager
def running(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`python -m tests.attacks`, until the end."""
    command = [sys.executable, "-m", "tests.attacks", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            process.stdout.readline()
            yield process
        finally:
            process.kill()


@dataclass(frozen=True)
class Waited:
    """One call."""

    total_s: float
    in_line_s: float
    """A thread of the front end or of this process could have run and had no processor."""


def in_line_s(*pids: int) -> dict[str, float]:
    """For how long each of their threads has waited for a processor so far."""
    found = {}
    for pid in pids:
        for file in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with contextlib.suppress(OSError):
                found[str(file)] = int(file.read_text().split()[1]) / 1e9
    return found


async def waits(service: Service, key: str) -> list[Waited]:
    """Of a good caller, one call after the other, each picture new."""
    waited = []
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(service.target) as channel:
        for number in range(_NUM_CALLS):
            frame = pb.Frame(encoded_image=encoded_image(number), sequence=number)
            request = pb.GroundRequest(frame=frame, queries=[pb.Query(text="dog")])
            before, started_s = in_line_s(service.pid, os.getpid()), time.monotonic()
            await pb_grpc.VisionAgentStub(channel).Ground(request, metadata=metadata, timeout=60)
            total_s, after = time.monotonic() - started_s, in_line_s(service.pid, os.getpid())
            longest = max((after[name] - before.get(name, 0.0) for name in after), default=0.0)
            waited.append(Waited(total_s, longest))
            await asyncio.sleep(0.03)  # Within its own quota.
    return waited


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """The list, a good caller's key and another's."""
    path = tmp_path_factory.mktemp("keys") / "keys.yaml"
    return path, *(add_api_key(path, name=name, tenant=name) for name in ("good", "bad"))


@pytest.fixture(scope="module")
def service(keys: tuple[Path, str, str]) -> Iterator[Service]:
    """The front end."""
    port = free_port()
    with running("serve", str(port), str(keys[0])) as process:
        yield Service(f"127.0.0.1:{port}", process.pid)


@pytest.mark.skipif("ATTACKS" not in os.environ, reason="takes a minute; ATTACKS=1 runs it")
@pytest.mark.parametrize("name", ATTACKS)
async def test_a_good_caller_waits_hardly_longer(
    name: str, service: Service, keys: tuple[Path, str, str]
) -> None:
    _, good, bad = keys
    quiet = await waits(service, good)
    with running(name, service.target, bad):
        meanwhile = await waits(service, good)
    before_s, during_s = (
        statistics.median(one.total_s for one in calls) for calls in (quiet, meanwhile)
    )
    longest = " and ".join(
        f"{1e3 * most.total_s:.0f} ms, {1e3 * most.in_line_s:.0f} of them without a processor"
        for most in (max(calls, key=lambda one: one.total_s) for calls in (quiet, meanwhile))
    )
    print(
        f"{name}: {1e3 * before_s:.1f} ms quiet, {1e3 * during_s:.1f} ms during, longest {longest}"
    )
    assert during_s < 3 * before_s + _GRACE_S
