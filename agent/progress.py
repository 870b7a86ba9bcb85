"""When a network's last layer came to its end: what tells computing from standing still.

A pass may take minutes on a slow machine, a layer of it does not. Kept for the whole process, since
a replica runs one stage. Knows no network: loops over layers tell it.
"""

from __future__ import annotations

import math
import time

_last_s = -math.inf


def layer_done() -> None:
    """A layer of a network has come to its end."""
    global _last_s
    _last_s = time.monotonic()


def still_since_s(began_s: float) -> float:
    """Seconds since the last layer that ended after `began_s`, or since then.

    Args:
        began_s: when the work under way began, on `time.monotonic`'s clock.
    """
    return time.monotonic() - max(began_s, _last_s)
