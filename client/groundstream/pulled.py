"""A blocking iterator read from asyncio: a thread of its own waits where the loop must not."""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar

T = TypeVar("T")
_END = object()


def as_async(items: AsyncIterator[T] | Iterable[T]) -> AsyncIterator[T]:
    """The iterator itself where it is asynchronous; else one that reads it in a thread."""
    return items if isinstance(items, AsyncIterator) else Pulled(items)


class Pulled(Generic[T]):
    """Takes one item at a time, when it is asked for; what `next` raises is raised here.

    The thread is a daemon: a camera that never gives another picture keeps no program from
    ending, as a thread of asyncio's own executor would.
    """

    def __init__(self, items: Iterable[T]) -> None:
        self._items = items
        self._wanted: queue.SimpleQueue[asyncio.Future[Any] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def __aiter__(self) -> Pulled[T]:
        return self

    async def __anext__(self) -> T:
        if self._thread is None:
            self._thread = threading.Thread(target=self._pull, name="pulled", daemon=True)
            self._thread.start()
        wanted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._wanted.put(wanted)
        item = await wanted
        if item is _END:
            raise StopAsyncIteration
        return item  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """Have the iterator closed as soon as it has given what it was asked for last."""
        self._wanted.put(None)

    def _pull(self) -> None:
        iterator = iter(self._items)
        try:
            while (wanted := self._wanted.get()) is not None:
                try:
                    self._answer(wanted, next(iterator, _END), None)
                except Exception as error:
                    self._answer(wanted, None, error)
        finally:
            if hasattr(iterator, "close"):
                iterator.close()

    def _answer(self, wanted: asyncio.Future[Any], item: object, error: Exception | None) -> None:
        def settle() -> None:
            if wanted.cancelled():
                return
            if error is not None:
                wanted.set_exception(error)
            else:
                wanted.set_result(item)

        # The loop may be closed by now; then nobody waits any more.
        with contextlib.suppress(RuntimeError):
            wanted.get_loop().call_soon_threadsafe(settle)
