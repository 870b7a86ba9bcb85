"""Two machines that are network namespaces of this one, joined by one cable and to nothing else.

Whatever runs in one sees its own loopback and the cable alone, and may be killed all at once, as
when the power goes. Knows no Ray.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass

_POLL_S = 0.05
_KILL_S = 20.0
_CABLE = "cable"


class NamespacesUnavailable(Exception):
    """This machine makes no network namespaces for us; says why."""


@dataclass(frozen=True)
class Machine:
    """One namespace."""

    name: str
    address: str

    def command(self, *command: str) -> list[str]:
        """The same command, run on that machine."""
        return ["ip", "netns", "exec", self.name, *command]

    def pids(self) -> list[int]:
        """All processes on it, whoever their parents are by now."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def unplug(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        _ip("-n", self.name, "link", "set", _CABLE, "down")

    def kill(self) -> None:
        """`kill -9` of everything on it, also of what is born meanwhile."""
        deadline_s = time.monotonic() + _KILL_S
        while pids := self.pids():
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline_s, f"{self.name} cannot be killed"
            time.sleep(_POLL_S)


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Made, and taken away with all that runs on them.

    Raises:
        NamespacesUnavailable: not root, no iproute2, or a kernel without namespaces.
    """
    machines = tuple(
        Machine(f"groundstream-{os.getpid()}-{letter}", f"10.0.0.{number}")
        for number, letter in ((1, "a"), (2, "b"))
    )
    first, second = machines
    with contextlib.ExitStack() as stack:
        for machine in machines:
            _ip("netns", "add", machine.name)
            # Dead processes may keep a namespace a little longer; its name goes at once.
            stack.callback(_ip, "netns", "delete", machine.name)
            stack.callback(machine.kill)
        ends = ("type", "veth", "peer", "name", _CABLE, "netns", second.name)
        _ip("-n", first.name, "link", "add", _CABLE, *ends)
        for machine, other in ((first, second), (second, first)):
            _ip("-n", machine.name, "link", "set", "lo", "up")
            _ip("-n", machine.name, "address", "add", f"{machine.address}/24", "dev", _CABLE)
            _ip("-n", machine.name, "link", "set", _CABLE, "up")
            # Leads nowhere; without it programs do not find out their own address.
            _ip("-n", machine.name, "route", "add", "default", "via", other.address)
        yield first, second


def _ip(*arguments: str) -> str:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
    except OSError as error:
        raise NamespacesUnavailable(f"there is no iproute2: {error.strerror}") from error
    except subprocess.CalledProcessError as error:
        reason = f"ip {' '.join(arguments)}: {error.stderr.strip()}"
        raise NamespacesUnavailable(reason) from error
    return done.stdout
