"""The connection to a service: TLS, a token with every call, and no long waits. No messages."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from groundstream.checks import check_text
from groundstream.errors import SettingsError

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
_LOOPBACK = ("127.0.0.1:", "localhost:", "[::1]:", "unix:")


@dataclass(frozen=True)
class TlsOptions:
    """How to know the service, and how to be known; paths of PEM files."""

    root_certificates: Path | None = None
    """Who vouches for the service; None: the system's authorities."""
    certificate_chain: Path | None = None
    """Our own certificate, for a service that asks for one (mutual TLS)."""
    private_key: Path | None = None
    server_name: str | None = None
    """Name in the service's certificate, where it is not the target's."""


def open_channel(
    target: str, *, tls: TlsOptions | None = None, token: str | None = None
) -> grpc.aio.Channel:
    """A channel; nothing is sent yet.

    Raises:
        SettingsError: a file cannot be read, a text is not in UTF-8, or a token would travel in
            plain text.
    """
    server_name = None if tls is None else tls.server_name
    _check_texts({"address": target, "name in its certificate": server_name, "token": token})
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        # A service that starts is found within a second, not after gRPC's 20.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A peer that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
    ]
    if tls is None:
        if token is None:
            return grpc.aio.insecure_channel(target, options=options)
        if not target.startswith(_LOOPBACK):
            raise SettingsError(
                f"a token would go to {target} in plain text; give tls=TlsOptions()"
            )
        # gRPC guards tokens by refusing them on plain channels, but to this machine.
        secure = grpc.local_channel_credentials(grpc.LocalConnectionType.LOCAL_TCP)
    else:
        secure = grpc.ssl_channel_credentials(
            root_certificates=_read(tls.root_certificates),
            private_key=_read(tls.private_key),
            certificate_chain=_read(tls.certificate_chain),
        )
        if tls.server_name is not None:
            options.append(("grpc.ssl_target_name_override", tls.server_name))
    if token is not None:
        secure = grpc.composite_channel_credentials(
            secure, grpc.metadata_call_credentials(_Bearer(token), name="bearer")
        )
    return grpc.aio.secure_channel(target, secure, options=options)


def _check_texts(of_service: dict[str, str | None]) -> None:
    for what, text in of_service.items():
        check_text(text or "", f"the service's {what}", SettingsError)


def find_token(path: Path | None) -> str | None:
    """The token in a file, else in GROUNDSTREAM_TOKEN; arguments are for all processes to read.

    Raises:
        SettingsError: the file cannot be read or is empty.
    """
    content = _read(path)
    if content is None:
        return os.environ.get("GROUNDSTREAM_TOKEN") or None
    token = content.decode(errors="replace").strip()
    if not token:
        raise SettingsError(f"{path} holds no token")
    return token


class _Bearer(grpc.AuthMetadataPlugin):  # type: ignore[misc]
    """Adds the token; shows itself without it."""

    def __init__(self, token: str) -> None:
        self._metadata = (("authorization", f"Bearer {token}"),)

    def __call__(self, _context: Any, callback: Callable[..., None]) -> None:
        callback(self._metadata, None)


def _read(path: Path | None) -> bytes | None:
    if path is None:
        return None
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
