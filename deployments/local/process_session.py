"""All processes of one POSIX session: found by its id, whatever their parents are by now.

What starts many processes (Ray, Valkey) is run as the leader of a session of its own. Its
children may outlive it, but they cannot leave the session by accident.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

import psutil

_POLL_S = 0.05


def members(session: int) -> list[int]:
    """Process ids of a session, without the caller and without the dead not yet collected."""
    return [pid for pid in psutil.pids() if pid != os.getpid() and _is_member(pid, session)]


def _is_member(pid: int, session: int) -> bool:
    try:
        alive = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
        return alive and os.getsid(pid) == session
    except (OSError, psutil.Error):
        return False


def replica_name(process: psutil.Process) -> str | None:
    """The deployment of which a process is a replica; None: of none.

    Raises:
        psutil.Error: the process is gone, or not ours to see.
    """
    title: str = next(iter(process.cmdline()), "")
    # ray::ServeReplica:<application>:<deployment>, and perhaps .<what it does just now>.
    if not title.startswith("ray::ServeReplica:"):
        return None
    return title.rpartition(":")[2].partition(".")[0]


def kill(session: int, *, timeout_s: float = 10.0) -> None:
    """Kill all processes of a session, also those born meanwhile; not the caller."""
    deadline_s = time.monotonic() + timeout_s
    while (found := members(session)) and time.monotonic() < deadline_s:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_S)
