"""What this process holds: resident memory, and device memory where torch has any.

Never imports torch, so that the front end can ask as well; reads at most once a second.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from dataclasses import dataclass

import psutil

_LEAST_INTERVAL_S = 1.0


@dataclass(frozen=True)
class ProcessMemory:
    """A reading."""

    process: str
    """Names the process among all machines: host:pid."""
    rss_bytes: int
    device_bytes: int
    """Reserved by torch's allocator on all of the process's devices."""


class MemoryReader:
    """Reads for one process."""

    def __init__(self) -> None:
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._process = psutil.Process()
        self._read_s = 0.0
        self._last: ProcessMemory | None = None

    def read(self) -> ProcessMemory:
        """The last reading, or a new one when it is too old."""
        now_s = time.monotonic()
        if self._last is None or now_s - self._read_s >= _LEAST_INTERVAL_S:
            rss_bytes = int(self._process.memory_info().rss)
            self._last = ProcessMemory(self._name, rss_bytes, _device_bytes())
            self._read_s = now_s
        return self._last


def _device_bytes() -> int:
    """Zero where nobody has imported torch or used a device."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))
