"""The latest of something, for readers that may be slower than what it comes from."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")


class LatestValue(Generic[T]):
    """One value, replaced by every newer one; each reader sees what it has time for."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._changed = asyncio.Event()
        self._is_over = False

    def put(self, value: T) -> None:
        """A newer one."""
        self._value = value
        self._wake()

    def forget(self) -> None:
        """Readers who come now wait for the next."""
        self._value = None

    def close(self) -> None:
        """No more will come; readers end."""
        self._is_over = True
        self._wake()

    async def values(self) -> AsyncGenerator[T, None]:
        """What there is and every newer one that is still the latest when asked for."""
        last = None
        while not self._is_over:
            changed = self._changed
            if self._value is not None and self._value is not last:
                last = self._value
                yield last
            else:
                await changed.wait()

    def _wake(self) -> None:
        # An event of its own for every change: whoever waits on the old one is woken once.
        self._changed.set()
        self._changed = asyncio.Event()
