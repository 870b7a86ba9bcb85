"""Peak resident memory of a piece of work, from Linux's own high-water mark."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

_PROCESS = Path("/proc/self")


def peak_added_bytes(work: Callable[[], object]) -> int:
    """How far resident memory rises above its start while `work` runs.

    A child inherits its parent's high-water mark, so the mark is reset first.
    """
    (_PROCESS / "clear_refs").write_text("5")
    before = _status("VmRSS")
    kept = work()
    peak = _status("VmHWM")
    del kept
    return peak - before


def _status(name: str) -> int:
    for line in (_PROCESS / "status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(name)
