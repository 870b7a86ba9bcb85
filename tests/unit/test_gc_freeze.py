"""Objects of a process's start: kept, and left alone by the garbage collector."""

from __future__ import annotations

import json
import subprocess
import sys

PROGRAM = """
import gc, json, weakref
from deployments.process_resources import freeze_startup_objects

class Node:
    pass

gc.disable()
kept = [[] for _ in range(100_000)]
garbage = Node()
garbage.itself = garbage
gone = weakref.ref(garbage)
del garbage
before = len(gc.get_objects())
freeze_startup_objects()
after = len(gc.get_objects())
later = Node()
later.itself = later
later_gone = weakref.ref(later)
del later
gc.collect()
print(json.dumps([before, after, len(kept), gone() is None, later_gone() is None]))
"""


def test_only_what_comes_later_is_looked_at() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True)
    before, after, num_kept, is_old_garbage_gone, is_new_garbage_gone = json.loads(ran.stdout)
    assert before > 100_000
    assert after < 1_000
    assert num_kept == 100_000
    assert is_old_garbage_gone
    assert is_new_garbage_gone
