"""A local service starts again what dies inside it; real processes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import stat
import time
from pathlib import Path

import psutil
import pytest

from tests.integration.serving_process import serving_process
from tests.waiting import until


@pytest.mark.skipif("RESTARTS" not in os.environ, reason="takes a minute; RESTARTS=1 runs it")
def test_what_dies_is_started_again_and_an_interrupt_leaves_nothing(
    empty_model: Path, tmp_path: Path
) -> None:
    with serving_process(empty_model, tmp_path) as serving:
        serving.wait_until_it_says("ready on")
        (folder,) = serving.temporary.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        parent = serving.process.pid
        cache = _named(parent, "valkey-server")
        assert [c for c in cache.net_connections() if c.family == socket.AF_INET] == []
        cache.kill()
        until(lambda: _named(parent, "valkey-server", but=cache.pid) is not None, 30.0)
        _named(parent, "raylet").kill()
        serving.wait_until_it_says("again after")
        serving.end(signal.SIGINT)


def _named(parent: int, name: str, but: int = 0) -> psutil.Process:
    """The process of that name below another; asked again while there is none."""
    for _ in range(300):
        for process in psutil.Process(parent).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                if process.name().startswith(name) and process.pid != but:
                    return process
        time.sleep(0.1)
    raise AssertionError(f"no {name}")
