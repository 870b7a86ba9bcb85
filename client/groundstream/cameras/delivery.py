"""Brings what waits in an outbox to its sink, in order, for as long as that takes.

Knows no kind of sink: `groundstream/cameras/sinks.py` makes them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Protocol

from groundstream.cameras.outbox import Outbox, Waiting
from groundstream.pauses import growing_pause_s

_LOG = logging.getLogger(__name__)
_BATCH = 20
_FIRST_PAUSE_S = 0.5
_MAX_PAUSE_S = 60.0
_LOOK_S = 1.0
_SLICE_S = 0.2
"""How long a stop may go unnoticed while nothing is sent."""


class SinkAway(Exception):
    """Nothing can be delivered now; try again later."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        """The receiver asks for so long a pause."""


class RecordRefused(Exception):
    """The receiver does not want the first of the records, and will not want it later."""


class Sink(Protocol):
    """Somebody who is told."""

    def send(self, records: Sequence[Waiting]) -> int:
        """Deliver the first of some records; returns of how many the receiver has said so.

        Raises:
            SinkAway: it could deliver none.
            RecordRefused: see there.
        """

    def close(self) -> None:
        """Let go of the receiver."""


def pause_s(failures: int) -> float:
    """The pause after so many failures in a row, from 1: doubling to a minute."""
    return growing_pause_s(failures, first_s=_FIRST_PAUSE_S, most_s=_MAX_PAUSE_S)


class Delivery:
    """A thread that sends, and pauses for longer and longer while the receiver is away."""

    def __init__(self, name: str, outbox: Outbox, sink: Sink) -> None:
        """Begin to send; nobody else takes from the outbox, and the sink belongs to it."""
        self.name, self.outbox = name, outbox
        self.num_failures = 0
        """Attempts that delivered nothing."""
        self.is_away = False
        self._sink = sink
        self._stopping = threading.Event()
        self._stop_at_s = 0.0
        self._is_abandoned = False
        self._thread = threading.Thread(target=self._run, name=f"sink {name}", daemon=True)
        self._thread.start()

    def stop(self, grace_s: float) -> None:
        """Send what waits for so long at most; what is left stays in the outbox."""
        self._stop_at_s = time.monotonic() + grace_s
        self._stopping.set()
        self.outbox.wake()
        self._thread.join(grace_s + _LOOK_S)
        # A receiver that keeps the thread waiting still keeps it; what it takes now is sent again.
        self._is_abandoned = self._thread.is_alive()
        self._sink.close()

    def _run(self) -> None:
        failures = 0
        while not self._is_over():
            batch = self.outbox.peek(_BATCH)
            if not batch:
                if self._stopping.is_set():
                    return
                self.outbox.wait(_LOOK_S)
                continue
            try:
                sent = self._sink.send(batch)
                if self._is_abandoned:
                    return
            except RecordRefused as error:
                _LOG.error(
                    "sink %s refuses record %d and will not get it: %s",
                    self.name, batch[0].number, error,
                )  # fmt: skip
                self.outbox.done(batch[:1], refused=True)
            except SinkAway as error:
                failures += 1
                self._lost(failures, str(error))
                self._pause(max(pause_s(failures), error.retry_after_s or 0.0))
                continue
            except Exception as error:
                # A bug of ours must not end the telling; nothing is lost by trying again.
                failures += 1
                _LOG.exception("sink %s", self.name)
                self._lost(failures, f"{type(error).__name__}")
                self._pause(pause_s(failures))
                continue
            else:
                self.outbox.done(batch[:sent])
            if self.is_away:
                self.is_away = False
                _LOG.warning("sink %s takes records again", self.name)
            failures = 0

    def _lost(self, failures: int, reason: str) -> None:
        self.num_failures += 1
        if not self.is_away:
            self.is_away = True
            _LOG.warning("sink %s takes nothing: %s; trying again for ever", self.name, reason)
        else:
            _LOG.info("sink %s takes nothing, attempt %d: %s", self.name, failures, reason)

    def _pause(self, length_s: float) -> None:
        until_s = time.monotonic() + length_s
        while not self._stopping.is_set() and (left_s := until_s - time.monotonic()) > 0:
            self._stopping.wait(left_s)
        if self._stopping.is_set():
            time.sleep(_SLICE_S)  # One or two more attempts within the grace.

    def _is_over(self) -> bool:
        return self._stopping.is_set() and time.monotonic() >= self._stop_at_s
