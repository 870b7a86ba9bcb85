"""The gRPC server: its address, its encryption, and how many may connect.

Knows no model and no stream. Who may call, `deployments/front_end/interceptor.py` decides.
"""

from __future__ import annotations

import asyncio
import logging
import resource
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.frame import FrameLimits
from agent.server_settings import ServerSettings, TlsSettings
from deployments.front_end.access import Access
from deployments.front_end.interceptor import AccessInterceptor
from deployments.observability.logs import keep_metadata_out_of_logs
from deployments.wire.message_bounds import Counts
from groundstream.errors import SettingsError
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc

SERVICE_NAME = "vision_agent.v1.VisionAgent"
_DEFAULT_COUNTS = Counts(queries=16, boxes=FrameLimits().max_boxes)
LIVE = "live"
"""Health of the process alone; under every other name the stages must answer, too."""

_HANDSHAKE_S = 10.0
"""A connection says what it is by then, or ends."""
_OWN_DESCRIPTORS = 128
"""Files and connections of ours: those of callers leave us so many."""
_REFUSALS = 64
"""Calls that are just being told that there is no room."""
_logger = logging.getLogger(__name__)


def open_server(
    settings: ServerSettings,
    access: Access,
    agent: Any,
    health_servicer: Any,
    counts: Counts | None = None,
    *,
    unread_s: float | None = None,
) -> tuple[Any, int]:
    """A grpc.aio server and the port it is bound to, not yet started.

    Args:
        settings: address and limits.
        access: who may call.
        agent: the servicer of our own methods.
        health_servicer: of health checks.
        counts: how many there may be of what repeats in a message; None: by default settings.
        unread_s: a client may leave a message unread for so long; None: for ever.

    Raises:
        SettingsError: the address may not be used, or a PEM file cannot be read.
    """
    settings.check_address()
    keep_metadata_out_of_logs()
    server = grpc.aio.server(
        interceptors=[
            AccessInterceptor(access, settings, counts or _DEFAULT_COUNTS, unread_s=unread_s)
        ],
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Clients look after silent connections; that is no attack.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            # A client that vanished without a word does not hold its streams for ever.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.server_handshake_timeout_ms", round(1e3 * _HANDSHAKE_S)),
            ("grpc.max_connection_idle_ms", round(1e3 * settings.connection_idle_s)),
            ("grpc.max_allowed_incoming_connections", _max_connections(settings)),
        ],
        # The interceptor counts by kind; this only keeps it from counting without end.
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs
        + settings.max_waiting_calls
        + 2 * settings.max_health_calls
        + _REFUSALS,
    )
    pb_grpc.add_VisionAgentServicer_to_server(agent, server)  # type: ignore[no-untyped-call]
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    if settings.reflection:
        names = (SERVICE_NAME, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
    if access.is_open and not settings.is_local:
        _logger.warning("everybody who reaches %s may call; see `access`", settings.address)
    if settings.tls.enabled:
        return server, server.add_secure_port(settings.address, _credentials(settings.tls))
    return server, server.add_insecure_port(settings.address)


async def drain_server(server: Any, draining: asyncio.Event, grace_s: float) -> None:
    """Take nothing new, then have open streams warn their clients; returns when all have ended."""
    # One second more than the streams give themselves, so that none is cut.
    stopped = asyncio.create_task(server.stop(grace_s + 1.0))
    # A client that was warned first would come back here, by the connection that it has.
    await asyncio.sleep(0)
    draining.set()
    await stopped


def _max_connections(settings: ServerSettings) -> int:
    """As many as are allowed, and as there are descriptors for after those that we need."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = settings.max_connections + _OWN_DESCRIPTORS
    if soft < wanted and hard > soft:
        soft = min(hard, wanted)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return max(1, min(settings.max_connections, soft - _OWN_DESCRIPTORS))


def _credentials(tls: TlsSettings) -> Any:
    clients = _read(tls.client_authorities)
    return grpc.ssl_server_credentials(
        [(_read(tls.private_key), _read(tls.certificate_chain))],
        root_certificates=clients,
        require_client_auth=clients is not None,
    )


def _read(path: str | None) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise SettingsError(f"cannot read {path}: {error.strerror}") from error
