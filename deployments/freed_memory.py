"""Hands freed memory back to the system, which glibc's allocator does by itself too seldom.

A replica frees arrays of many sizes in many threads. What is left between those in use stays with
the process, more of it every minute, though nothing is lost. Knows nothing of what is allocated.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from typing import Any

INTERVAL_S = 30.0
LARGE_BYTES = 1 << 20
_M_MMAP_THRESHOLD = -3
"""Of the C library's `mallopt`."""


def return_large_at_once(least_bytes: int = LARGE_BYTES) -> bool:
    """From now on this process's large blocks are the system's own and go back when freed.

    For processes that hold a large message now and then. By itself glibc takes the first freed one
    as a reason to keep such blocks from then on, up to 32 MB each in every thread's arena. Each
    large block costs its page faults again, so this is not for those that compute on tensors.

    Returns:
        Whether the C library does so.
    """
    mallopt = _of_c_library("mallopt", ctypes.c_int, ctypes.c_int)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, least_bytes))


class FreedMemory:
    """Hands it back every `interval_s`, from a thread that ends with the process or `close`."""

    def __init__(
        self, interval_s: float = INTERVAL_S, trim: Callable[[int], int] | None = None
    ) -> None:
        """Start; does nothing where the C library is not glibc.

        Args:
            trim: stands in for the C library's `malloc_trim`.
        """
        self._interval_s = interval_s
        self._closed = threading.Event()
        self._trim = trim or _of_c_library("malloc_trim", ctypes.c_size_t)
        self._thread: threading.Thread | None = None
        if self._trim is not None:
            self._thread = threading.Thread(target=self._run, name="freed-memory", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        assert self._trim is not None
        while not self._closed.wait(self._interval_s):
            # Without the interpreter's lock: other threads wait for single arenas at most.
            self._trim(0)


def _of_c_library(name: str, *arguments: Any) -> Callable[..., int] | None:
    """Its function of this name; None where it is not glibc."""
    function = getattr(ctypes.CDLL(None), name, None)
    if function is not None:
        function.argtypes, function.restype = arguments, ctypes.c_int
    return function
