"""The sinks of a file of cameras, and the one that is a file itself."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from groundstream.cameras.delivery import Sink, SinkAway
from groundstream.cameras.outbox import Waiting
from groundstream.cameras.settings import (
    JsonLinesSettings,
    MqttSettings,
    SinkSettings,
    WebhookSettings,
)
from groundstream.errors import SettingsError


def open_sink(settings: SinkSettings) -> Sink:
    """A sink; it need not be there yet.

    Raises:
        SettingsError: what it says cannot be used, or a package that it needs is missing.
    """
    if isinstance(settings, JsonLinesSettings):
        return JsonLines(settings)
    if isinstance(settings, WebhookSettings):
        from groundstream.cameras.webhook import Webhook  # A runner without one needs no TLS.

        return Webhook(settings)
    assert isinstance(settings, MqttSettings)
    if importlib.util.find_spec("paho") is None:
        raise SettingsError(
            f"sinks.{settings.name} needs paho-mqtt; pip install 'groundstream-client[cameras]'"
        )
    from groundstream.cameras.mqtt import MqttPublisher

    return MqttPublisher(settings)


class JsonLines:
    """A file that records are added to; never emptied, and opened anew each time, so that it may be
    moved away at any moment."""

    def __init__(self, settings: JsonLinesSettings) -> None:
        self._path = settings.path

    def send(self, records: Sequence[Waiting]) -> int:
        """See `Sink`."""
        lines = b"".join(record.body + b"\n" for record in records)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                end = os.fstat(descriptor).st_size
                # A process that was killed may have left half a line.
                broken = end > 0 and os.pread(descriptor, 1, end - 1) != b"\n"
                try:
                    _write_all(descriptor, b"\n" * broken + lines, end)
                except OSError:
                    os.ftruncate(descriptor, end)
                    raise
            finally:
                os.close(descriptor)
        except OSError as error:
            raise SinkAway(f"{self._path}: {error.strerror}") from None
        return len(records)

    def close(self) -> None:
        """See `Sink`."""


def _write_all(descriptor: int, content: bytes, at: int) -> None:
    written = 0
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], at + written)
