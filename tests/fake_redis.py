"""Something at Redis' port that is not well: slow, or answering garbage."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator
from enum import Enum


class Illness(Enum):
    """What it does with every command."""

    GARBAGE = "bytes that are no reply"
    WRONG_VALUES = "a value of random bytes, whatever was asked"
    SILENT = "no reply at all"
    HANGS_UP = "the connection is closed"


@contextlib.asynccontextmanager
async def ill_redis(port: int, illness: Illness) -> AsyncIterator[None]:
    """Listens at a port; reads whatever comes."""
    dice = random.Random(5)

    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        with contextlib.suppress(OSError):
            while await reader.read(65_536) and illness is not Illness.HANGS_UP:
                if illness is Illness.GARBAGE:
                    writer.write(dice.randbytes(40) + b"\r\n")
                elif illness is Illness.WRONG_VALUES:
                    writer.write(b"$64\r\n" + dice.randbytes(64) + b"\r\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield
    finally:
        server.close()
        for writer in writers:
            writer.close()
        # Transports close in the loop's next turn.
        await asyncio.sleep(0)
