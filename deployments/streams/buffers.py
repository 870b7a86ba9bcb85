"""What is kept for readers that may be slower than what it comes from; bounded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Generic, TypeVar

T = TypeVar("T")

_MAX_PICTURES = 64
_MAX_BYTES = 33_554_432


class Change:
    """Something that happens again and again; whoever waits is woken once, by the next time."""

    def __init__(self) -> None:
        self._next = asyncio.Event()

    def happened(self) -> None:
        """Wake all who wait now."""
        self._next.set()
        self._next = asyncio.Event()

    async def wait(self) -> None:
        """Until it happens the next time."""
        await self._next.wait()


class LatestValue(Generic[T]):
    """One value, replaced by every newer one; each reader sees what it has time for."""

    def __init__(self) -> None:
        self._value: T | None = None
        self._change = Change()
        self._is_over = False

    def put(self, value: T) -> None:
        """A newer one."""
        self._value = value
        self._change.happened()

    def forget(self) -> None:
        """Readers who come now wait for the next."""
        self._value = None

    def close(self) -> None:
        """No more will come; readers end."""
        self._is_over = True
        self._change.happened()

    async def values(self) -> AsyncGenerator[T, None]:
        """What there is and every newer one that is still the latest when asked for."""
        last = None
        while not self._is_over:
            if self._value is not None and self._value is not last:
                last = self._value
                yield last
            else:
                await self._change.wait()


class PictureBuffer:
    """Pictures in the order of their numbers, kept until something is said about them.

    A frame that was dropped has no result; its picture goes with that of a later frame.
    """

    def __init__(self, *, max_bytes: int = _MAX_BYTES) -> None:
        self._max_bytes = max_bytes
        self._pictures: dict[int, bytes] = {}
        self.num_bytes = 0

    def __len__(self) -> int:
        return len(self._pictures)

    def put(self, number: int, encoded: bytes) -> None:
        """Keep a picture; the oldest make room, but for this one."""
        self._drop(number)
        self._pictures[number] = encoded
        self.num_bytes += len(encoded)
        while len(self) > 1 and (len(self) > _MAX_PICTURES or self.num_bytes > self._max_bytes):
            self._drop(next(iter(self._pictures)))

    def take(self, number: int) -> bytes | None:
        """Hand a picture over and drop those before it, which are old now; None: it is not kept."""
        encoded = self._pictures.get(number)
        while encoded is not None and number in self._pictures:
            self._drop(next(iter(self._pictures)))
        return encoded

    def clear(self) -> None:
        """Drop them all."""
        self._pictures.clear()
        self.num_bytes = 0

    def _drop(self, number: int) -> None:
        self.num_bytes -= len(self._pictures.pop(number, b""))
