"""The processes of the service that a test's own process has started."""

from __future__ import annotations

import contextlib

import psutil


def replicas(deployment: str, *, of: int | None = None) -> list[psutil.Process]:
    """Those of one deployment that are alive now; `of`: see `named_processes`."""
    title = f"ServeReplica:groundstream:{deployment}"
    return [process for process, name in named_processes(of=of) if title in name]


def named_processes(*, of: int | None = None) -> list[tuple[psutil.Process, str]]:
    """All descendants that are alive now, each with its command line.

    Args:
        of: a process id; None: this process.
    """
    found = []
    for process in psutil.Process(of).children(recursive=True):
        # Any of them may end while it is looked at; the ended have no command line.
        with contextlib.suppress(psutil.NoSuchProcess):
            if name := " ".join(process.cmdline()):
                found.append((process, name))
    return found
