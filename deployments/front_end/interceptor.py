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
from deployments.admission import EvictingLimit, Owner, YieldingLimit
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
from deployments.wire.stream_messages import is_report
from groundstream.errors import AgentError, InvalidRequest, NotAuthenticated, StreamIdle

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


class _OpenCall:
    """An open call. Its messages are read here, and no write of it lasts for ever.

    It knows how long it has been silent; all else is gRPC's call.
    """

    def __init__(
        self, context: Any, reader: _MessageReader, first: Any, *, unread_s: float | None
    ) -> None:
        """Take over a call.

        Args:
            context: gRPC's call.
            reader: of its messages.
            first: its first message as bytes, or EOF.
            unread_s: a client may leave a message unread for so long; None: for ever.
        """
        self._context = context
        self._reader = reader
        self._first = first
        self._unread_s = unread_s
        self._is_working: Callable[[], bool] = lambda: True
        self._last_s = time.monotonic()
        """When a message came, or one went out that was more than a report."""
        self._writing_since_s: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)

    def works_while(self, is_working: Callable[[], bool]) -> None:
        """It works only then; a call of which nobody says anything works until it ends."""
        self._is_working = is_working

    def silence_s(self) -> float:
        """Seconds since anything happened; 0 while it works and its client reads."""
        now_s = time.monotonic()
        if not self._is_working():
            return now_s - self._last_s
        return 0.0 if self._writing_since_s is None else now_s - self._writing_since_s

    def first(self) -> Any:
        """The one message of a call that has one.

        Raises:
            InvalidRequest, InvalidQuery, InvalidBoxes: it did not come, or is out of bounds.
        """
        content, self._first = self._first, None
        if content is grpc.aio.EOF:
            raise InvalidRequest("the call ended without a message")
        return self._reader.read(content)

    async def read(self) -> Any:
        """The next message, or EOF.

        Raises:
            RefusedMessage: out of bounds; the stream goes on after it.
        """
        content, self._first = self._first, None
        if content is None:
            content = await self._context.read()
        self._last_s = time.monotonic()
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

    async def write(self, message: Any) -> None:
        """Send a message.

        Raises:
            StreamIdle: the client has read nothing for too long.
        """
        limit = asyncio.timeout(self._unread_s)
        self._note_write(message)
        self._writing_since_s = time.monotonic()
        try:
            async with limit:
                await self._context.write(message)
        except TimeoutError:
            if not limit.expired():
                raise
            raise StreamIdle(
                f"nothing was read on this call for {self._unread_s:g} s; open it again and read "
                "what comes"
            ) from None
        finally:
            self._writing_since_s = None
        self._note_write(message)

    def _note_write(self, message: Any) -> None:
        if not is_report(message):
            self._last_s = time.monotonic()


class AccessInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[misc]
    """Asks every call who it is; a stream ends when its credentials lapse.

    Health needs no credentials and has limits of its own.
    """

    def __init__(
        self,
        access: Access,
        settings: ServerSettings,
        counts: Counts,
        *,
        unread_s: float | None,
    ) -> None:
        """Let callers in.

        Args:
            access: who may call.
            settings: how many calls there may be.
            counts: how many there may be of what repeats in a message.
            unread_s: a client may leave a message unread for so long; None: for ever.
        """
        self._access = access
        self._settings = settings
        self._unread_s = unread_s
        self._shapes = bounds_by_method(counts)
        self._waiting = EvictingLimit(
            settings.max_waiting_calls, "calls wait for their first message"
        )
        self._callers = YieldingLimit(settings.max_concurrent_rpcs, silent_s=settings.silent_s)
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
                        async with self._waiting.taken((context.peer(),)):
                            first = await self._first(context)
                        call = self._open(context, reader, first)
                        async with self._callers.taken(_owner(caller, context), call.silence_s):
                            with calling(caller):
                                await _answer(handler, call)
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
            with serving_request(context.invocation_metadata() or ()):
                try:
                    async with limit.taken((context.peer(),)):
                        first = await self._first(context)
                        await _answer(handler, self._open(context, reader, first))
                except AgentError as error:
                    await end_with_status(context, failure_of(error))

        return serve

    def _open(self, context: Any, reader: _MessageReader, first: Any) -> _OpenCall:
        return _OpenCall(context, reader, first, unread_s=self._unread_s)

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


async def _answer(handler: Any, call: _OpenCall) -> None:
    """Run a method of any of the four kinds."""
    if handler.request_streaming:
        # It waits for messages unless the method knows of something else to do.
        call.works_while(lambda: False)
        method = handler.stream_stream or handler.stream_unary
        await _run(method(call.messages(), call), call)
    elif handler.response_streaming:
        await _run(handler.unary_stream(call.first(), call), call)
    else:
        await call.write(await handler.unary_unary(call.first(), call))


async def _run(produced: Any, call: _OpenCall) -> None:
    """A streaming method, which writes for itself (ours) or yields (reflection)."""
    if hasattr(produced, "__aiter__"):
        async for response in produced:
            await call.write(response)
    else:
        await produced


def _owner(caller: Caller, context: Any) -> Owner:
    """The tenant; callers of one tenant are told apart by their host, then by their connection."""
    peer = context.peer()
    return caller.tenant, peer.rpartition(":")[0], peer


def _left_s(caller: Caller) -> float | None:
    return None if caller.until_s is None else max(0.0, caller.until_s - time.time())
