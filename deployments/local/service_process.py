"""A service of one's own, started as a child process and stopped without a trace.

For the demo, benchmarks and examples. Knows the command line of the service, not its inside.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

from agent.interrupts import uninterruptible
from deployments.local.process_session import replica_name
from groundstream.errors import StageUnavailable

_STOP_S = 40.0
_KILL_S = 5.0


@dataclass(frozen=True)
class Memory:
    """Memory of a process and everything it started."""

    rss_bytes: int
    """Sum of resident sizes; pages that processes share count once for each."""
    pss_bytes: int
    """Sum of proportional sizes; shared pages count once in all. Equals RSS off Linux."""
    num_processes: int


class ServiceProcess:
    """`groundstream serve` as a child; use it as a context manager."""

    def __init__(self, arguments: Sequence[str] = (), *, port: int | None = None) -> None:
        self._arguments = list(arguments)
        self._port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        """Where it listens, or will listen: host:port."""
        return f"127.0.0.1:{self._port}"

    def __enter__(self) -> ServiceProcess:
        command = [sys.executable, "-m", "deployments.cli", "serve", "--stop-with-parent"]
        # A session of its own: a Ctrl-C in the terminal is ours to pass on, in our order.
        self._process = subprocess.Popen(
            [*command, "--port", str(self._port), *self._arguments], start_new_session=True
        )
        return self

    def __exit__(self, *_error: object) -> None:
        self.stop()

    def check_running(self) -> None:
        """Raise StageUnavailable when the service has ended."""
        if self._process is not None and self._process.poll() is not None:
            raise StageUnavailable(
                f"the service ended with status {self._process.returncode}; see its messages above"
            )

    def memory(self) -> Memory:
        """Memory of the whole service now."""
        rss = pss = count = 0
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                info = process.memory_full_info()
                rss += info.rss
                pss += getattr(info, "pss", info.rss)
                count += 1
        return Memory(rss, pss, count)

    def replicas(self) -> dict[int, tuple[str, psutil.Process]]:
        """Replicas alive now by their process id: the deployment's name and the process."""
        found = {}
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                if (name := replica_name(process)) is not None:
                    found[process.pid] = (name, process)
        return found

    def rss_by_process(self) -> dict[str, float]:
        """Resident bytes of each kind of process, by how it calls itself."""
        return self._by_process(lambda process: process.memory_info().rss)

    def cpu_s_by_process(self) -> dict[str, float]:
        """Processor time of each kind of process, as `rss_by_process` calls them, in seconds."""
        return self._by_process(lambda process: sum(process.cpu_times()[:2]))

    def num_processes(self, name: str) -> int:
        """Processes of that name, as `rss_by_process` calls them."""
        return round(self._by_process(lambda _: 1.0).get(name, 0.0))

    def cpu_s(self) -> float:
        """Processor time of all its processes that are alive now, in seconds."""
        return sum(self.cpu_s_by_process().values())

    def stop(self) -> None:
        """Stop the service; when this returns, none of its processes is left."""
        if self._process is None:
            return
        with uninterruptible():
            tree = self._tree()
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=_STOP_S)
            for process in tree:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            psutil.wait_procs(tree, timeout=_KILL_S)
            self._process = None

    def _by_process(self, value: Callable[[psutil.Process], float]) -> dict[str, float]:
        found: dict[str, float] = {}
        for process in self._tree():
            with contextlib.suppress(psutil.Error):
                name = replica_name(process) or str(process.name())
                found[name] = found.get(name, 0.0) + value(process)
        return found

    def _tree(self) -> list[psutil.Process]:
        if self._process is None:
            return []
        try:
            top = psutil.Process(self._process.pid)
            return [top, *top.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []


_given_ports: set[int] = set()


def free_port() -> int:
    """A loopback port nobody listens on, and another one at every call."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port not in _given_ports:
            _given_ports.add(port)
            return port
