"""Freed memory goes back to the system."""

from __future__ import annotations

import ctypes
import subprocess
import sys
import threading

import psutil
import pytest

from deployments.process_resources import MemoryTrimmer

SIZE = 40_000
"""Below the size from which glibc asks the system for single pieces."""
COUNT = 4_000
LARGE_MESSAGES = """
import ctypes, sys, threading
import psutil
from deployments.process_resources import unmap_large_blocks

libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
if sys.argv[1] == "at once":
    assert unmap_large_blocks()

def receive():
    # Twice, because the first block freed decides what becomes of the next ones. What is in use
    # behind them keeps an arena from being cut off there.
    for _ in range(2):
        large = [libc.malloc(17_000_000) for _ in range(3)]
        kept = libc.malloc(1000)
        for block in large:
            ctypes.memset(block, 1, 17_000_000)
            libc.free(block)

before = psutil.Process().memory_info().rss
threads = [threading.Thread(target=receive) for _ in range(3)]
for thread in threads:
    thread.start()
    thread.join()
print(psutil.Process().memory_info().rss - before)
"""
MANY_ROWS = """
import sys
from deployments.process_resources import bound_kernel_caches

if sys.argv[1] == "bounded":
    bound_kernel_caches(32)

import psutil, torch

torch.set_num_threads(1)
layers = [torch.nn.Linear(256, width, bias=False, dtype=torch.bfloat16) for width in (128, 512)]

def compute(rows):
    with torch.inference_mode():
        for number in rows:
            for layer in layers:
                layer(torch.zeros(1, number, 256, dtype=torch.bfloat16))

compute(range(1, 20))
before = psutil.Process().memory_info().rss
compute(range(20, 200))
print(psutil.Process().memory_info().rss - before)
"""


def test_it_is_done_again_and_again_until_it_is_closed() -> None:
    twice = threading.Semaphore(0)

    def trim(pad: int) -> int:
        assert pad == 0
        twice.release()
        return 1

    freed = MemoryTrimmer(0.001, trim)
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

    freed = MemoryTrimmer(0.01, trim)
    assert done.wait(10)
    freed.close()
    after = psutil.Process().memory_info().rss
    for piece in pieces[::10]:
        libc.free(piece)
    assert before - after > 0.5 * 0.9 * SIZE * COUNT


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_large_messages_leave_nothing_behind() -> None:
    def grown(how: str) -> int:
        command = [sys.executable, "-c", LARGE_MESSAGES, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert grown("later") > 17_000_000
    assert grown("at once") < 2_000_000


def test_kernels_for_every_number_of_rows_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY"):
        monkeypatch.delenv(name, raising=False)

    def grown_by(how: str) -> int:
        command = [sys.executable, "-c", MANY_ROWS, how]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    everything = grown_by("as it is")
    if everything < 20e6:
        pytest.skip("this processor's kernels do not depend on the number of rows")
    assert grown_by("bounded") < everything / 2
