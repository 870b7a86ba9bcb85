"""One stream of frames, kept alive: it opens again by itself and goes on where it was.

Iterated by its user, so that a slow reader slows the stream and nothing piles up here. Knows no
protobuf beyond what `client/conversions.py` makes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import reprlib
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import grpc.aio

from groundstream import conversions
from groundstream.checks import check_text
from groundstream.errors import InvalidQuery, KeyFrameNeeded
from groundstream.events import (
    Drain,
    PolicyAck,
    QueriesAck,
    Reconnecting,
    StreamError,
    StreamEvent,
    StreamOpened,
    StreamStats,
)
from groundstream.pauses import growing_pause_s
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.pulled import Pulled
from groundstream.rpc_errors import ServiceError, error_of, may_pass
from groundstream.types import (
    DropPolicy,
    FrameResult,
    OutgoingFrame,
    OutgoingPacket,
    Query,
    StreamPolicy,
    VideoFormat,
)

_ANSWER_S = 1.0
"""Longest wait for the first word of a service; ours says it at once."""


@dataclass(frozen=True)
class Reconnect:
    """How often, and how soon, a broken stream is opened again.

    The pause is drawn between zero and a bound that doubles with every failure, so that the
    clients of a replica that went away do not all come back at once.
    """

    max_attempts: int = 30
    """In a row without a single message from the service (30 take about a minute; a killed replica
    is back after about ten seconds); 0: a broken stream is an error, and one that drains is used
    up."""
    first_pause_s: float = 0.1
    max_pause_s: float = 5.0
    patience_s: float | None = None
    """Give up after so long without a message, however many attempts that were; infinity: never.
    None: `max_attempts` decides."""
    on_attempt: Callable[[Reconnecting], None] | None = None
    """Told before each attempt."""

    def is_used_up(self, attempts: int, broken_s: float) -> bool:
        """Whether no more attempts are made after so many, in so long."""
        if self.max_attempts == 0 or self.patience_s is None:
            return attempts >= self.max_attempts
        return broken_s >= self.patience_s

    def pause_s(self, attempt: int) -> float:
        """The pause before attempt number `attempt`, from 1."""
        return growing_pause_s(
            attempt, first_s=self.first_pause_s, most_s=self.max_pause_s, least_share=0.0
        )


@dataclass
class _PacketRow:
    """Packets sent since the key frame that the service began to decode with."""

    format: VideoFormat
    first: int
    """Sequence of the key frame; pictures shown before it build on some from before."""
    num_packets: int = 0

    def unless_broken_at(self, sequence: int) -> _PacketRow | None:
        """Itself, if the packet that could not be decoded was one of an earlier row."""
        return self if sequence < self.first else None


def as_query(query: str | Query) -> Query:
    """A string means "detect this"."""
    return Query(query) if isinstance(query, str) else query


def as_queries(queries: Iterable[str | Query]) -> list[Query]:
    """Several questions.

    Raises:
        InvalidQuery: it is a single one, whose letters would be asked one by one.
    """
    if isinstance(queries, str | bytes | Query):
        single = queries.text if isinstance(queries, Query) else queries
        raise InvalidQuery(
            "queries are a list, such as ['dog', 'red car'], and not just "
            f"{reprlib.repr(single)}; make a list of one, too"
        )
    return [as_query(query) for query in queries]


class WatchStream:
    """One session: iterate it for events, change its queries and policy at any time.

    Changes return at once with a change id; the matching ack or `StreamError` comes in the
    iteration, in its place between the results. When the connection breaks or the replica
    drains, the iteration goes on with a `StreamOpened` of the resumed session.
    """

    def __init__(
        self,
        stub: Any,
        frames: AsyncIterator[OutgoingFrame | OutgoingPacket],
        queries: list[Query],
        policy: StreamPolicy,
        reconnect: Reconnect,
    ) -> None:
        self.num_sent = 0
        """Frames written so far."""
        self.num_unsent = 0
        """Frames that were not sent at all: they came while there was no connection, or are packets
        that build on one which the service does not have."""
        self.num_reconnects = 0
        self._stub = stub
        self._frames = frames
        self._queries = {query.name: query for query in queries}
        self._policy = policy
        self._reconnect = reconnect
        self._writing = asyncio.Lock()
        self._num_changes = 0
        self._unsettled: dict[int, str | None] = {}
        """Changes that were neither acknowledged nor refused yet: of which query, None: of all."""
        self._epoch = 0
        self._token = ""
        self._num_results = 0
        self._num_settled = 0
        self._last_result: int | None = None
        self._last_sent: int | None = None
        self._last_read: int | None = None
        self._ack_due = asyncio.Event()
        """Set when the service does not know of the last result that was read."""
        self._window = policy.window
        self._settled = asyncio.Event()
        self._is_known = asyncio.Event()
        """Set once the service has said how it understands the policy."""
        self._row: _PacketRow | None = None
        """The packets that the service's decoder has; None: it needs a key frame."""
        self._open = asyncio.Event()
        """Set while frames may be written."""
        self._is_draining = False
        self._is_over = False

    async def __aenter__(self) -> WatchStream:
        await self._connect()
        if self._queries:
            await self.set_queries(list(self._queries.values()))
        self._open.set()
        self._sender = asyncio.create_task(self._send_frames())
        self._acknowledger = asyncio.create_task(self._acknowledge())
        return self

    async def __aexit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self._sender.cancel()
        self._acknowledger.cancel()
        self._call.cancel()
        await asyncio.gather(self._sender, self._acknowledger, return_exceptions=True)
        if isinstance(self._frames, Pulled):
            await self._frames.aclose()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        """Everything the server says, until the frames have ended and are answered.

        Raises:
            ServiceError: the stream broke and could not be opened again, or was refused then.
            InvalidBoxes, InvalidRequest: a frame could not be sent; those before it are answered.
            Exception: whatever the frame iterator raised.
        """
        attempt, broken_at_s = 0, 0.0
        while True:
            has_ended, reason = False, "the service has ended the stream"
            try:
                async for message in self._call:
                    attempt = 0
                    event = conversions.event_from_message(message)
                    if event is None:
                        continue
                    has_ended = isinstance(event, StreamStats) and event.ended
                    await self._note(event)
                    yield event
                    if isinstance(event, FrameResult) and self._policy.ack_window:
                        self._last_read = event.sequence
                        self._ack_due.set()
                has_ended = True
            except grpc.aio.AioRpcError as error:
                # A write that was under way when the service ended the call is an error to gRPC,
                # which then says nothing of how the service ended it.
                broken_at_s = broken_at_s if attempt else time.monotonic()
                broken_s = time.monotonic() - broken_at_s
                is_last = self._reconnect.is_used_up(attempt, broken_s) or not may_pass(error)
                if is_last and not has_ended:
                    raise error_of(error) from None
                reason = str(error_of(error))
            if has_ended and not self._is_draining:
                break
            broken_at_s = broken_at_s if attempt else time.monotonic()
            attempt += 1
            if self._reconnect.on_attempt is not None:
                broken_s = time.monotonic() - broken_at_s
                self._reconnect.on_attempt(Reconnecting(attempt, broken_s, reason))
            await self._reopen(attempt)
        if self._sender.done() and not self._sender.cancelled():
            self._sender.result()

    async def results(self) -> AsyncIterator[FrameResult]:
        """Only the answers; see `__aiter__`."""
        async for event in self:
            if isinstance(event, FrameResult):
                yield event

    async def set_queries(self, queries: Iterable[str | Query]) -> int:
        """Replace all standing queries; returns the change id.

        Raises:
            InvalidQuery: one cannot be sent at all, or `queries` is a single string or `Query`, and
                not a list; nothing has changed.
        """
        wanted = as_queries(queries)
        messages = [conversions.query_to_message(query) for query in wanted]
        self._queries = {query.name: query for query in wanted}
        change = self._next_query_change(None)
        request = pb.WatchRequest(set_queries=pb.SetQueries(queries=messages, change_id=change))
        await self._write(request)
        return change

    async def put_query(self, query: str | Query) -> int:
        """Add a query or replace the one of its name; returns the change id.

        Raises:
            InvalidQuery: it cannot be sent at all; nothing has changed.
        """
        wanted = as_query(query)
        message = conversions.query_to_message(wanted)
        self._queries[wanted.name] = wanted
        change = self._next_query_change(wanted.name)
        put = pb.PutQuery(query=message, change_id=change)
        await self._write(pb.WatchRequest(put_query=put))
        return change

    async def remove_query(self, query_id: str) -> int:
        """Stop asking a query; returns the change id.

        Raises:
            InvalidQuery: the id cannot be sent at all; nothing has changed.
        """
        check_text(query_id, "the query id")
        self._queries.pop(query_id, None)
        change = self._next_query_change(query_id)
        message = pb.RemoveQuery(query_id=query_id, change_id=change)
        await self._write(pb.WatchRequest(remove_query=message))
        return change

    async def set_policy(self, policy: StreamPolicy) -> int:
        """Have frames answered otherwise; returns the change id.

        Raises:
            InvalidRequest: it cannot be sent at all; nothing has changed.
        """
        message = conversions.policy_to_message(policy)
        self._policy = policy
        change = self._next_change()
        changed = pb.SetPolicy(policy=message, change_id=change)
        await self._write(pb.WatchRequest(set_policy=changed))
        return change

    async def pause(self) -> None:
        """Have frames dropped until `resume`; tracks and queries stay."""
        await self._write(pb.WatchRequest(pause=pb.Pause()))

    async def resume(self) -> None:
        """Have frames answered again."""
        await self._write(pb.WatchRequest(resume=pb.Resume()))

    # ---- the connection ----

    async def _connect(self) -> None:
        """Open the call; a session that is there is gone on with."""
        # Others may wait to write to the call before: nothing must come before the opening.
        async with self._writing:
            self._call = self._stub.Watch()
            self._row = None
            self._is_draining = False
            opening = pb.OpenStream(
                resume_token=self._token,
                num_sent=self.num_sent,
                num_results=self._num_results,
                last_result_sequence=self._last_result,
                last_sent_sequence=self._last_sent,
                policy=conversions.policy_to_message(self._policy),
            )
            await self._write_now(pb.WatchRequest(open=opening))
        # Writing more to a call that is being refused would hide from us why it is.
        answered = asyncio.ensure_future(self._call.initial_metadata())
        await asyncio.wait([answered], timeout=_ANSWER_S)
        answered.cancel()

    async def _reopen(self, attempt: int) -> None:
        """Open the call again; frames follow once it is known what the service remembers."""
        self._open.clear()
        await asyncio.sleep(self._reconnect.pause_s(attempt))
        await self._connect()
        self.num_reconnects += 1

    async def _note(self, event: StreamEvent) -> None:
        match event:
            case StreamOpened():
                await self._opened(event)
            case QueriesAck():
                self._epoch = event.epoch
                self._unsettled.pop(event.change_id, None)
            case PolicyAck():
                self._window = event.policy.window
            case FrameResult():
                self._num_results += 1
                self._last_result = event.sequence
                self._settle()
            case StreamError() if event.sequence is not None:
                if event.code == KeyFrameNeeded.code and self._row is not None:
                    self._row = self._row.unless_broken_at(event.sequence)
                self._settle()
            case StreamError(change_id=0) if not self._open.is_set():
                raise ServiceError(f"the stream could not be opened again: {event.message}")
            case StreamError() if event.change_id is not None:
                self._unsettled.pop(event.change_id, None)
            case Drain():
                await self._leave()

    async def _opened(self, event: StreamOpened) -> None:
        self._window = event.policy.window
        self._is_known.set()
        self._token = event.resume_token
        if self._is_draining:
            return  # It drained before it was opened; we have ended our side and go on elsewhere.
        if self.num_reconnects:
            # Frames that went down with the old replica are answered by nobody.
            self._num_settled = self.num_sent
            self._settled.set()
            await self._put_queries_again(event)
            if event.resumed and event.policy != self._effective_policy(event.policy):
                await self.set_policy(self._policy)
            if self._is_over:
                await self._end()
        self._open.set()

    async def _put_queries_again(self, event: StreamOpened) -> None:
        """Have the service ask what we want asked, touching only what it does not know."""
        lost, self._unsettled = list(self._unsettled.values()), {}
        if not event.resumed or event.epoch < self._epoch or None in lost:
            await self.set_queries(list(self._queries.values()))
            return
        for name in lost:
            if name in self._queries:
                await self.put_query(self._queries[name])
            elif name in event.query_ids:
                await self.remove_query(name)

    def _effective_policy(self, known: StreamPolicy) -> StreamPolicy:
        """Our policy as the service would report it."""
        window = self._policy.window or known.window
        return StreamPolicy(
            self._policy.drop, self._policy.mode, window, self._policy.max_age_ms,
            self._policy.ack_window, self._policy.reuse_features,
        )  # fmt: skip

    async def _leave(self) -> None:
        """The replica is going away: let it answer what it has, then go elsewhere."""
        if self._reconnect.max_attempts == 0:
            return  # It answers until it ends the stream.
        self._open.clear()
        self._is_draining = not self._is_over
        await self._end()

    def _settle(self) -> None:
        self._num_settled += 1
        self._settled.set()

    def _next_change(self) -> int:
        self._num_changes += 1
        return self._num_changes

    def _next_query_change(self, name: str | None) -> int:
        change = self._next_change()
        self._unsettled[change] = name
        return change

    # ---- writing ----

    async def _send_frames(self) -> None:
        try:
            async for frame in self._frames:
                if self._policy.drop is DropPolicy.LOSSLESS:
                    await self._wait_for_room()
                    while not await self._send_frame(frame):
                        await self._open.wait()
                elif not await self._send_frame(frame):
                    self.num_unsent += 1
        finally:
            # Also when the frames broke off: the server then answers what it has and ends.
            self._is_over = True
            if self._open.is_set():
                await self._end()

    async def _wait_for_room(self) -> None:
        """No more frames ahead of their results than the lossless window holds."""
        await self._is_known.wait()
        while self._window and self.num_sent - self._num_settled >= self._window:
            self._settled.clear()
            await self._settled.wait()

    async def _send_frame(self, frame: OutgoingFrame | OutgoingPacket) -> bool:
        """Count and write it, unless the stream is being opened again."""
        async with self._writing:
            if not self._open.is_set():
                return False
            if isinstance(frame, OutgoingFrame):
                request = pb.WatchRequest(frame=conversions.frame_to_message(frame))
            elif await self._can_be_decoded(frame):
                assert self._row is not None
                self._row.num_packets += 1
                message = conversions.packet_to_message(frame, packet_number=self._row.num_packets)
                request = pb.WatchRequest(packet=message)
            else:
                self.num_unsent += 1
                return True
            self._last_sent = max(self._last_sent or 0, frame.sequence)
            self.num_sent += 1
            await self._write_now(request)
            return True

    async def _can_be_decoded(self, packet: OutgoingPacket) -> bool:
        """Whether the service has what it builds on; a row of packets begins with a key frame."""
        row = self._row
        if row is not None and row.format == packet.format:
            return packet.sequence >= row.first
        if not packet.is_key:
            return False
        # To number on would tell the service that none was lost since the row before.
        self._row = _PacketRow(packet.format, packet.sequence)
        message = conversions.format_to_message(packet.format)
        await self._write_now(pb.WatchRequest(start_video=message))
        return True

    async def _acknowledge(self) -> None:
        """Tell the service how far we have read.

        Not in the reader's own time: while a large frame is being written it would wait for the
        service, and the service perhaps for its results to be read.
        """
        while True:
            await self._ack_due.wait()
            self._ack_due.clear()
            await self._write(pb.WatchRequest(ack=pb.Ack(sequence=self._last_read)))

    async def _end(self) -> None:
        await self._write(pb.WatchRequest(end=pb.End()))

    async def _write(self, request: pb.WatchRequest) -> None:
        async with self._writing:
            await self._write_now(request)

    async def _write_now(self, request: pb.WatchRequest) -> None:
        """Write to the call; a broken one is noticed and mended by the reader."""
        assert self._writing.locked()
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            await self._call.write(request)
