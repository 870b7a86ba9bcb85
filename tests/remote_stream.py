"""A client in a process of its own, for a service that only another network namespace reaches.

This is the near end; the far end is `tests/distant_client.py`. They trust each other: what it saw
comes here pickled.
"""

from __future__ import annotations

import asyncio
import contextlib
import pickle
import struct
import sys
from pathlib import Path
from types import TracebackType

from tests.namespaces import Machine
from tests.stream_records import StreamRecord

LENGTH = struct.Struct("!I")
"""Before every pickle."""
_ROOT = Path(__file__).parents[1]


class RemoteStream:
    """One stream from `machine`; enter it, and all it has seen so far is in its record."""

    def __init__(self, machine: Machine, *front_ends: str) -> None:
        """Prepare it.

        Args:
            machine: where the client is to be.
            front_ends: IPv4 addresses and ports; the first that can be reached is taken.
        """
        self.record = StreamRecord()
        program = (sys.executable, "-m", "tests.distant_client")
        self._command = machine.command(*program, *front_ends)

    async def __aenter__(self) -> RemoteStream:
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdin=pipe, stdout=pipe, cwd=_ROOT
        )
        self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._reader.cancel()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    @property
    def is_running(self) -> bool:
        """False when the far end has ended, however."""
        return not self._reader.done()

    async def end(self) -> None:
        """Have the camera stop, and wait until all is answered."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._reader
        assert await self._process.wait() == 0

    async def _read(self) -> None:
        assert self._process.stdout is not None
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                (length,) = LENGTH.unpack(await self._process.stdout.readexactly(LENGTH.size))
                entry = pickle.loads(await self._process.stdout.readexactly(length))
                self.record.entries.append(entry)
