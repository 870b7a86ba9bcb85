"""A front end's way to the replicas of one stage: Serve says who they are, calls go to their doors.

Knows how a call travels and what becomes of it when its replica goes, but no stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import pickle
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import grpc
import grpc.aio
from ray.serve.handle import DeploymentHandle

from agent.errors import AgentError, StageUnavailable
from deployments.cluster_tls import channel_credentials
from deployments.replica_roster import Roster, best, roster_of
from deployments.stage_door import (
    CALL,
    CALL_IN_PARTS,
    KEY_HEADER,
    MAX_MESSAGE_BYTES,
    PING_S,
    STREAM,
    StageBug,
    StageFull,
    packed,
)

_ROSTER_S = 1.0
"""A new replica gets its first call after so long; one that is gone is noticed at once."""
_CONNECT_S = 2.0
_SHUN_S = 1.0
"""A replica that could not be reached is chosen last for so long."""
_PAUSE_S = 0.1
"""Before the next look for a replica where none can be reached."""
_UNUSED_S = 60.0
"""Connections that nobody used for so long are closed: the replica may be gone."""
_SETTLED = (grpc.ChannelConnectivity.READY, grpc.ChannelConnectivity.TRANSIENT_FAILURE)
_BUGS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
"""Said by a door that is there; all else is what gRPC makes of a connection that ends, UNAVAILABLE
mostly, CANCELLED, UNKNOWN or INTERNAL depending on what was under way."""
_GONE_MESSAGE = "a stage went away while it was at work; try again in a few seconds"
_ERRORS = (AgentError, StageFull, StageBug)

_logger = logging.getLogger(__name__)


class _ReplicaGone(StageUnavailable):
    """With a call inside."""


@dataclass
class _Door:
    """A connection to one replica."""

    replica: str
    channel: Any
    metadata: tuple[tuple[str, str], ...]
    used_s: float = field(default_factory=time.monotonic)

    async def is_open(self) -> bool:
        """Whether calls can go there; connects where need be."""
        if self.channel.get_state() is grpc.ChannelConnectivity.READY:
            return True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                while (state := self.channel.get_state(try_to_connect=True)) not in _SETTLED:
                    await self.channel.wait_for_state_change(state)
                return state is grpc.ChannelConnectivity.READY
        return False


class StageChannel:
    """Calls to one stage; every call may go to another replica."""

    def __init__(self, handle: DeploymentHandle[Any]) -> None:
        self._handle = handle
        self._roster: Roster = {}
        self._asked_s = -math.inf
        self._doors: dict[str, _Door] = {}
        self._in_flight: Counter[str] = Counter()
        self._shunned: dict[str, float] = {}

    async def call(self, method: str, *arguments: object, session: str = "") -> Any:
        """What a replica's method returns.

        Args:
            method: its name.
            arguments: its arguments.
            session: calls of one session go to one replica.

        Raises:
            AgentError: the method's own.
            StageUnavailable: two replicas went away while they were at it.
            StageFull: it takes no more calls.
            StageBug: anything else it raised.
        """
        message = packed(arguments)

        async def called(door: _Door) -> Any:
            send = door.channel.unary_unary(f"/{CALL}/{method}")
            return _value(await send(message, metadata=door.metadata))

        return await self._twice(called, session)

    async def call_in_parts(self, method: str, *arguments: object, last: Awaitable[object]) -> Any:
        """As `call`; the replica has the other arguments before the last one is known.

        Raises what `last` raises, too, which may be awaited twice.
        """
        message = packed(arguments)

        async def called(door: _Door) -> Any:
            call = door.channel.stream_unary(f"/{CALL_IN_PARTS}/{method}")(metadata=door.metadata)
            try:
                await call.write(message)
                value = await last
                # The door reads two messages; to tell it that no third comes takes a round more.
                # Nothing can be written into a call that has ended; how it ended says the call.
                with contextlib.suppress(asyncio.InvalidStateError):
                    await call.write(packed(value))
                return _value(await call)
            finally:
                call.cancel()

        return await self._twice(called, "")

    async def stream(
        self, method: str, *arguments: object, session: str = ""
    ) -> AsyncIterator[Any]:
        """What a replica's method yields; raises as `call`."""
        message = packed(arguments)
        door = await self._enter(session)
        call = door.channel.unary_stream(f"/{STREAM}/{method}")(message, metadata=door.metadata)
        try:
            async for reply in call:
                if (piece := _value(reply)) is not None:
                    yield piece
        except grpc.aio.AioRpcError as error:
            self._raise_as_ours(door, error)
        finally:
            call.cancel()
            self._leave(door)

    async def close(self) -> None:
        """Close all connections."""
        doors, self._doors = list(self._doors.values()), {}
        await asyncio.gather(*(door.channel.close() for door in doors))

    async def _twice(self, called: Callable[[_Door], Awaitable[Any]], session: str) -> Any:
        """Once more where a replica goes: calls change nothing, so nobody need hear of it.

        Not a third time: it may be the call that kills them.
        """
        with contextlib.suppress(_ReplicaGone):
            return await self._once(called, session)
        return await self._once(called, session)

    async def _once(self, called: Callable[[_Door], Awaitable[Any]], session: str) -> Any:
        door = await self._enter(session)
        try:
            return await called(door)
        except grpc.aio.AioRpcError as error:
            self._raise_as_ours(door, error)
        finally:
            self._leave(door)

    async def _enter(self, session: str) -> _Door:
        """An open door; waits for one while there is none. Who enters leaves."""
        while True:
            door = await self._chosen(session)
            # Counted before it is open: of many calls at once not all are to go there.
            self._in_flight[door.replica] += 1
            try:
                if await door.is_open():
                    return door
            except BaseException:
                self._leave(door)
                raise
            self._leave(door)
            self._shun(door)
            await asyncio.sleep(_PAUSE_S)

    def _leave(self, door: _Door) -> None:
        self._in_flight[door.replica] -= 1
        if not self._in_flight[door.replica]:
            del self._in_flight[door.replica]

    def _raise_as_ours(self, door: _Door, error: grpc.aio.AioRpcError) -> NoReturn:
        if error.code() in _BUGS:
            raise error
        _logger.warning("a call was cut off: %s", error.details())
        self._shun(door)
        raise _ReplicaGone(_GONE_MESSAGE) from error

    def _shun(self, door: _Door) -> None:
        self._shunned[door.replica] = time.monotonic() + _SHUN_S
        self._asked_s = -math.inf

    async def _chosen(self, session: str) -> _Door:
        now_s = time.monotonic()
        if now_s - self._asked_s > _ROSTER_S:
            self._roster, self._asked_s = await roster_of(self._handle), now_s
            self._shunned = {name: until for name, until in self._shunned.items() if until > now_s}
            await self._close_unused(now_s)
        replica = best(
            self._roster,
            in_flight=self._in_flight,
            shunned=self._shunned.keys(),
            session=session,
        )
        door = self._doors.get(replica)
        if door is None:
            metadata = self._roster[replica]
            key = ((KEY_HEADER, metadata["key"]),)
            door = self._doors[replica] = _Door(replica, _channel(metadata["address"]), key)
        door.used_s = now_s
        return door

    async def _close_unused(self, now_s: float) -> None:
        unused = [
            door
            for door in self._doors.values()
            if now_s - door.used_s > _UNUSED_S and door.replica not in self._in_flight
        ]
        for door in unused:
            del self._doors[door.replica]
        await asyncio.gather(*(door.channel.close() for door in unused))


def _channel(address: str) -> Any:
    options = [
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # A node that vanished without a word is noticed.
        ("grpc.keepalive_time_ms", round(1e3 * PING_S)),
        ("grpc.keepalive_timeout_ms", round(1e3 * PING_S)),
        ("grpc.initial_reconnect_backoff_ms", round(1e3 * _PAUSE_S)),
        ("grpc.max_reconnect_backoff_ms", round(1e3 * _SHUN_S)),
    ]
    credentials = channel_credentials()
    if credentials is None:
        return grpc.aio.insecure_channel(address, options=options)
    return grpc.aio.secure_channel(address, credentials, options=options)


def _value(message: bytes) -> Any:
    value = pickle.loads(message)
    if isinstance(value, _ERRORS):
        raise value
    return value
