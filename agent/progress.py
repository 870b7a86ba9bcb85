"""When a network's last layer came to its end: what tells computing from standing still.

A pass may take minutes on a slow machine, a layer of it does not; on one that is busy with other
things, a layer may, but it uses the processor meanwhile. Kept for the whole process, since a
replica runs one stage. Knows no network: loops over layers tell it.
"""

from __future__ import annotations

import math
import time

_COMPUTING_SHARE = 0.02
"""Of one processor; a process that waits uses less."""
_last_s = -math.inf
_last_processor_s = 0.0


def layer_done() -> None:
    """A layer of a network has come to its end."""
    global _last_s, _last_processor_s
    _last_s, _last_processor_s = time.monotonic(), time.process_time()


def still_since_s(began_s: float) -> float:
    """Seconds for which the process has stood still since a layer ended, or since `began_s`.

    Of one that computes the processor time counts, which other processes do not stretch.

    Args:
        began_s: when the work under way began, on `time.monotonic`'s clock.
    """
    since_s = time.monotonic() - max(began_s, _last_s)
    used_s = time.process_time() - _last_processor_s
    if _last_s >= began_s and used_s > _COMPUTING_SHARE * since_s:
        return min(used_s, since_s)
    return since_s
