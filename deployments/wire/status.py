"""Errors to gRPC: one table, one way. What is not in the table is a bug of ours.

A bug is answered by INTERNAL and a request id; its traceback goes to the log, never to the
client.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio
import ray.serve.exceptions

from deployments.observability.request_context import request_id
from groundstream.errors import AgentError, StageUnavailable
from groundstream.rpc_errors import ERROR_CODE_KEY, RETRY_AFTER_KEY

REQUEST_ID_KEY = "groundstream-request-id"

_logger = logging.getLogger(__name__)
_INTERNAL = "INTERNAL"
_GONE = "CLIENT_GONE"
_MAX_MESSAGE_CHARS = 400
"""A status travels in headers of 8 KiB, where a character may take twelve bytes; clients lose
the whole status of a call when it is longer."""
_TELL_S = 10.0
"""A status waits behind the messages that its client has not read, at most for so long."""


@dataclass(frozen=True)
class Failure:
    """An error as the client may see it."""

    code: str
    """Name of an entry of the proto's ErrorCode, without its prefix."""
    status: grpc.StatusCode
    message: str
    request_id: str = ""
    retry_after_s: float | None = None
    """When it is worth trying again, if that is known."""

    @property
    def is_clients_fault(self) -> bool:
        """True when sending the same again would fail the same way."""
        return self.status is grpc.StatusCode.INVALID_ARGUMENT


STATUS_BY_CODE: dict[str, grpc.StatusCode] = {
    "FRAME_TOO_LARGE": grpc.StatusCode.INVALID_ARGUMENT,
    "FRAME_TOO_COSTLY": grpc.StatusCode.INVALID_ARGUMENT,
    "KEY_FRAME_NEEDED": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_FRAME": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_QUERY": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_BOXES": grpc.StatusCode.INVALID_ARGUMENT,
    "INVALID_ARGUMENT": grpc.StatusCode.INVALID_ARGUMENT,
    "UNAUTHENTICATED": grpc.StatusCode.UNAUTHENTICATED,
    "QUOTA_EXCEEDED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "OVERLOADED": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "STREAM_IDLE": grpc.StatusCode.ABORTED,
    "STAGE_UNAVAILABLE": grpc.StatusCode.UNAVAILABLE,
}
"""The gRPC status of each code in `groundstream.errors`."""


def failure_of(error: BaseException) -> Failure:
    """What to tell the client about `error`; a bug of ours is logged here with its traceback."""
    cause = cause_of(error)
    if isinstance(cause, AgentError) and cause.code:
        status = STATUS_BY_CODE[cause.code]
        retry_after_s = getattr(cause, "retry_after_s", None)
        return Failure(cause.code, status, _shortened(str(cause)), retry_after_s=retry_after_s)
    if isinstance(cause, grpc.aio.InternalError):
        # gRPC could not write; mostly it cancels the call first. No client is left to tell.
        _logger.info("the client went away in the middle of a message")
        return Failure(_GONE, grpc.StatusCode.CANCELLED, "the client went away")
    # A stream has one id for all its frames; what is outside any call gets one here.
    quoted = request_id() or uuid.uuid4().hex
    _logger.error("request %s failed", quoted, exc_info=error)
    message = f"internal error; quote request id {quoted} when you report it"
    return Failure(_INTERNAL, grpc.StatusCode.INTERNAL, message, quoted)


def _shortened(message: str) -> str:
    """The message with its middle left out, where it repeats too much of what a client sent."""
    if len(message) <= _MAX_MESSAGE_CHARS:
        return message
    half = _MAX_MESSAGE_CHARS // 2
    return f"{message[:half]} ... {message[-half:]}"


async def end_with_status(context: Any, failure: Failure) -> NoReturn:
    """Ends a call with the failure's status and typed trailing metadata."""
    quoted = failure.request_id or request_id()
    metadata = [(ERROR_CODE_KEY, failure.code), (REQUEST_ID_KEY, quoted)]
    if failure.retry_after_s is not None:
        metadata.append((RETRY_AFTER_KEY, str(round(1e3 * failure.retry_after_s))))
    context.set_trailing_metadata(tuple(metadata))
    # A call that has to end while it is being told why it ends has been told already.
    with contextlib.suppress(TimeoutError, grpc.aio.UsageError):
        async with asyncio.timeout(_TELL_S):
            await context.abort(failure.status, failure.message)
    # gRPC keeps the status for a client that reads on after all; nothing of ours waits for that.
    raise asyncio.CancelledError


def cause_of(error: BaseException) -> BaseException:
    """The error itself, or the AgentError that an error of Serve's amounts to."""
    if isinstance(error, ray.serve.exceptions.DeploymentUnavailableError):
        return StageUnavailable("a stage is restarting; try again in a few seconds")
    return error
