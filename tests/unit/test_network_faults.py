"""The network between client and service cut, stalled and corrupted in mid-stream.

Through a proxy on loopback: the client comes back by itself, and every frame is accounted for.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agent.server_settings import TlsSettings
from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.events import StreamError, StreamOpened, StreamStats
from groundstream.types import FrameResult, StreamPolicy
from groundstream.watch_stream import Reconnect
from tests.cameras import Camera
from tests.certificates import Authority
from tests.fault_proxy import FaultProxy, fault_proxy
from tests.in_process import SETTINGS, running_service
from tests.pictures import encoded_image

_PICTURE = encoded_image(3)
_QUICK = Reconnect(max_attempts=200, first_pause_s=0.02, max_pause_s=0.1)
_EVERY_S = 0.02
_SETTLED = 15
"""Results before the fault, and again after it."""


def cut(proxy: FaultProxy) -> float:
    proxy.cut()
    return 0.0


def cut_for_a_while(proxy: FaultProxy) -> float:
    proxy.cut(refuse=True)
    return 0.5


def stall(proxy: FaultProxy) -> float:
    proxy.stall()
    return 0.5


def corrupt(proxy: FaultProxy) -> float:
    proxy.corrupt(6)
    return 0.0


@pytest.mark.parametrize("fault", [cut, cut_for_a_while, stall, corrupt])
async def test_a_stream_goes_on_and_its_books_close(
    fault: Callable[[FaultProxy], float], tmp_path: Path
) -> None:
    settings, tls = SETTINGS, None
    if fault is corrupt:
        # In plain text a damaged length may look like a message that takes its time to come.
        authority = Authority(tmp_path, "authority")
        made, tls = authority.sign("service"), TlsOptions(authority.path)
        files = TlsSettings(str(made.chain), str(made.key))
        settings = replace(SETTINGS, server=replace(SETTINGS.server, tls=files))
    camera, results = Camera(lambda: _PICTURE, every_s=_EVERY_S), list[FrameResult]()
    broken_s = recovered_s = None
    errors, openings, last = [], [], None
    async with (
        asyncio.timeout(40.0),
        running_service(settings=settings) as service,
        fault_proxy(service.target) as proxy,
        aio.Client(proxy.address, tls=tls) as client,
        client.watch(camera.frames(), ["dog"], policy=StreamPolicy(), reconnect=_QUICK) as stream,
    ):
        async for event in stream:
            if isinstance(event, StreamStats):
                assert event.balanced
                last = event
            errors += [event] if isinstance(event, StreamError) else []
            openings += [event] if isinstance(event, StreamOpened) else []
            if not isinstance(event, FrameResult):
                continue
            results.append(event)
            if broken_s is None and len(results) >= _SETTLED:
                broken_s, num_before = time.monotonic(), len(results)
                asyncio.get_running_loop().call_later(fault(proxy), proxy.flow)
            # What was on its way when it broke does not count.
            elif broken_s is not None and time.monotonic() - broken_s > 0.2:
                recovered_s = recovered_s or time.monotonic() - broken_s
            camera.is_on = recovered_s is None or len(results) < num_before + _SETTLED
    print(f"{fault.__name__}: recovered after {recovered_s:.2f} s, {len(openings)} openings")
    assert recovered_s is not None
    assert recovered_s < 10.0
    sequences = [result.sequence for result in results]
    assert sequences == sorted(set(sequences))
    assert not [error for error in errors if error.code == "INTERNAL"]
    assert last is not None
    assert last.in_flight == 0
    assert stream.num_sent + stream.num_unsent == camera.num_sent
    assert last.received == stream.num_sent
    if fault is not stall:
        assert [opening.resumed for opening in openings] == [False, True]
    else:  # Nothing was lost, only late.
        assert [opening.resumed for opening in openings] == [False]
        assert last.failed == 0
