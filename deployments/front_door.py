"""The gRPC server: its address, its encryption, and the interceptor that lets callers in.

Knows no model and no stream. Health checks need no credentials, everything else does where any
are configured.
"""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from agent.errors import InvalidRequest, NotAuthenticated, SettingsError
from agent.server_settings import ServerSettings, TlsSettings
from deployments.access import Access, Caller, calling
from deployments.request_context import serving_request
from deployments.status import end_with_status, failure_of
from protos import vision_agent_pb2_grpc as pb_grpc

SERVICE_NAME = "vision_agent.v1.VisionAgent"
LIVE = "live"
"""Health of the process alone; under every other name the stages must answer, too."""

_HEALTH = f"/{health.SERVICE_NAME}/"
_logger = logging.getLogger(__name__)


def open_server(
    settings: ServerSettings, access: Access, agent: Any, health_servicer: Any
) -> tuple[Any, int]:
    """A grpc.aio server and the port it is bound to, not yet started.

    Raises:
        SettingsError: the address may not be used, or a PEM file cannot be read.
    """
    settings.check_address()
    server = grpc.aio.server(
        interceptors=[_Doorkeeper(access)],
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", settings.max_message_bytes),
            ("grpc.max_send_message_length", settings.max_message_bytes),
            # Clients look after silent connections; that is no attack.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
            # A client that vanished without a word does not hold its streams for ever.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
        ],
        maximum_concurrent_rpcs=settings.max_concurrent_rpcs,
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


class _Doorkeeper(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks every call who it is; a stream ends when its credentials lapse."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The method's handler, behind the door."""
        handler = await continuation(details)
        if handler is None or details.method.startswith(_HEALTH):
            return handler
        read = _streamed if handler.request_streaming else _single
        how = {
            "request_deserializer": read(handler.request_deserializer),
            "response_serializer": handler.response_serializer,
        }
        if not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(self._answering(handler.unary_unary), **how)
        if handler.request_streaming:
            streaming = self._streaming(handler.stream_stream)
            return grpc.stream_stream_rpc_method_handler(streaming, **how)
        return grpc.unary_stream_rpc_method_handler(self._streaming(handler.unary_stream), **how)

    def _answering(self, method: Any) -> Any:
        async def answer(request: Any, context: Any) -> Any:
            metadata = context.invocation_metadata() or ()
            with serving_request(metadata), calling(await self._let_in(context)):
                return await method(await _readable(request, context), context)

        return answer

    def _streaming(self, method: Any) -> Any:
        async def stream(request: Any, context: Any) -> None:
            with serving_request(context.invocation_metadata() or ()):
                await let_stream(request, context)

        async def let_stream(request: Any, context: Any) -> None:
            caller = await self._let_in(context)
            request = await _readable(request, context)
            limit = asyncio.timeout(_left_s(caller))
            try:
                with calling(caller):
                    async with limit:
                        await _run(method(request, context), context)
            except TimeoutError:
                if not limit.expired():
                    raise
                lapsed = NotAuthenticated("the token has expired; come back with a new one")
                await end_with_status(context, failure_of(lapsed))

        return stream

    async def _let_in(self, context: Any) -> Caller:
        try:
            return self._access.caller(context.invocation_metadata() or (), context.auth_context())
        except NotAuthenticated as error:
            self._access.num_refused += 1
            _logger.info("refused a call from %s: %s", context.peer(), error)
            await end_with_status(context, failure_of(error))


class _Unreadable:
    """In place of a request whose bytes are no message; gRPC itself would answer UNKNOWN."""


def _single(deserialize: Any) -> Any:
    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return _Unreadable()

    return read


def _streamed(deserialize: Any) -> Any:
    """What is no message is an empty one, which its stream complains of and goes on."""

    def read(content: bytes) -> Any:
        try:
            return deserialize(content)
        except DecodeError:
            return deserialize(b"")

    return read


async def _readable(request: Any, context: Any) -> Any:
    if isinstance(request, _Unreadable):
        error = InvalidRequest("the bytes of the request are not the message this method takes")
        await end_with_status(context, failure_of(error))
    return request


async def _run(produced: Any, context: Any) -> None:
    """A streaming method, which writes for itself (ours) or yields (reflection)."""
    if hasattr(produced, "__aiter__"):
        async for response in produced:
            await context.write(response)
    else:
        await produced


def _left_s(caller: Caller) -> float | None:
    return None if caller.until_s is None else max(0.0, caller.until_s - time.time())
