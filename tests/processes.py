"""The processes of the service that a test's own process has started."""

from __future__ import annotations

import contextlib

import psutil


def replicas(deployment: str) -> list[psutil.Process]:
    """Those of one deployment that are alive now."""
    title = f"ServeReplica:groundstream:{deployment}"
    return [process for process, name in named_processes() if title in name]


def named_processes() -> list[tuple[psutil.Process, str]]:
    """All descendants that are alive now, each with its command line."""
    found = []
    for process in psutil.Process().children(recursive=True):
        # Any of them may end while it is looked at; the ended have no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            if name := " ".join(process.cmdline()):
                found.append((process, name))
    return found
