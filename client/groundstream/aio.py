"""The asyncio client: pictures and questions in, typed answers out. Knows no model and no Ray."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from groundstream import conversions
from groundstream.channel import TlsOptions, open_channel
from groundstream.checks import UINT64, check_whole
from groundstream.events import Observed, OpenStreamInfo
from groundstream.health import is_serving
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.pulled import as_async
from groundstream.rpc_errors import ServiceError, error_of
from groundstream.types import (
    DEFAULT_TARGET,
    Box,
    Capabilities,
    FrameResult,
    OutgoingFrame,
    OutgoingPacket,
    Query,
    ServiceStats,
    StreamPolicy,
    TaskKind,
    Zoom,
)
from groundstream.watch_stream import Reconnect, WatchStream, as_queries

_HEALTH_CALL_S = 1.0
_HEALTH_POLL_S = 0.2


class Client:
    """One connection to a service; use it as an async context manager.

    Errors of single calls are raised as the types of `groundstream.errors`, or as `ServiceError`.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsOptions | None = None,
        token: str | None = None,
    ) -> None:
        """Prepare a connection; it is made with the first call.

        Args:
            target: host:port.
            tls: encrypt; None: plain text.
            token: sent with every call as `authorization: Bearer ...`; only over TLS, or to this
                machine.
        """
        self._channel = open_channel(target, tls=tls, token=token)
        self._stub: Any = pb_grpc.VisionAgentStub(self._channel)  # type: ignore[no-untyped-call]
        self._target = target

    async def __aenter__(self) -> Client:
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
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> FrameResult:
        """The answers to some questions about one encoded picture.

        Args:
            image: JPEG, PNG, WebP or BMP bytes.
            queries: a list of what to look for; a string in it means "detect this".
            boxes: pixels; ask about these boxes instead of the service's proposals.
            zoom: allow second looks; the last revision that time allowed is returned.
            timeout_s: longest wait for the answer.

        Raises:
            InvalidFrame, InvalidQuery, InvalidBoxes, InvalidRequest: mend the call.
            Overloaded, StageUnavailable: try again later.
            ServiceError: everything else.
        """
        request = pb.GroundRequest(**_grounding(image, queries, boxes, zoom))
        response = await self._call(self._stub.Ground, request, timeout_s)
        return conversions.result_from_message(response.result)

    async def ground_anytime(
        self,
        image: bytes,
        queries: Iterable[str | Query],
        *,
        boxes: Sequence[Box] | None = None,
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> AsyncIterator[FrameResult]:
        """The answers at once, then every revision of them; see `FrameResult.revision`.

        When time is up the iteration ends and the revision that came last stands.

        Args:
            image, queries, boxes, timeout_s: see `ground`.
            zoom: when to look twice; by default where it helps.

        Raises:
            AgentError: there is not even a first answer; see `ground`.
        """
        request = pb.GroundAnytimeRequest(**_grounding(image, queries, boxes, zoom or Zoom()))
        call = self._stub.GroundAnytime(request, timeout=_finite(timeout_s))
        async for message in _until_time_is_up(call, timeout_s):
            yield conversions.result_from_message(message.result)

    async def ask(
        self,
        image: bytes,
        query: str | Query,
        *,
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> AsyncIterator[str | FrameResult]:
        """One question about one encoded picture: its text as it is written, then the answer.

        A string is a free question (`TaskKind.CHAT`), and names its answer; other tasks are asked
        with a `Query`. With `zoom` the answer may come several times, each revision better than the
        one before; when time is up the iteration ends and the revision that came last stands.

        Raises:
            AgentError: see `ground`.
        """
        request = pb.AskRequest(
            frame=conversions.frame_to_message(OutgoingFrame(image)),
            query=conversions.query_to_message(_as_question(query)),
            zoom=conversions.zoom_to_message(zoom),
        )
        call = self._stub.Ask(request, timeout=_finite(timeout_s))
        async for message in _until_time_is_up(call, timeout_s):
            if message.HasField("result"):
                yield conversions.result_from_message(message.result)
            else:
                yield message.text_delta

    async def capabilities(self) -> Capabilities:
        """What the service can do and where its limits are."""
        response = await self._call(self._stub.GetCapabilities, pb.GetCapabilitiesRequest(), 10.0)
        return conversions.capabilities_from_message(response)

    async def stats(self) -> ServiceStats:
        """What the front-end replica behind this connection has done."""
        response = await self._call(self._stub.GetStats, pb.GetStatsRequest(), 10.0)
        return conversions.stats_from_message(response)

    async def streams(self) -> list[OpenStreamInfo]:
        """Your tenant's open streams at the front-end replica behind this connection.

        Raises:
            InvalidRequest: the service lets nobody look on.
        """
        response = await self._call(self._stub.ListStreams, pb.ListStreamsRequest(), 10.0)
        return [conversions.open_stream_from_message(stream) for stream in response.streams]

    async def observe(self, number: int) -> AsyncIterator[Observed]:
        """Look on at one of `streams` until it ends; what you are too slow for is left out.

        Raises:
            InvalidRequest: there is no such stream, or the service lets nobody look on.
        """
        request = pb.ObserveRequest(number=check_whole(number, "number", UINT64))
        try:
            async for message in self._stub.Observe(request):
                result = conversions.result_from_message(message.result)
                yield Observed(message.encoded_image, result)
        except grpc.aio.AioRpcError as error:
            raise error_of(error) from None

    async def wait_until_ready(self, timeout_s: float | None = 120.0) -> None:
        """Return as soon as the service answers frames; None: wait for ever.

        Raises:
            ServiceError: not within `timeout_s`.
        """
        try:
            await asyncio.wait_for(self._until_ready(), timeout_s)
        except asyncio.TimeoutError:
            raise ServiceError(
                f"no service is ready at {self._target} after {timeout_s:g} s; start one with "
                "`groundstream serve`"
            ) from None

    async def _until_ready(self) -> None:
        while not await is_serving(self._channel, _HEALTH_CALL_S):
            await asyncio.sleep(_HEALTH_POLL_S)

    def watch(
        self,
        frames: AsyncIterator[OutgoingFrame | OutgoingPacket]
        | Iterable[OutgoingFrame | OutgoingPacket],
        queries: Iterable[str | Query] = (),
        *,
        policy: StreamPolicy | None = None,
        reconnect: Reconnect | None = None,
    ) -> WatchStream:
        """A stream of frames answered against standing queries; enter it, then iterate.

        Args:
            frames: pictures, or packets of H.264 or H.265, sent as they come; the stream ends in
                good order when they end. A plain iterable is read in a thread.
            queries: a list of what to look for at the start; a string in it means "detect this".
            policy: how to answer; by default every frame is followed and the newest wins.
            reconnect: what to do when the connection breaks; by default try for about a minute.

        Raises:
            InvalidQuery, InvalidRequest: a query or the policy cannot be sent at all, or `queries`
                is a single string or `Query`, and not a list.
        """
        wanted, policy = as_queries(queries), policy or StreamPolicy()
        # What no message can hold is refused before anything is opened.
        conversions.policy_to_message(policy)
        for query in wanted:
            conversions.query_to_message(query)
        return WatchStream(self._stub, as_async(frames), wanted, policy, reconnect or Reconnect())

    async def _call(self, method: Any, request: Any, timeout_s: float | None) -> Any:
        try:
            return await method(request, timeout=_finite(timeout_s))
        except grpc.aio.AioRpcError as error:
            raise error_of(error, timeout_s) from None


def _finite(timeout_s: float | None) -> float | None:
    """gRPC's wait without an end is None; infinity is no time at all to it."""
    return None if timeout_s == math.inf else timeout_s


def _as_question(query: str | Query) -> Query:
    """A string means a question in free words."""
    return Query(query, task=TaskKind.CHAT) if isinstance(query, str) else query


async def _until_time_is_up(call: Any, timeout_s: float | None) -> AsyncIterator[Any]:
    """What a call streams; when time is up after an answer, that answer stands."""
    answered = False
    try:
        async for message in call:
            answered = answered or message.HasField("result")
            yield message
    except grpc.aio.AioRpcError as error:
        if not (answered and error.code() is grpc.StatusCode.DEADLINE_EXCEEDED):
            raise error_of(error, timeout_s) from None


def _grounding(
    image: bytes,
    queries: Iterable[str | Query],
    boxes: Sequence[Box] | None,
    zoom: Zoom | None,
) -> dict[str, Any]:
    """The fields of both grounding requests."""
    frame = OutgoingFrame(image, boxes=None if boxes is None else tuple(boxes))
    return {
        "frame": conversions.frame_to_message(frame),
        "queries": [conversions.query_to_message(query) for query in as_queries(queries)],
        "zoom": conversions.zoom_to_message(zoom),
    }
