"""Frames that wait to be answered: bounded whatever the input rate, by the client's drop policy.

For one event loop. Knows nothing of what a frame is; never loses one without saying so.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from agent.errors import Overloaded
from agent.streaming.policy import DropPolicy, Priority

T = TypeVar("T")


class Inbox(Generic[T]):
    """Items in the order they came; those that have to go are handed back.

    LATEST_WINS keeps the newest item and, beside it, at most one older one of HIGH priority.
    """

    def __init__(self, drop: DropPolicy = DropPolicy.LATEST_WINS, window: int = 1) -> None:
        self._drop = drop
        self._window = window
        self._waiting: deque[tuple[T, Priority]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, item: T, priority: Priority = Priority.NORMAL) -> list[T]:
        """Take an item in; returns those that had to go for it, which may be itself.

        Raises:
            Overloaded: LOSSLESS and full; the item was not taken.
        """
        if self._drop is DropPolicy.LATEST_WINS:
            return self._put_latest(item, priority)
        if len(self._waiting) < self._window:
            self._waiting.append((item, priority))
            return []
        if self._drop is DropPolicy.LOSSLESS:
            raise Overloaded(
                f"{self._window} frames are waiting already; send no more than that many ahead of "
                "their results, or choose another drop policy"
            )
        return [item]

    def take(self) -> T | None:
        """The item that is next; None when nothing waits."""
        return self._waiting.popleft()[0] if self._waiting else None

    def clear(self) -> list[T]:
        """Hand all items back."""
        items = [item for item, _ in self._waiting]
        self._waiting.clear()
        return items

    def configure(self, drop: DropPolicy, window: int) -> list[T]:
        """Another policy; returns the items it has no room for."""
        items = list(self._waiting)
        self._drop, self._window = drop, window
        self._waiting.clear()
        gone: list[T] = []
        for item, priority in items:
            if drop is DropPolicy.LATEST_WINS:
                gone += self._put_latest(item, priority)
            elif len(self._waiting) < window:
                self._waiting.append((item, priority))
            else:
                gone.append(item)
        return gone

    def _put_latest(self, item: T, priority: Priority) -> list[T]:
        if priority is Priority.LOW and any(kind is not priority for _, kind in self._waiting):
            return [item]
        gone = []
        kept: deque[tuple[T, Priority]] = deque()
        for entry in self._waiting:
            if entry[1] is Priority.HIGH and priority is not Priority.HIGH:
                kept.append(entry)
            else:
                gone.append(entry[0])
        kept.append((item, priority))
        self._waiting = kept
        return gone
