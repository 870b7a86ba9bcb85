"""What waits for one sink: a bounded queue on disk, with books that close over a restart.

    accepted = delivered + refused + overflowed + waiting

Records are numbered from 1 and leave in that order. When too much waits the oldest make room; they
are counted, and the receiver is told of them by a record of its own in the place where they would
have been. While the disk takes nothing, a bounded number of records is kept in memory.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from groundstream.errors import SettingsError

_LOG = logging.getLogger(__name__)
_MAX_HELD = 1000
"""Records in memory while the disk takes nothing."""
_SAY_AGAIN_S = 60.0
Record = dict[str, Any]


@dataclass(frozen=True)
class Waiting:
    """One record as it is sent."""

    number: int
    """0: it tells of records that were lost, and is none of them."""
    body: bytes


@dataclass
class Gap:
    """Records that made room for newer ones and that the receiver does not know of yet."""

    first: int = 0
    last: int = 0
    count: int = 0

    def add(self, first: int, last: int, count: int) -> None:
        """More of them."""
        self.first = min(self.first or first, first)
        self.last = max(self.last, last)
        self.count += count

    def body(self) -> bytes:
        """The record that tells of them."""
        return _encoded(
            {
                "id": f"lost-{self.first}-{self.last}", "number": 0, "type": "lost",
                "time_ns": time.time_ns(), "first_number": self.first, "last_number": self.last,
                "count": self.count,
            }
        )  # fmt: skip


@dataclass
class Books:
    """What became of the records of one sink, over all runs."""

    accepted: int = 0
    delivered: int = 0
    refused: int = 0
    """The receiver does not want them, and never will."""
    overflowed: int = 0
    settled: int = 0
    """The number up to which all have left."""

    @property
    def waiting(self) -> int:
        """Records that are still to be sent."""
        return self.accepted - self.delivered - self.refused - self.overflowed


class Outbox:
    """One sink's queue; all methods may be called from any thread."""

    def __init__(self, path: Path, *, max_records: int, max_bytes: int) -> None:
        """Open it, with what an earlier run has left.

        Args:
            path: a file of its own; a damaged one is put aside.
            max_records: more may not wait.
            max_bytes: of the waiting records.

        Raises:
            SettingsError: the file cannot be made.
        """
        self._path = path
        self._max_records, self._max_bytes = max_records, max_bytes
        self._changed = threading.Condition()
        self._held: deque[Waiting] = deque()
        self._in_flight = 0
        """The last number that was handed out and not settled."""
        self._gap, self._gap_in_flight = Gap(), Gap()
        self._is_saving, self._said_s = True, 0.0
        try:
            self._database = self._open()
        except sqlite3.DatabaseError as error:
            if isinstance(error, sqlite3.OperationalError):
                raise SettingsError(f"{path} cannot be written: {error}") from None
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            os.replace(path, aside)
            _LOG.error("%s is damaged; put aside as %s, what waited in it is lost", path, aside)
            self._database = self._open()
        saved = self._database.execute("SELECT books, gap FROM state").fetchone()
        self._books = Books(**json.loads(saved[0])) if saved else Books()
        self._gap = Gap(**json.loads(saved[1])) if saved else Gap()
        count = self._database.execute(
            "SELECT COUNT(*), COALESCE(SUM(LENGTH(body)), 0) FROM records WHERE number > ?",
            (self._books.settled,),
        )
        self._num_saved, self._num_bytes = count.fetchone()

    def _open(self) -> sqlite3.Connection:
        database = sqlite3.connect(self._path, check_same_thread=False, isolation_level=None)
        try:
            # A killed process loses nothing so, and no record waits for the disk to turn; a power
            # cut may take the last moments.
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=NORMAL")
            database.execute(
                "CREATE TABLE IF NOT EXISTS records (number INTEGER PRIMARY KEY, body BLOB)"
            )
            database.execute(
                "CREATE TABLE IF NOT EXISTS state (id INTEGER PRIMARY KEY, books TEXT, gap TEXT)"
            )
        except sqlite3.Error:
            database.close()
            raise
        return database

    def limit(self, *, max_records: int, max_bytes: int) -> None:
        """Other bounds from here on."""
        with self._changed:
            self._max_records, self._max_bytes = max_records, max_bytes

    def put(self, records: Sequence[Record]) -> None:
        """Take records over; they get their numbers here. Never fails and never loses silently."""
        with self._changed:
            for record in records:
                self._books.accepted += 1
                numbered = {**record, "number": self._books.accepted}
                self._held.append(Waiting(self._books.accepted, _encoded(numbered)))
            self._save()
            self._changed.notify_all()

    def peek(self, limit: int) -> list[Waiting]:
        """The next records to send; they stay until `done`."""
        with self._changed:
            if self._held:
                self._save()
            found = []
            if self._gap.count or self._gap_in_flight.count:
                if self._gap.count:
                    self._gap_in_flight.add(self._gap.first, self._gap.last, self._gap.count)
                    self._gap = Gap()
                found.append(Waiting(0, self._gap_in_flight.body()))
            with contextlib.suppress(sqlite3.Error):
                rows = self._database.execute(
                    "SELECT number, body FROM records WHERE number > ? ORDER BY number LIMIT ?",
                    (self._books.settled, limit),
                )
                found += [Waiting(number, body) for number, body in rows]
            if len(found) < limit:
                found += [record for record in self._held if record.number > self._books.settled]
            found = found[:limit]
            self._in_flight = max((record.number for record in found), default=0)
            return found

    def done(self, records: Sequence[Waiting], *, refused: bool = False) -> None:
        """The first of what `peek` gave have left, in its order.

        Args:
            records: the ones that have.
            refused: the receiver does not want them.
        """
        with self._changed:
            for record in records:
                if record.number == 0:
                    self._gap_in_flight = Gap()
                    continue
                if self._held and self._held[0].number == record.number:
                    self._held.popleft()
                else:
                    self._num_saved -= 1
                    self._num_bytes -= len(record.body)
                self._books.settled = record.number
                if refused:
                    self._books.refused += 1
                else:
                    self._books.delivered += 1
            self._in_flight = 0
            self._save()

    def wait(self, timeout_s: float) -> None:
        """Until there is something to send, or so long."""
        with self._changed:
            if not self._books.waiting and not self._gap.count:
                self._changed.wait(timeout_s)

    def wake(self) -> None:
        """End a `wait` of another thread."""
        with self._changed:
            self._changed.notify_all()

    @property
    def books(self) -> Books:
        """A copy of the counts."""
        with self._changed:
            return replace(self._books)

    @property
    def num_unsaved(self) -> int:
        """Records that only memory holds, because the disk takes nothing."""
        with self._changed:
            return len(self._held)

    def close(self) -> None:
        """Save what can be saved; what cannot is counted as overflowed."""
        with self._changed:
            self._save()
            if self._held:
                self._drop_held(0)
                _LOG.error("%s: the disk took nothing until the end", self._path)
                self._save()
            self._database.close()

    # ---- with the lock held ----

    def _save(self) -> None:
        self._drop_held(_MAX_HELD)
        too_many = self._oldest_to_drop()
        dropped_before = replace(self._books), replace(self._gap)
        if too_many:
            self._books.overflowed += len(too_many)
            self._gap.add(too_many[0][0], too_many[-1][0], len(too_many))
            self._say(f"more than it may hold waits; {len(too_many)} of the oldest made room")
        unknown = replace(self._gap)
        if self._gap_in_flight.count:
            in_flight = self._gap_in_flight
            unknown.add(in_flight.first, in_flight.last, in_flight.count)
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.execute("DELETE FROM records WHERE number <= ?", (self._books.settled,))
            self._database.executemany(
                "DELETE FROM records WHERE number = ?", [(number,) for number, _ in too_many]
            )
            self._database.executemany(
                "INSERT INTO records VALUES (?, ?)",
                [(record.number, record.body) for record in self._held],
            )
            self._database.execute(
                "INSERT OR REPLACE INTO state VALUES (1, ?, ?)",
                (json.dumps(asdict(self._books)), json.dumps(asdict(unknown))),
            )
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            with contextlib.suppress(sqlite3.Error):
                self._database.execute("ROLLBACK")
            self._books, self._gap = dropped_before
            self._is_saving = False
            self._say(f"the disk takes nothing ({error}); {len(self._held)} wait in memory")
            return
        if not self._is_saving:
            self._is_saving = True
            _LOG.warning("%s: the disk takes records again", self._path)
        self._num_saved += len(self._held) - len(too_many)
        self._num_bytes += sum(len(record.body) for record in self._held)
        self._num_bytes -= sum(size for _, size in too_many)
        self._held.clear()

    def _oldest_to_drop(self) -> list[tuple[int, int]]:
        """Numbers and sizes of the oldest saved records that must make room for the held ones."""
        count = self._num_saved + len(self._held) - self._max_records
        size = self._num_bytes + sum(len(record.body) for record in self._held) - self._max_bytes
        found: list[tuple[int, int]] = []
        if count <= 0 and size <= 0:
            return found
        # What is being sent right now stays: it would be told as lost and arrive.
        after = max(self._books.settled, self._in_flight)
        with contextlib.suppress(sqlite3.Error):
            for number, length in self._database.execute(
                "SELECT number, LENGTH(body) FROM records WHERE number > ? ORDER BY number",
                (after,),
            ):
                if count <= len(found) and size <= 0:
                    break
                found.append((number, length))
                size -= length
        return found

    def _drop_held(self, most: int) -> None:
        held = [record for record in self._held if record.number > self._in_flight]
        dropped = held[: max(0, len(held) - most)]
        if not dropped:
            return
        gone = {record.number for record in dropped}
        self._held = deque(record for record in self._held if record.number not in gone)
        self._books.overflowed += len(dropped)
        self._gap.add(dropped[0].number, dropped[-1].number, len(dropped))
        self._say(f"memory is full, too; {len(dropped)} of the oldest are lost")

    def _say(self, words: str) -> None:
        if time.monotonic() - self._said_s >= _SAY_AGAIN_S or not self._said_s:
            self._said_s = time.monotonic()
            _LOG.warning("%s: %s", self._path, words)


def _encoded(record: Record) -> bytes:
    return json.dumps(record, ensure_ascii=False, allow_nan=False).encode()
