"""Text that a thread writes, read as it comes by a coroutine. Knows no model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from agent.features import Generation

OnText = Callable[[str], None]


async def written_in_thread(
    start: Callable[[OnText], Awaitable[Generation]],
) -> AsyncIterator[str | Generation]:
    """Pieces of text while they are written, then the whole answer.

    Args:
        start: begins the work; it gets the function to be told of each piece, from any thread,
            and returns what becomes the answer.
    """
    loop = asyncio.get_running_loop()
    pieces: asyncio.Queue[str | None] = asyncio.Queue()

    async def write() -> Generation:
        try:
            return await start(lambda text: _put(loop, pieces, text))
        finally:
            # Behind whatever the thread has handed over before.
            loop.call_soon(pieces.put_nowait, None)

    writing = asyncio.ensure_future(write())
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        yield await writing
    finally:
        writing.cancel()


def _put(loop: asyncio.AbstractEventLoop, pieces: asyncio.Queue[str | None], text: str) -> None:
    loop.call_soon_threadsafe(pieces.put_nowait, text)
