"""How a service is, asked by the standard gRPC health protocol; needs no credentials.

The protocol's two messages have one field each, and are on the wire what protobuf's own wrappers
of a string and of an integer are. So no package of messages is needed for them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf import wrappers_pb2

from groundstream.channel import TlsOptions, open_channel
from groundstream.checks import check_text
from groundstream.errors import SettingsError

_CHECK = "/grpc.health.v1.Health/Check"
_SERVING = 1
_WORDS = {_SERVING: "serving", 2: "not serving: it starts, drains or lacks a stage"}


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
        SettingsError: a file with a certificate cannot be read, or a name is not in UTF-8.
    """
    check_text(name, "the name", SettingsError)
    async with open_channel(target, tls=tls) as channel:
        try:
            status = await serving_status(channel, name, timeout_s)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return Health(False, f"{target} knows nothing called {name!r}")
            return Health(False, f"no answer from {target}: {error.details()}")
    return Health(status == _SERVING, _WORDS.get(status, "unknown"))


async def is_serving(channel: grpc.aio.Channel, timeout_s: float) -> bool:
    """Whether the service answers, and says that it is ready."""
    try:
        return await serving_status(channel, "", timeout_s) == _SERVING
    except grpc.aio.AioRpcError:
        return False


async def serving_status(channel: grpc.aio.Channel, name: str, timeout_s: float) -> int:
    """The number of the protocol's ServingStatus.

    Raises:
        grpc.aio.AioRpcError: there is no answer.
    """
    check = channel.unary_unary(
        _CHECK,
        request_serializer=wrappers_pb2.StringValue.SerializeToString,
        response_deserializer=wrappers_pb2.Int32Value.FromString,
    )
    response: Any = await check(wrappers_pb2.StringValue(value=name), timeout=timeout_s)
    return int(response.value)
