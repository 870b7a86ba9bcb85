"""Encryption between the processes of a cluster, as Ray's own environment variables set it.

RAY_USE_TLS with RAY_TLS_SERVER_CERT, RAY_TLS_SERVER_KEY and RAY_TLS_CA_CERT: each side shows its
certificate and asks for the other's. Knows no service.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import grpc


def server_credentials() -> Any | None:
    """For a server; None: this cluster does not encrypt."""
    if not _is_on():
        return None
    certificate, key, authorities = _files()
    return grpc.ssl_server_credentials(
        [(key, certificate)], root_certificates=authorities, require_client_auth=True
    )


def channel_credentials() -> Any | None:
    """For a channel; None: this cluster does not encrypt."""
    if not _is_on():
        return None
    certificate, key, authorities = _files()
    return grpc.ssl_channel_credentials(
        root_certificates=authorities, private_key=key, certificate_chain=certificate
    )


def _is_on() -> bool:
    return os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")


def _files() -> tuple[bytes, bytes, bytes]:
    names = ("RAY_TLS_SERVER_CERT", "RAY_TLS_SERVER_KEY", "RAY_TLS_CA_CERT")
    certificate, key, authorities = (Path(os.environ[name]).read_bytes() for name in names)
    return certificate, key, authorities
