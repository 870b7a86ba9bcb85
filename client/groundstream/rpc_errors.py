"""gRPC's errors as the types of `agent.errors`. Knows no messages."""

from __future__ import annotations

import grpc
import grpc.aio

from groundstream.errors import AgentError, Overloaded, errors_by_code

ERROR_CODE_KEY = "groundstream-error"
"""Trailing metadata: which entry of the proto's ErrorCode a unary error is."""
RETRY_AFTER_KEY = "grpc-retry-pushback-ms"
"""gRPC's own name for it: clients with a retry policy obey without being told more."""
_ERRORS = errors_by_code()
_MAY_PASS = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    # What a client sees when the process behind a stream is killed depends on the moment.
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


class ServiceError(AgentError):
    """The service failed, or cannot be reached; the message holds what it said."""


def error_of(error: grpc.aio.AioRpcError, timeout_s: float | None = None) -> AgentError:
    """The error as our own type; `timeout_s`: what its caller allowed the call to take."""
    metadata = dict(error.trailing_metadata() or ())
    kind = _ERRORS.get(str(metadata.get(ERROR_CODE_KEY)), ServiceError)
    details = error.details() or "no details"
    if issubclass(kind, Overloaded):
        wait_ms = metadata.get(RETRY_AFTER_KEY)
        return kind(details, None if wait_ms is None else int(wait_ms) / 1e3)
    if kind is not ServiceError:
        return kind(details)
    if timeout_s is not None and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED:
        details = (
            f"the answer was not complete after {timeout_s:g} s; allow more time (timeout_s), or "
            "try again later"
        )
    return ServiceError(f"{error.code().name}: {details}")


def may_pass(error: grpc.aio.AioRpcError) -> bool:
    """Whether opening the stream again may help."""
    return error.code() in _MAY_PASS
