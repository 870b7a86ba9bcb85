"""Who runs first where processors are short: niceness of single threads, as Linux has it."""

from __future__ import annotations

import os
import sys
import threading

LOOK = 8
"""Looking at a picture: the event loop has something small to do for every stream."""
FORWARD_PASS = 10
"""A model computes: the front end answers every frame on time and the model works behind it."""


def give_way(niceness: int) -> None:
    """Lower the calling thread's priority; does nothing off Linux."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
