"""All sinks of a runner: each with its queue on disk and its thread. Knows no cameras."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from groundstream.cameras.delivery import Delivery, Sink
from groundstream.cameras.outbox import Outbox, Record
from groundstream.cameras.settings import SinkSettings
from groundstream.cameras.sinks import open_sink
from groundstream.scene_events import EventKind

_LOG = logging.getLogger(__name__)


@dataclass
class Told:
    """One sink that is told."""

    settings: SinkSettings
    outbox: Outbox
    delivery: Delivery

    def wants(self, record: Record) -> bool:
        """Whether the record is one of those that it is told."""
        if record["type"] != "event":
            return self.settings.status
        kinds, kind = self.settings.kinds, record["event"]["kind"]
        # Who was told something must hear that it does not hold.
        return kinds is None or kind == EventKind.RETRACTED.value or EventKind(kind) in kinds


@dataclass(frozen=True)
class Prepared:
    """What has been opened for a change, so that nothing of it can fail any more."""

    sinks: dict[str, SinkSettings]
    opened: dict[str, Sink]
    outboxes: dict[str, Outbox]


class Telling:
    """The sinks; `tell` may be called from any thread."""

    def __init__(self, state: Path) -> None:
        """There are none.

        Args:
            state: the folder of the queues.
        """
        self._state = state
        self.told: dict[str, Told] = {}

    def tell(self, records: Sequence[Record], names: Collection[str] | None = None) -> None:
        """Hand records to the queues of the sinks that want them; waits for the disk.

        Args:
            records: what to tell.
            names: of the sinks; None: all.
        """
        for name, told in list(self.told.items()):
            if names is None or name in names:
                wanted = [record for record in records if told.wants(record)]
                if wanted:
                    told.outbox.put(wanted)

    def prepare(self, wanted: dict[str, SinkSettings]) -> Prepared:
        """Open what is new or another; nothing that runs is touched.

        Raises:
            SettingsError: one of them cannot be opened.
        """
        opened: dict[str, Sink] = {}
        outboxes: dict[str, Outbox] = {}
        try:
            for name, settings in wanted.items():
                running = self.told.get(name)
                if running is None:
                    outboxes[name] = Outbox(
                        self._state / f"sink-{name}.sqlite",
                        max_records=settings.max_records,
                        max_bytes=settings.max_bytes,
                    )
                if running is None or running.settings != settings:
                    opened[name] = open_sink(settings)
        except BaseException:
            for outbox in outboxes.values():
                outbox.close()
            raise
        return Prepared(wanted, opened, outboxes)

    def change(self, prepared: Prepared, grace_s: float) -> None:
        """Tell the prepared sinks from here on; blocks while others are stopped."""
        for name, sink in prepared.opened.items():
            settings, running = prepared.sinks[name], self.told.get(name)
            if running is None:
                outbox = prepared.outboxes[name]
            else:
                outbox = running.outbox
                running.delivery.stop(grace_s)
                outbox.limit(max_records=settings.max_records, max_bytes=settings.max_bytes)
            self.told[name] = Told(settings, outbox, Delivery(name, outbox, sink))
        self._stop([name for name in self.told if name not in prepared.sinks], grace_s)

    def stop(self, grace_s: float) -> None:
        """Deliver for so long at most; the rest stays on disk."""
        self._stop(list(self.told), grace_s)

    def _stop(self, names: Sequence[str], grace_s: float) -> None:
        gone = {name: self.told.pop(name) for name in names}
        if not gone:
            return
        with ThreadPoolExecutor(len(gone), "stopping") as threads:
            list(threads.map(lambda told: told.delivery.stop(grace_s), gone.values()))
        for name, told in gone.items():
            if waiting := told.outbox.books.waiting:
                _LOG.warning(
                    "sink %s: %d records wait on disk until a sink of this name is started again",
                    name, waiting,
                )  # fmt: skip
            told.outbox.close()
