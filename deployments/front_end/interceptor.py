"""The interceptor that lets callers in: who, how many, and with messages of what size.

Every method is served as a stream of bytes, whatever it is: so the caller is known before its
first message is even received (a small compressed message may become 33 MB), a message that never
comes has a time limit, and bytes are bounded by `message_bounds` before they are parsed. Knows
no model and no stream.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError
from grpc_health.v1 import health

from agent.server_settings import ServerSettings
from deployments.admission import ConcurrencyLimit, EvictingLimit
from deployments.front_end.access import Access, Caller, calling
from deployments.observability.request_context import serving_request
from deployments.wire.message_bounds import (
    UNREADABLE,
    Counts,
    RefusedMessage,
    Shape,
    bounds_by_method,
    check_message,
)
from deployments.wire.status import end_with_status, failure_of
from groundstream.errors import AgentError, InvalidRequest, NotAuthenticated

_HEALTH = f"/{health.SERVICE_NAME}/"
_HEALTH_WATCH = _HEALTH + "Watch"
_OTHERS_MAX_BYTES = 4096
"""Of a request for health or reflection."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _MessageReader:
    """How the messages of one method are read."""

    parse: Callable[[bytes], Any]
    shape: Shape | None
    """None: not one of ours, small."""
    max_bytes: int

    def read(self, content: bytes) -> Any:
        """The message.

        Raises:
            InvalidRequest, InvalidQuery, InvalidBoxes: out of bounds, or no message at all.
        """
        if self.shape is not None:
            check_message(content, self.shape, max_bytes=self.max_bytes)
        elif len(content) > _OTHERS_MAX_BYTES:
            raise InvalidRequest(
                f"the message has {len(content)} bytes, the limit is {_OTHERS_MAX_BYTES}"
            )
        try:
            return self.parse(content)
        except DecodeError:
            raise InvalidRequest(UNREADABLE) from None


class _IncomingStream:
    """The call of a streaming method: its own messages are read here, all else is the call's."""

    def __init__(self, context: Any, reader: _MessageReader, first: Any) -> None:
        self._context = context
        self._reader = reader
        self._first = first

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    async def read(self) -> Any:
        """The next message, or EOF.

        Raises:
            RefusedMessage: out of bounds; the stream goes on after it.
        """
        content, self._first = self._first, None
        if content is None:
            content = await self._context.read()
        if content is grpc.aio.EOF:
            return content
        try:
            return self._reader.read(content)
        except AgentError as error:
            raise RefusedMessage(error, content) from None

    async def messages(self) -> AsyncIterator[Any]:
        """All of them, for methods that iterate (reflection)."""
        while (message := await self.read()) is not grpc.aio.EOF:
            yield message


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks every call who it is; a stream ends when its credentials lapse.

    Health needs no credentials and has limits of its own.
    """

    def __init__(self, access: Access, settings: ServerSettings, counts: Counts) -> None:
        self._access = access
        self._settings = settings
        self._shapes = bounds_by_method(counts)
        self._waiting = EvictingLimit(
            settings.max_waiting_calls, "calls wait for their first message"
        )
        self._callers = ConcurrencyLimit(settings.max_concurrent_rpcs)
        self._checks = EvictingLimit(settings.max_health_calls, "health checks are under way")
        self._health_watches = EvictingLimit(
            settings.max_health_calls, "calls watch this service's health"
        )

    async def intercept_service(self, continuation: Any, details: Any) -> Any:
        """The method's handler, for callers that are let in."""
        handler = await continuation(details)
        if handler is None:
            return None
        path = details.method
        reader = _MessageReader(
            handler.request_deserializer, self._shapes.get(path), self._settings.max_fields_bytes
        )
        if path.startswith(_HEALTH):
            limit = self._health_watches if path == _HEALTH_WATCH else self._checks
            serve = self._health(handler, reader, limit)
        else:
            serve = self._serving(handler, reader)
        return grpc.stream_stream_rpc_method_handler(
            _letting_go(serve), response_serializer=handler.response_serializer
        )

    def _serving(self, handler: Any, reader: _MessageReader) -> Any:
        async def serve(_messages: Any, context: Any) -> None:
            with serving_request(context.invocation_metadata() or ()):
                caller = await self._let_in(context)
                limit = asyncio.timeout(_left_s(caller) if handler.response_streaming else None)
                try:
                    async with limit:
                        first = await self._waiting.run(context.peer(), self._first(context))
                        with self._callers.taken(), calling(caller):
                            await _answer(handler, reader, first, context)
                except AgentError as error:
                    await end_with_status(context, failure_of(error))
                except TimeoutError:
                    if not limit.expired():
                        raise
                    lapsed = NotAuthenticated("the token has expired; come back with a new one")
                    await end_with_status(context, failure_of(lapsed))

        return serve

    def _health(self, handler: Any, reader: _MessageReader, limit: EvictingLimit) -> Any:
        async def serve(_messages: Any, context: Any) -> None:
            async def whole() -> None:
                await _answer(handler, reader, await self._first(context), context)

            with serving_request(context.invocation_metadata() or ()):
                try:
                    await limit.run(context.peer(), whole())
                except AgentError as error:
                    await end_with_status(context, failure_of(error))

        return serve

    async def _first(self, context: Any) -> Any:
        """A call's first message as bytes, or EOF.

        Raises:
            InvalidRequest: it does not come.
        """
        limit_s = self._settings.first_message_s
        try:
            async with asyncio.timeout(limit_s):
                return await context.read()
        except TimeoutError:
            raise InvalidRequest(
                f"no message came within {limit_s:g} s of the call; call when there is one"
            ) from None

    async def _let_in(self, context: Any) -> Caller:
        try:
            return self._access.caller(context.invocation_metadata() or (), context.auth_context())
        except NotAuthenticated as error:
            self._access.num_refused += 1
            _logger.info("refused a call from %s: %s", context.peer(), error)
            await end_with_status(context, failure_of(error))


def _letting_go(serve: Any) -> Any:
    """The same, which keeps nothing of a call that it has ended with a status.

    gRPC keeps the AbortError with the call, and its traceback leads to every frame that was left,
    with the request, and back to the call. Requests of 17 MB would wait for the garbage collector.
    """

    async def served(messages: Any, context: Any) -> None:
        try:
            await serve(messages, context)
        except grpc.aio.AbortError as error:
            # gRPC raises it again by itself.
            error.__traceback__ = error.__context__ = None

    return served


async def _answer(handler: Any, reader: _MessageReader, first: Any, context: Any) -> None:
    """Run a method of any of the four kinds."""
    if handler.request_streaming:
        stream = _IncomingStream(context, reader, first)
        method = handler.stream_stream or handler.stream_unary
        await _run(method(stream.messages(), stream), context)
        return
    if first is grpc.aio.EOF:
        raise InvalidRequest("the call ended without a message")
    request = reader.read(first)
    if handler.response_streaming:
        await _run(handler.unary_stream(request, context), context)
    else:
        await context.write(await handler.unary_unary(request, context))


async def _run(produced: Any, context: Any) -> None:
    """A streaming method, which writes for itself (ours) or yields (reflection)."""
    if hasattr(produced, "__aiter__"):
        async for response in produced:
            await context.write(response)
    else:
        await produced


def _left_s(caller: Caller) -> float | None:
    return None if caller.until_s is None else max(0.0, caller.until_s - time.time())
