"""Waiting until something holds that a task, a thread or another process does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable


def until(holds: Callable[[], object], limit_s: float = 120.0, pause_s: float = 0.01) -> None:
    """Look again and again; AssertionError: it does not hold in time."""
    deadline_s = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(pause_s)


async def eventually(
    holds: Callable[[], object], limit_s: float = 120.0, pause_s: float = 0.005
) -> None:
    """As `until`, while the tasks of this event loop go on; TimeoutError: not in time."""
    async with asyncio.timeout(limit_s):
        while not holds():
            await asyncio.sleep(pause_s)
