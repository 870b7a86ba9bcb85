"""Frames that wait to be answered: bounded whatever the input rate, by the client's drop policy.

Bounded in number and in bytes. For one event loop. Knows nothing of what a frame is; never loses
one without saying so.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

from agent.streaming.policy import DropPolicy, Priority
from groundstream.errors import Overloaded

T = TypeVar("T")


@dataclass(frozen=True)
class _Waiting(Generic[T]):
    item: T
    priority: Priority
    num_bytes: int


class Inbox(Generic[T]):
    """Items in the order they came; those that have to go are handed back.

    LATEST_WINS keeps the newest item and, beside it, at most one older one of HIGH priority.
    """

    def __init__(
        self,
        drop: DropPolicy = DropPolicy.LATEST_WINS,
        window: int = 1,
        *,
        max_bytes: int | None = None,
    ) -> None:
        """`max_bytes`: of all items that wait; one item alone may be larger. None: any number."""
        self._drop = drop
        self._window = window
        self._max_bytes = max_bytes
        self._waiting: deque[_Waiting[T]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def num_bytes(self) -> int:
        """Of all items that wait."""
        return sum(entry.num_bytes for entry in self._waiting)

    def put(self, item: T, priority: Priority = Priority.NORMAL, num_bytes: int = 0) -> list[T]:
        """Take an item in; returns those that had to go for it, which may be itself.

        Raises:
            Overloaded: LOSSLESS and full; the item was not taken.
        """
        entry = _Waiting(item, priority, num_bytes)
        if self._drop is DropPolicy.LATEST_WINS:
            return self._put_latest(entry)
        if self._has_room(entry):
            self._waiting.append(entry)
            return []
        if self._drop is DropPolicy.LOSSLESS:
            raise Overloaded(
                f"{len(self._waiting)} frames of {self.num_bytes} bytes are waiting already; send "
                f"no more than {self._window} ahead of their results, fewer where they are large, "
                "or choose another drop policy"
            )
        return [item]

    def take(self) -> T | None:
        """The item that is next; None when nothing waits."""
        return self._waiting.popleft().item if self._waiting else None

    def clear(self) -> list[T]:
        """Hand all items back."""
        items = [entry.item for entry in self._waiting]
        self._waiting.clear()
        return items

    def configure(self, drop: DropPolicy, window: int) -> list[T]:
        """Another policy; returns the items it has no room for."""
        entries = list(self._waiting)
        self._drop, self._window = drop, window
        self._waiting.clear()
        gone: list[T] = []
        for entry in entries:
            if drop is DropPolicy.LATEST_WINS:
                gone += self._put_latest(entry)
            elif self._has_room(entry):
                self._waiting.append(entry)
            else:
                gone.append(entry.item)
        return gone

    def _has_room(self, entry: _Waiting[T]) -> bool:
        if not self._waiting or len(self._waiting) >= self._window:
            return len(self._waiting) < self._window
        return self._max_bytes is None or self.num_bytes + entry.num_bytes <= self._max_bytes

    def _put_latest(self, entry: _Waiting[T]) -> list[T]:
        if entry.priority is Priority.LOW and any(
            waiting.priority is not Priority.LOW for waiting in self._waiting
        ):
            return [entry.item]
        gone = []
        kept: deque[_Waiting[T]] = deque()
        for waiting in self._waiting:
            if waiting.priority is Priority.HIGH and entry.priority is not Priority.HIGH:
                kept.append(waiting)
            else:
                gone.append(waiting.item)
        kept.append(entry)
        self._waiting = kept
        return gone
