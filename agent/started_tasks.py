"""Tasks whose waiters may go away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


def started(work: Awaitable[T]) -> asyncio.Future[T]:
    """The work, under way; its error is not reported as lost when every waiter has gone away."""
    task = asyncio.ensure_future(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task
