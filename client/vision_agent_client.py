"""The asyncio client: pictures and questions in, typed answers out. Knows no model and no Ray."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.errors import (
    AgentError,
    FrameTooLarge,
    InvalidBoxes,
    InvalidFrame,
    InvalidQuery,
    InvalidRequest,
    Overloaded,
    StageUnavailable,
)
from client import conversions
from client.types import (
    Box,
    Capabilities,
    FrameResult,
    OutgoingFrame,
    Query,
    ServiceStats,
    StreamEvent,
)
from protos import vision_agent_pb2 as pb
from protos import vision_agent_pb2_grpc as pb_grpc

DEFAULT_TARGET = "127.0.0.1:50051"

_MAX_MESSAGE_BYTES = 32 * 1024 * 1024
_HEALTH_POLL_S = 0.2
_ERROR_CODE_KEY = "groundstream-error"
_ERRORS: dict[str, type[AgentError]] = {
    "INVALID_ARGUMENT": InvalidRequest,
    "INVALID_FRAME": InvalidFrame,
    "FRAME_TOO_LARGE": FrameTooLarge,
    "INVALID_QUERY": InvalidQuery,
    "INVALID_BOXES": InvalidBoxes,
    "OVERLOADED": Overloaded,
    "STAGE_UNAVAILABLE": StageUnavailable,
}


class ServiceError(AgentError):
    """The service failed, or cannot be reached; the message holds what it said."""


class VisionAgentClient:
    """One connection to a service; use it as an async context manager.

    Errors of single calls are raised as the types of `agent.errors`, or as `ServiceError`.
    """

    def __init__(self, target: str = DEFAULT_TARGET) -> None:
        self._channel = grpc.aio.insecure_channel(
            target,
            options=[
                ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
                # A service that starts is found within a second, not after gRPC's 20.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 1000),
            ],
        )
        self._stub: Any = pb_grpc.VisionAgentStub(self._channel)  # type: ignore[no-untyped-call]
        self._health: Any = health_pb2_grpc.HealthStub(self._channel)
        self._target = target

    async def __aenter__(self) -> VisionAgentClient:
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; open streams end."""
        await self._channel.close()

    async def ground(
        self,
        image: bytes,
        queries: Iterable[str | Query],
        *,
        boxes: Sequence[Box] | None = None,
        timeout_s: float | None = 60.0,
    ) -> FrameResult:
        """The answers to some questions about one encoded picture.

        Args:
            image: JPEG, PNG, WebP or BMP bytes.
            queries: what to look for; a string means "detect this".
            boxes: pixels; ask about these boxes instead of the service's proposals.
            timeout_s: longest wait for the answer.

        Raises:
            InvalidFrame, InvalidQuery, InvalidBoxes, InvalidRequest: mend the call.
            Overloaded, StageUnavailable: try again later.
            ServiceError: everything else.
        """
        frame = OutgoingFrame(image, boxes=None if boxes is None else tuple(boxes))
        request = pb.GroundRequest(
            frame=conversions.frame_to_message(frame),
            queries=[conversions.query_to_message(_as_query(query)) for query in queries],
        )
        response = await self._call(self._stub.Ground, request, timeout_s)
        return conversions.result_from_message(response.result)

    async def ask(
        self, image: bytes, query: str | Query, *, timeout_s: float | None = 60.0
    ) -> AsyncIterator[str | FrameResult]:
        """One question about one encoded picture: its text as it is written, then the answer.

        Raises:
            AgentError: see `ground`.
        """
        request = pb.AskRequest(
            frame=conversions.frame_to_message(OutgoingFrame(image)),
            query=conversions.query_to_message(_as_query(query)),
        )
        try:
            async for message in self._stub.Ask(request, timeout=timeout_s):
                if message.HasField("result"):
                    yield conversions.result_from_message(message.result)
                else:
                    yield message.text_delta
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from None

    async def capabilities(self) -> Capabilities:
        """What the service can do and where its limits are."""
        response = await self._call(self._stub.GetCapabilities, pb.GetCapabilitiesRequest(), 10.0)
        return conversions.capabilities_from_message(response)

    async def stats(self) -> ServiceStats:
        """What the front-end replica behind this connection has done."""
        response = await self._call(self._stub.GetStats, pb.GetStatsRequest(), 10.0)
        return conversions.stats_from_message(response)

    async def wait_until_ready(self, timeout_s: float = 120.0) -> None:
        """Return as soon as the service answers frames.

        Raises:
            ServiceError: not within `timeout_s`.
        """
        request = health_pb2.HealthCheckRequest()
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    with contextlib.suppress(grpc.aio.AioRpcError):
                        reply = await self._health.Check(request, timeout=1.0)
                        if reply.status == health_pb2.HealthCheckResponse.SERVING:
                            return
                    await asyncio.sleep(_HEALTH_POLL_S)
        except TimeoutError:
            raise ServiceError(
                f"no service is ready at {self._target} after {timeout_s:g} s; start one with "
                "`groundstream serve`"
            ) from None

    def watch(
        self, frames: AsyncIterator[OutgoingFrame], queries: Iterable[str | Query] = ()
    ) -> WatchStream:
        """A stream of frames answered against standing queries; enter it, then iterate.

        Args:
            frames: sent as they come; the stream ends in good order when they end.
            queries: what to look for at the start.
        """
        return WatchStream(self._stub, frames, [_as_query(query) for query in queries])

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from None


class WatchStream:
    """One open stream: iterate it for events, change its queries at any time.

    Changes return at once with a change id; the matching `QueriesAck` or `StreamError` comes in
    the iteration, in its place between the results.
    """

    def __init__(
        self, stub: Any, frames: AsyncIterator[OutgoingFrame], queries: list[Query]
    ) -> None:
        self._stub = stub
        self._frames = frames
        self._queries = queries
        self._writing = asyncio.Lock()
        self._num_changes = 0
        self.num_sent = 0
        """Frames written so far."""

    async def __aenter__(self) -> WatchStream:
        self._call = self._stub.Watch()
        if self._queries:
            await self.set_queries(self._queries)
        self._sender = asyncio.create_task(self._send_frames())
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._sender.cancel()
        self._call.cancel()
        await asyncio.gather(self._sender, return_exceptions=True)

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Everything the server says, until the stream ends.

        Raises:
            ServiceError: the stream broke.
            Exception: whatever the frame iterator raised.
        """
        try:
            async for message in self._call:
                event = conversions.event_from_message(message)
                if event is not None:
                    yield event
        except grpc.aio.AioRpcError as error:
            raise _error_of(error) from None
        if self._sender.done() and not self._sender.cancelled():
            self._sender.result()

    async def results(self) -> AsyncIterator[FrameResult]:
        """Only the answers; see `__aiter__`."""
        async for event in self:
            if isinstance(event, FrameResult):
                yield event

    async def set_queries(self, queries: Iterable[str | Query]) -> int:
        """Replace all standing queries; returns the change id."""
        messages = [conversions.query_to_message(_as_query(query)) for query in queries]
        change = self._next_change()
        request = pb.WatchRequest(set_queries=pb.SetQueries(queries=messages, change_id=change))
        await self._write(request)
        return change

    async def put_query(self, query: str | Query) -> int:
        """Add a query or replace the one of its name; returns the change id."""
        message = conversions.query_to_message(_as_query(query))
        change = self._next_change()
        await self._write(pb.WatchRequest(put_query=pb.PutQuery(query=message, change_id=change)))
        return change

    async def remove_query(self, query_id: str) -> int:
        """Stop asking a query; returns the change id."""
        change = self._next_change()
        message = pb.RemoveQuery(query_id=query_id, change_id=change)
        await self._write(pb.WatchRequest(remove_query=message))
        return change

    def _next_change(self) -> int:
        self._num_changes += 1
        return self._num_changes

    async def _send_frames(self) -> None:
        try:
            async for frame in self._frames:
                await self._write(pb.WatchRequest(frame=conversions.frame_to_message(frame)))
                self.num_sent += 1
        finally:
            # Also when the frames broke off: the server then answers what it has and ends.
            await self._write(pb.WatchRequest(end=pb.End()))
            await self._call.done_writing()

    async def _write(self, request: pb.WatchRequest) -> None:
        async with self._writing:
            await self._call.write(request)


def _as_query(query: str | Query) -> Query:
    return Query(query) if isinstance(query, str) else query


def _error_of(error: grpc.aio.AioRpcError) -> AgentError:
    metadata = dict(error.trailing_metadata() or ())
    kind = _ERRORS.get(str(metadata.get(_ERROR_CODE_KEY)), ServiceError)
    details = error.details() or "no details"
    return kind(details if kind is not ServiceError else f"{error.code().name}: {details}")
