"""What a process of ours does about its memory and its processor time.

Reads what it holds, gives freed memory back, fails one request instead of the process where memory
runs out, keeps the garbage collector away from what a start has made, and lowers the priority of
threads that compute. Never imports torch, so that a front end can use it as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import psutil

from groundstream.errors import Overloaded

TRIM_INTERVAL_S = 30.0
LARGE_BYTES = 1 << 20
KERNELS_KEPT = 128
"""Compiled kernels of one process: a decoder of one width has four for each number of rows."""
TRACKING = 8
"""Niceness of threads that track: the event loop has something small to do for every stream."""
FORWARD_PASS = 10
"""Niceness of a model's thread: the front end answers every frame on time and the model works
behind it."""

_LEAST_INTERVAL_S = 1.0
_RETRY_S = 1.0
_M_MMAP_THRESHOLD = -3
"""Of the C library's `mallopt`."""
_logger = logging.getLogger(__name__)

# ---- memory in use ----


@dataclass(frozen=True)
class ProcessMemory:
    """A reading of what a process holds."""

    process: str
    """Names the process among all machines: host:pid."""
    rss_bytes: int
    device_bytes: int
    """Reserved by torch's allocator on all of the process's devices."""


class MemoryReader:
    """Reads this process's memory, at most once a second."""

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
    """Zero where torch is not imported or no device was used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return 0
    return sum(torch.cuda.memory_reserved(device) for device in range(torch.cuda.device_count()))


# ---- freed memory ----


def unmap_large_blocks(least_bytes: int = LARGE_BYTES) -> bool:
    """From now on this process's large blocks are the system's own and go back when freed.

    For processes that hold a large message now and then. By itself glibc takes the first freed one
    as a reason to keep such blocks from then on, up to 32 MB each in every thread's arena. Each
    large block costs its page faults again, so this is not for those that compute on tensors.

    Returns:
        Whether the C library does so.
    """
    mallopt = _of_c_library("mallopt", ctypes.c_int, ctypes.c_int)
    return mallopt is not None and bool(mallopt(_M_MMAP_THRESHOLD, least_bytes))


class MemoryTrimmer:
    """Hands freed memory back every `interval_s`, from a thread that ends with `close`.

    A replica frees arrays of many sizes in many threads, and glibc's allocator returns what lies
    between those in use too seldom: the process grows every minute, though nothing is lost.
    """

    def __init__(
        self, interval_s: float = TRIM_INTERVAL_S, trim: Callable[[int], int] | None = None
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
            self._thread = threading.Thread(target=self._run, name="memory-trimmer", daemon=True)
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


def bound_kernel_caches(most: int = KERNELS_KEPT) -> None:
    """Have oneDNN keep so many compiled kernels; call it before torch is imported.

    A process has two caches of them, each with room for 1,024, and every number of rows that a
    product meets takes a kernel of its own (0.3 MB): a language model, whose passes have any number
    of rows, grows by hundreds of MB over hours. Compiling one anew takes 0.6 ms. Whoever runs the
    process may name other numbers in the environment.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(most))
    os.environ.setdefault("LRU_CACHE_CAPACITY", str(most))


# ---- too little memory ----


@contextlib.contextmanager
def out_of_memory_as_overloaded() -> Iterator[None]:
    """A request that runs out of memory inside raises Overloaded; the next one is answered.

    Turned into our own error inside the stage: torch's would make the front end import torch.
    """
    try:
        yield
    except Exception as error:
        if not _is_out_of_memory(error):
            raise
        _logger.warning("a request ran out of memory: %s", error)
        _free_device_memory()
        raise Overloaded(
            "the stage has too little memory for this request now; send a smaller picture, fewer "
            "boxes or queries, or try again later",
            retry_after_s=_RETRY_S,
        ) from None


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (
        torch is not None and isinstance(error, torch.OutOfMemoryError)
    )


def _free_device_memory() -> None:
    """Give back what torch keeps for later."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


# ---- garbage collection ----


def freeze_startup_objects() -> None:
    """Exempt all that exists now from garbage collection; called once, at the end of a start.

    Ray, torch and transformers leave some 200,000 objects, and each full collection would hold all
    threads while it walks over them.
    """
    # What is garbage already would stay for good.
    gc.collect()
    gc.freeze()


# ---- processor time ----


def lower_priority(niceness: int) -> None:
    """Lower the calling thread's priority; does nothing off Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
