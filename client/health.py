"""How a service is, asked by the standard gRPC health protocol; needs no credentials."""

from __future__ import annotations

from dataclasses import dataclass

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from client.channel import TlsOptions, open_channel

_WORDS = {
    health_pb2.HealthCheckResponse.SERVING: "serving",
    health_pb2.HealthCheckResponse.NOT_SERVING: "not serving: it starts, drains or lacks a stage",
}


@dataclass(frozen=True)
class Health:
    """What a service says of itself, or why it says nothing."""

    is_serving: bool
    words: str


async def health_of(
    target: str, name: str = "", *, tls: TlsOptions | None = None, timeout_s: float = 5.0
) -> Health:
    """Ask once.

    Args:
        target: host:port.
        name: `""`: ready to answer; `"live"`: the process answers; or the name of a model.
        tls: for a service that encrypts.
        timeout_s: how long to wait for an answer.

    Raises:
        SettingsError: a file with a certificate cannot be read.
    """
    request = health_pb2.HealthCheckRequest(service=name)
    async with open_channel(target, tls=tls) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        try:
            response = await check(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Health(False, f"{target} knows nothing called {name!r}")
            return Health(False, f"no answer from {target}: {error.details()}")
    words = _WORDS.get(response.status, "unknown")
    return Health(response.status == health_pb2.HealthCheckResponse.SERVING, words)
