"""A network between a client and a service on loopback that fails when told to."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import AsyncIterator


class FaultProxy:
    """Carries bytes both ways; a test decides what becomes of them."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._links: set[asyncio.StreamWriter] = set()
        self._refuses = False
        self._num_to_corrupt = 0
        self._dice = random.Random(7)
        self.address = ""

    def stall(self) -> None:
        """Nothing passes from now on, and nobody is told."""
        self._flowing.clear()

    def flow(self) -> None:
        """All passes again, what waited first."""
        self._flowing.set()
        self._refuses = False

    def cut(self, *, refuse: bool = False) -> None:
        """All connections are reset; with `refuse` new ones are, too, until `flow`."""
        self._refuses = refuse
        for link in self._links:
            link.transport.abort()

    def corrupt(self, num_chunks: int) -> None:
        """One bit of each of the next chunks arrives the other way round."""
        self._num_to_corrupt = num_chunks

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            return
        with contextlib.suppress(OSError):
            behind_reader, behind = await asyncio.open_connection(*self._target)
            self._links |= {writer, behind}
            await asyncio.gather(
                self._carry(reader, behind), self._carry(behind_reader, writer),
                return_exceptions=True,
            )  # fmt: skip
            self._links -= {writer, behind}

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65_536):
                await self._flowing.wait()
                if self._num_to_corrupt:
                    self._num_to_corrupt -= 1
                    at = self._dice.randrange(len(chunk))
                    chunk = chunk[:at] + bytes([chunk[at] ^ 0x10]) + chunk[at + 1 :]
                writer.write(chunk)
                await writer.drain()
        finally:
            writer.transport.abort()


@contextlib.asynccontextmanager
async def fault_proxy(target: str) -> AsyncIterator[FaultProxy]:
    """A proxy before a service, by its address."""
    proxy = FaultProxy(target)
    server = await asyncio.start_server(proxy._connected, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    proxy.address = f"{host}:{port}"
    try:
        yield proxy
    finally:
        server.close()
        proxy.flow()
        proxy.cut()
