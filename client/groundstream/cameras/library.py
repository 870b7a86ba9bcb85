"""The folder of snapshots and clips: what is in it is whole, listed, and removed in its time.

Only files that are in the list are ever removed, and of these only those that still are as they
were written. Knows neither events nor videos.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from groundstream.errors import SettingsError, reason_of

_LOG = logging.getLogger(__name__)
_DAY_S = 86_400.0
_PARTIAL = ".partial-"


@dataclass
class LibraryBooks:
    """What became of the files of this run, and what is there now."""

    num_written: int = 0
    num_failed: int = 0
    num_removed: int = 0
    """Because they were too old, or too many."""
    num_changed: int = 0
    """Not ours any more: somebody else changed or removed them."""
    num_files: int = 0
    num_bytes: int = 0


class Library:
    """One folder; all methods may be called from any thread."""

    def __init__(self, folder: Path, listing: Path, *, keep_days: float, keep_bytes: int) -> None:
        """Open it.

        Args:
            folder: made if it is not there.
            listing: the file that says what is in it and ours.
            keep_days: files older than this are removed; 0: no age is too high.
            keep_bytes: the oldest are removed when they are more; 0: no size is too large.

        Raises:
            SettingsError: the folder or the list cannot be made.
        """
        self._folder = folder
        self._keep_s = keep_days * _DAY_S
        self._keep_bytes = keep_bytes
        self._lock = threading.Lock()
        self._counts = LibraryBooks()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._list = sqlite3.connect(listing, check_same_thread=False, isolation_level=None)
            self._list.execute("PRAGMA journal_mode=WAL")
            self._list.execute(
                "CREATE TABLE IF NOT EXISTS files "
                "(name TEXT PRIMARY KEY, bytes INT, mtime_ns INT, written_s REAL, whole INT)"
            )
        except (OSError, sqlite3.Error) as error:
            words = reason_of(error)
            raise SettingsError(f"recordings cannot be kept in {folder}: {words}") from None

    def remove_partial(self) -> None:
        """Remove what a killed process has left half written; before anything is written."""
        with self._lock, contextlib.suppress(OSError, sqlite3.Error):
            for (name,) in self._list.execute("SELECT name FROM files WHERE whole = 0").fetchall():
                (self._folder / name).unlink(missing_ok=True)
                self._list.execute("DELETE FROM files WHERE name = ?", (name,))

    def write(self, name: str, produce: Callable[[Path], None]) -> int:
        """Add a file; it is there whole or not at all.

        Args:
            name: a path within the folder.
            produce: writes it to the path that it is given, which has the same suffix.

        Returns:
            Its size.

        Raises:
            OSError, sqlite3.Error: the disk takes nothing, or `produce` failed.
        """
        path = self._folder / name
        partial = path.with_name(f"{_PARTIAL}{path.name}")
        partial_name = str(partial.relative_to(self._folder))
        try:
            with self._lock:
                self._remember(partial_name, 0, 0, whole=False)
            path.parent.mkdir(parents=True, exist_ok=True)
            produce(partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            found = partial.stat()
            with self._lock:
                self._remove_old(found.st_size)
                self._remember(name, found.st_size, found.st_mtime_ns, whole=True)
                os.replace(partial, path)
                self._list.execute("DELETE FROM files WHERE name = ?", (partial_name,))
                self._counts.num_written += 1
            return found.st_size
        except BaseException:
            with self._lock, contextlib.suppress(OSError, sqlite3.Error):
                self._counts.num_failed += 1
                partial.unlink(missing_ok=True)
                self._list.execute("DELETE FROM files WHERE name = ?", (partial_name,))
            raise

    def remove_old(self) -> None:
        """Remove what is too old or too much; files that somebody else changed stay."""
        with self._lock:
            try:
                self._remove_old(0)
            except sqlite3.Error as error:
                _LOG.warning("the list of recordings cannot be written: %s", error)

    @property
    def books(self) -> LibraryBooks:
        """A copy of the counts."""
        with self._lock:
            found = replace(self._counts)
            with contextlib.suppress(sqlite3.Error):
                found.num_files, found.num_bytes = self._list.execute(
                    "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM files WHERE whole = 1"
                ).fetchone()
            return found

    def close(self) -> None:
        """Close the list."""
        with self._lock:
            self._list.close()

    # ---- with the lock held ----

    def _remember(self, name: str, size: int, mtime_ns: int, *, whole: bool) -> None:
        self._list.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (name, size, mtime_ns, time.time(), whole),
        )

    def _remove_old(self, more_bytes: int) -> None:
        """Make room for so many bytes more."""
        rows = self._list.execute(
            "SELECT name, bytes, mtime_ns, written_s FROM files WHERE whole = 1 ORDER BY written_s"
        ).fetchall()
        total, now_s = more_bytes + sum(row[1] for row in rows), time.time()
        for name, size, mtime_ns, written_s in rows:
            is_old = self._keep_s and now_s - written_s > self._keep_s
            if not is_old and (not self._keep_bytes or total <= self._keep_bytes):
                break
            total -= size
            if not self._remove(self._folder / name, size, mtime_ns):
                continue
            self._list.execute("DELETE FROM files WHERE name = ?", (name,))

    def _remove(self, path: Path, size: int, mtime_ns: int) -> bool:
        """Whether the file is no concern of ours any more."""
        try:
            found = path.lstat()
            if (found.st_size, found.st_mtime_ns) == (size, mtime_ns):
                path.unlink()
                self._counts.num_removed += 1
                # The folder of a day; it only goes when it is empty.
                with contextlib.suppress(OSError):
                    path.parent.rmdir()
            else:
                self._counts.num_changed += 1
        except FileNotFoundError:
            self._counts.num_changed += 1
        except OSError as error:
            _LOG.warning("cannot remove %s: %s", path, error.strerror)
            return False
        return True
