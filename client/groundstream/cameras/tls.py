"""Whom a sink trusts. A module of its own: a runner without TLS does not load it."""

from __future__ import annotations

import ssl

from groundstream.cameras.settings import MqttSettings, WebhookSettings
from groundstream.errors import SettingsError


def tls_context(settings: MqttSettings | WebhookSettings) -> ssl.SSLContext:
    """Of the system's certificate authorities, or of the sink's own.

    Raises:
        SettingsError: the certificate authority's file is none.
    """
    try:
        return ssl.create_default_context(cafile=settings.ca)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"sinks.{settings.name}.ca cannot be used: {error}") from None
