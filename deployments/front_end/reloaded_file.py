"""A file that may change while the service runs. Knows nothing of what it holds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from groundstream.errors import SettingsError

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class ReloadedFile(Generic[T]):
    """What a file says, read again when it was written."""

    def __init__(
        self,
        path: Path,
        read: Callable[[bytes], T],
        *,
        reload_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Read the file for the first time.

        Args:
            path: of the file.
            read: what its bytes mean; raises ValueError, with a reason that tells no secrets.
            reload_s: time between two looks for changes.
            clock: seconds.

        Raises:
            SettingsError: it cannot be read, or means nothing.
        """
        self._path = path
        self._read = read
        self._reload_s = reload_s
        self._clock = clock
        self._looked_s = clock()
        self._state = self._current_state()
        self._value = self._load()

    def value(self) -> T:
        """What it says; a file that became unreadable still says what it said before."""
        now_s = self._clock()
        if now_s - self._looked_s >= self._reload_s:
            self._looked_s = now_s
            try:
                self._load_if_changed()
            except SettingsError as error:
                _logger.error("%s; what it said before still holds", error)
        return self._value

    def _load_if_changed(self) -> None:
        state = self._current_state()
        if state != self._state:
            # Remembered first, so that a damaged file is complained of once.
            self._state = state
            self._value = self._load()

    def _current_state(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError as error:
            raise SettingsError(f"cannot read {self._path}: {error.strerror}") from error
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> T:
        try:
            return self._read(self._path.read_bytes())
        except OSError as error:
            raise SettingsError(f"cannot read {self._path}: {error.strerror}") from error
        except (ValueError, SettingsError) as error:
            raise SettingsError(f"{self._path}: {error}") from error
