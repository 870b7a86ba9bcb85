"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import sys
import threading

import psutil
import pytest

from deployments.freed_memory import FreedMemory

SIZE = 40_000
"""Below the size from which glibc asks the system for single pieces."""
COUNT = 4_000


def test_it_is_done_again_and_again_until_it_is_closed() -> None:
    twice = threading.Semaphore(0)

    def trim(pad: int) -> int:
        assert pad == 0
        twice.release()
        return 1

    freed = FreedMemory(0.001, trim)
    assert twice.acquire(timeout=10)
    assert twice.acquire(timeout=10)
    freed.close()
    while twice.acquire(blocking=False):
        pass
    assert not twice.acquire(timeout=0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_what_lies_between_pieces_in_use_is_given_back() -> None:
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    pieces = [libc.malloc(SIZE) for _ in range(COUNT)]
    for piece in pieces:
        ctypes.memset(piece, 1, SIZE)
    # Every tenth stays, so that nothing at the end can simply be cut off.
    for number, piece in enumerate(pieces):
        if number % 10:
            libc.free(piece)
    before = psutil.Process().memory_info().rss
    done = threading.Event()

    def trim(pad: int) -> int:
        said = int(libc.malloc_trim(pad))
        done.set()
        return said

    freed = FreedMemory(0.01, trim)
    assert done.wait(10)
    freed.close()
    after = psutil.Process().memory_info().rss
    for piece in pieces[::10]:
        libc.free(piece)
    assert before - after > 0.5 * 0.9 * SIZE * COUNT
