"""A process may end while its engine is at work."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_ENDS_WHILE_ASKED = """
import atexit, sys, threading
from agent.prompts import Task
from tests.unit.tiny_families import family_stage, random_features

def said():
    engines = [t.name for t in threading.enumerate() if t.name == "engine" and t.is_alive()]
    print("left", engines)

atexit.register(said)
stage = family_stage("llama")
features = random_features(stage._model.config, "frame", num_boxes=6)
for number in range(50):
    stage.start(features, Task.detect(f"thing {number}"))
sys.exit(2)
"""


def test_a_process_that_ends_leaves_no_step_under_way():
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", _ENDS_WHILE_ASKED],
        cwd=root,
        env=os.environ | {"PYTHONPATH": f"{root}{os.pathsep}{root / 'client'}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stdout) == (2, "left []\n"), ended.stderr
