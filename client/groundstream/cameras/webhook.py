"""Records as POST requests, one each, signed. Knows no queue: who calls tries again."""

from __future__ import annotations

import contextlib
import http.client
import time
import urllib.parse
from collections.abc import Sequence

from groundstream.cameras.delivery import RecordRefused, SinkAway
from groundstream.cameras.outbox import Waiting
from groundstream.cameras.settings import WebhookSettings
from groundstream.cameras.signatures import SIGNATURE_HEADER, TIMESTAMP_HEADER, sign
from groundstream.cameras.tls import tls_context
from groundstream.errors import reason_of

_REFUSED = frozenset({400, 405, 406, 410, 411, 413, 414, 415, 422, 431})
"""It understood us and does not want this record. Whatever else it says may change: a missing
route, credentials that are being renewed, too many requests."""
_MAX_ANSWER_BYTES = 64 * 1024
_MAX_RETRY_AFTER_S = 3600.0


class Webhook:
    """One receiver; keeps its connection open between records."""

    def __init__(self, settings: WebhookSettings) -> None:
        """Nothing is sent yet.

        Raises:
            SettingsError: the certificate authority's file is none.
        """
        self._settings = settings
        parts = urllib.parse.urlsplit(settings.url)
        self._host, is_tls = parts.hostname or "", parts.scheme == "https"
        self._port = parts.port or (443 if is_tls else 80)
        self._path = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        self._connection: http.client.HTTPConnection | None = None
        self._tls = tls_context(settings) if is_tls else None

    def send(self, records: Sequence[Waiting]) -> int:
        """See `Sink`; one record a call."""
        body = records[0].body
        was_open = self._connection is not None
        try:
            status, retry_after, words = self._post(body)
        except (http.client.HTTPException, OSError) as error:
            self.close()
            if not was_open:
                raise SinkAway(self._words(error)) from None
            # A connection that was kept may have been closed by the receiver meanwhile.
            try:
                status, retry_after, words = self._post(body)
            except (http.client.HTTPException, OSError) as again:
                self.close()
                raise SinkAway(self._words(again)) from None
        if 200 <= status < 300:
            return 1
        if status in _REFUSED:
            raise RecordRefused(f"status {status}: {words}")
        if 300 <= status < 400:
            raise SinkAway(f"status {status}: it has moved; give the new address as `url`")
        raise SinkAway(f"status {status}: {words}", _seconds(retry_after))

    def close(self) -> None:
        """See `Sink`."""
        if self._connection is not None:
            with contextlib.suppress(OSError):
                self._connection.close()
            self._connection = None

    def _post(self, body: bytes) -> tuple[int, str | None, str]:
        if self._connection is None:
            timeout_s = self._settings.timeout_s
            self._connection = (
                http.client.HTTPConnection(self._host, self._port, timeout=timeout_s)
                if self._tls is None
                else http.client.HTTPSConnection(
                    self._host, self._port, timeout=timeout_s, context=self._tls
                )
            )
        headers = {"Content-Type": "application/json", "User-Agent": "groundstream-cameras"}
        headers.update(self._settings.headers)
        timestamp = str(int(time.time()))
        headers[TIMESTAMP_HEADER] = timestamp
        if self._settings.secret:
            headers[SIGNATURE_HEADER] = sign(self._settings.secret, timestamp, body)
        self._connection.request("POST", self._path, body, headers)
        answer = self._connection.getresponse()
        said = answer.read(_MAX_ANSWER_BYTES)
        if not answer.isclosed():
            self.close()  # It says more than anybody wants to read.
        words = " ".join(said[:200].decode(errors="replace").split())
        return answer.status, answer.getheader("Retry-After"), words

    def _words(self, error: Exception) -> str:
        """What went wrong, and where; the address may hold a secret, so only its host is said."""
        return f"{self._host}:{self._port}: {reason_of(error)}"


def _seconds(retry_after: str | None) -> float | None:
    """Seconds of a `Retry-After` header; one that names a date is not waited for."""
    if retry_after is None or not retry_after.strip().isdecimal():
        return None
    return min(float(retry_after.strip()[:6]), _MAX_RETRY_AFTER_S)
