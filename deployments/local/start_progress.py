"""How far the replicas of a service are with their start, seen from outside.

A replica that loads weights or computes its first frame answers nobody, but it uses its processor
or fills its memory; one that stands still does neither. Read from the system, so that it is true
of every stage, whatever it runs.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from agent.model_directory import EMBEDDED, find_model
from agent.settings import ServiceSettings
from deployments.local.process_session import members, replica_name
from groundstream.errors import AgentError

_LOOK_S = 2.0
_REPORT_S = 10.0
_BUSY_SHARE = 0.05
"""Of one processor, used by all replicas together; idle ones use a tenth of it."""
_LEAST_GROWTH = 4 << 20
_GIB = 1 << 30
_PROCESS_BYTES = 400 << 20
"""What a replica holds besides its weights."""
_WORTH_TELLING = 2 * _GIB


@dataclass(frozen=True)
class Effort:
    """What the replicas of a service have done so far."""

    processor_s: float = 0.0
    memory: tuple[tuple[str, int], ...] = ()
    """Name and resident bytes of each replica."""

    @property
    def num_bytes(self) -> int:
        """Resident memory of all."""
        return sum(size for _, size in self.memory)


def effort_of(session: int) -> Effort:
    """Of the replicas among the processes of a session."""
    processor_s, memory = 0.0, []
    for pid in members(session):
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            if (name := replica_name(process)) is not None:
                times = process.cpu_times()
                processor_s += times.user + times.system
                memory.append((name, int(process.memory_info().rss)))
    return Effort(processor_s, tuple(sorted(memory)))


class StartProgress:
    """Watches a start; safe to ask from any thread."""

    def __init__(
        self,
        effort: Callable[[], Effort],
        *,
        patience_s: float,
        report: Callable[[str], object],
        weight_bytes: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Begin to watch.

        Args:
            effort: reads what was done so far.
            patience_s: a start that stands still for longer has failed.
            report: told now and then how far it is.
            weight_bytes: what the weights take in the replicas' memory; None: not known.
            clock: seconds.
        """
        self._effort = effort
        self._patience_s = patience_s
        self._report = report
        self._weight_bytes = weight_bytes
        self._clock = clock
        self._began_s = self._moved_s = self._looked_s = self._told_s = clock()
        self._last = Effort()

    @property
    def left_s(self) -> float:
        """Seconds after which the start has failed, unless something moves before."""
        return self._patience_s - (self._clock() - self._moved_s)

    def look(self) -> None:
        """Read what was done since the last look."""
        now_s, found = self._clock(), self._effort()
        used_s = found.processor_s - self._last.processor_s
        grown = found.num_bytes - self._last.num_bytes
        if used_s > _BUSY_SHARE * (now_s - self._looked_s) or grown > _LEAST_GROWTH:
            self._moved_s = now_s
        self._last, self._looked_s = found, now_s
        if now_s - self._told_s >= _REPORT_S and found.memory:
            self._told_s = now_s
            self._report(self._line(now_s))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Look every two seconds while inside."""
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(_LOOK_S):
                self.look()

        thread = threading.Thread(target=watch, name="start progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()

    def _line(self, now_s: float) -> str:
        held = ", ".join(f"{name} {size / _GIB:.1f}" for name, size in self._last.memory)
        whole = ""
        if self._weight_bytes is not None and self._weight_bytes > _WORTH_TELLING:
            all_bytes = self._weight_bytes + len(self._last.memory) * _PROCESS_BYTES
            whole = f" of about {all_bytes / _GIB:.1f}"
        return (
            f"still starting after {now_s - self._began_s:.0f} s: "
            f"{self._last.num_bytes / _GIB:.1f}{whole} GiB in memory ({held}), "
            f"{self._last.processor_s:.0f} s of processor time"
        )


def weights_in_memory(settings: ServiceSettings) -> int | None:
    """Bytes that the model's weights will take in the replicas' own memory; None: not known."""
    # Embedded models have no files in the published layout, and start sooner without torch here.
    if settings.device != "cpu" or settings.model in EMBEDDED:
        return None
    from agent.model_needs import model_needs

    try:
        folder: Path = find_model(settings.model).path
        return model_needs(folder, device=settings.device, dtype=settings.dtype).weight_bytes
    except AgentError:
        return None
