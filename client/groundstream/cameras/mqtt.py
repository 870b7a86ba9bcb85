"""Records published to an MQTT 3.1.1 broker with quality of service 1. Needs paho-mqtt."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import uuid
from collections.abc import Sequence
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from groundstream.cameras.delivery import SinkAway
from groundstream.cameras.outbox import Waiting
from groundstream.cameras.settings import MqttSettings
from groundstream.cameras.tls import tls_context
from groundstream.errors import reason_of

_KEEPALIVE_S = 30
_GOODBYE_S = 1.0
_RUNNER = "runner"
"""In place of a camera's name in the topics of what concerns them all; no camera's name may hold
the slash that stands before it."""


class MqttPublisher:
    """One broker; the outbox is the only queue, so at most one batch is on its way.

    Records go to TOPIC/CAMERA/TYPE. TOPIC/status holds `online`, or `offline` once the broker has
    lost us, and is retained.
    """

    def __init__(self, settings: MqttSettings) -> None:
        """Nothing is opened yet.

        Raises:
            SettingsError: the certificate authority's file is none.
        """
        self._settings = settings
        self._id = settings.client_id or f"groundstream-{uuid.uuid4().hex[:12]}"
        self._client: paho.Client | None = None
        self._connected = threading.Event()
        self._reason = ""
        self._tls = tls_context(settings) if settings.tls else None

    def send(self, records: Sequence[Waiting]) -> int:
        """See `Sink`."""
        deadline_s = time.monotonic() + self._settings.timeout_s
        client = self._client or self._open()
        if not self._connected.wait(max(0.0, deadline_s - time.monotonic())):
            self._abandon()
            raise SinkAway(self._words(self._reason or "no answer to the connection"))
        num_taken = 0
        try:
            sent = [
                client.publish(self._topic(record.body), record.body, qos=1) for record in records
            ]
            for message in sent:
                message.wait_for_publish(max(0.0, deadline_s - time.monotonic()))
                if not message.is_published():
                    break
                num_taken += 1
        except (ValueError, RuntimeError) as error:  # So paho says that it is not connected.
            self._reason = str(error)
        if num_taken < len(records):
            # paho would send the others again by itself, beside us.
            self._abandon()
        if not num_taken:
            raise SinkAway(self._words(self._reason or "the broker acknowledges nothing"))
        return num_taken

    def close(self) -> None:
        """See `Sink`; the broker is told that we go."""
        if self._client is not None and self._connected.is_set():
            with contextlib.suppress(ValueError, RuntimeError):
                gone = self._client.publish(self._status_topic, "offline", qos=1, retain=True)
                gone.wait_for_publish(_GOODBYE_S)
        self._abandon()

    @property
    def _status_topic(self) -> str:
        return f"{self._settings.topic}/status"

    def _topic(self, body: bytes) -> str:
        record = json.loads(body)
        return f"{self._settings.topic}/{record.get('camera', _RUNNER)}/{record['type']}"

    def _open(self) -> paho.Client:
        settings = self._settings
        client = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=self._id, protocol=paho.MQTTv311
        )
        client.connect_timeout = settings.timeout_s
        client.will_set(self._status_topic, "offline", qos=1, retain=True)
        if settings.user:
            client.username_pw_set(settings.user, settings.password or None)
        if self._tls is not None:
            client.tls_set_context(self._tls)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        self._reason = ""
        self._connected.clear()
        try:
            client.connect(settings.host, settings.port, keepalive=_KEEPALIVE_S)
        except (OSError, ValueError) as error:
            raise SinkAway(self._words(reason_of(error))) from None
        self._client = client
        client.loop_start()
        return client

    def _abandon(self) -> None:
        client, self._client = self._client, None
        self._connected.clear()
        if client is None:
            return
        client.on_connect = client.on_disconnect = None
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            client.disconnect()
            client.loop_stop()

    def _words(self, reason: str) -> str:
        return f"{self._settings.host}:{self._settings.port}: {reason}"

    # ---- told by paho, in its own thread ----

    def _on_connect(
        self, client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        if reason.is_failure:
            self._reason = str(reason)
            return
        client.publish(self._status_topic, "online", qos=1, retain=True)
        self._connected.set()

    def _on_disconnect(
        self, _client: paho.Client, _data: Any, _flags: Any, reason: Any, _properties: Any
    ) -> None:
        self._connected.clear()
        self._reason = self._reason or str(reason)
