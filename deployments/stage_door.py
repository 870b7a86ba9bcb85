"""A stage replica's own gRPC server, at which front ends call it without a way around.

Serve starts replicas, watches them and says which there are; the calls themselves go straight to
this door (docs/decisions has what a call through Serve costs). Address and key reach the front
ends as the replica's metadata, so only they get in. What travels are pickled Python objects: both
ends are one release of one service. Knows no stage.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import pickle
import secrets
import time
import traceback
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import grpc
import grpc.aio

from agent.errors import AgentError
from agent.server_settings import joined_address
from agent.stage_settings import StageLimits
from agent.started_tasks import started
from deployments.cluster_tls import server_credentials

METHODS = ("propose", "describe", "encode", "answer", "write_answer")
"""Of a replica, what may be called from outside."""
CALL, CALL_IN_PARTS, STREAM = "call", "parts", "stream"
"""First part of a method's path: one message either way; the last argument in a message of its
own, when it is known; or many messages back."""
KEY_HEADER = "groundstream-key"
MAX_MESSAGE_BYTES = 256 * 1024 * 1024
PING_S = 10.0
"""Front ends make sure this often that a silent replica is still there."""


class StageFull(Exception):
    """As many calls as a replica takes are at it."""


class StageBug(Exception):
    """A stage raised what it should not; holds the replica's traceback, for the log."""


class StageDoor:
    """The server of one replica, and how many calls are inside."""

    def __init__(self, replica: object) -> None:
        self.max_calls = StageLimits().max_calls
        """Those that wait for their turn included; more are refused."""
        self.load = MeanLoad()
        self._replica = replica
        self._key = secrets.token_hex(32)
        self._server: Any = None

    async def open(self, host: str) -> dict[str, str]:
        """Listen at any free port of `host`; returns what a caller needs to know."""
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", round(500 * PING_S)),
            ]
        )
        self._server.add_generic_rpc_handlers((_Methods(self),))
        anywhere, credentials = joined_address(host, 0), server_credentials()
        if credentials is None:
            port = self._server.add_insecure_port(anywhere)
        else:
            port = self._server.add_secure_port(anywhere, credentials)
        await self._server.start()
        return {"address": joined_address(host, port), "key": self._key}

    @property
    def is_open(self) -> bool:
        """Whether anybody was ever let in."""
        return self._server is not None

    async def close(self, grace_s: float) -> None:
        """Take nothing new; returns when the last call has ended, or been cut after `grace_s`."""
        await self._server.stop(grace_s)

    async def call(self, name: str, request: bytes, context: Any) -> bytes:
        """One method with all its arguments."""
        await self._check(context)
        return await self._reply(lambda: self._method(name)(*pickle.loads(request)))

    async def call_in_parts(self, name: str, requests: Any, context: Any) -> bytes:
        """One method whose last argument is awaitable, because it has not come yet."""
        await self._check(context)
        arguments = pickle.loads(await anext(requests))
        last = started(_last(requests))
        try:
            reply = await self._reply(lambda: self._method(name)(*arguments, last))
            # A caller that still writes when the call has ended never learns how it ended.
            await asyncio.wait([last])
            return reply
        finally:
            last.cancel()

    async def stream(self, name: str, request: bytes, context: Any) -> None:
        """One method that yields."""
        await self._check(context)

        async def write_all() -> None:
            # Closed at once when the caller goes, so that what it began ends, too.
            async with contextlib.aclosing(self._method(name)(*pickle.loads(request))) as pieces:
                async for piece in pieces:
                    await context.write(packed(piece))

        last = await self._reply(write_all)
        await context.write(last)

    def _method(self, name: str) -> Callable[..., Any]:
        method: Callable[..., Any] = getattr(self._replica, name)
        return method

    async def _check(self, context: Any) -> None:
        key = dict(context.invocation_metadata() or ()).get(KEY_HEADER, "")
        if not hmac.compare_digest(str(key), self._key):
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, "front ends alone may call this")

    async def _reply(self, work: Callable[[], Awaitable[Any]]) -> bytes:
        """The result or the error, packed; counts the call while it is inside."""
        if self.load.now >= self.max_calls:
            return packed(StageFull())
        self.load.change(1)
        try:
            return packed(await work())
        except AgentError as error:
            return packed(error)
        except Exception:
            # The front end logs it, with the id of the request.
            return packed(StageBug(traceback.format_exc()))
        finally:
            self.load.change(-1)


class _Methods(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Paths like /call/propose."""

    def __init__(self, door: StageDoor) -> None:
        self._door = door

    def service(self, details: Any) -> Any:
        """The handler of a path; None: there is none."""
        _, kind, name = (*details.method.split("/"), "", "")[:3]
        if name not in METHODS:
            return None
        # Partial, not lambda: gRPC runs what is no coroutine function in a thread.
        if kind == CALL:
            return grpc.unary_unary_rpc_method_handler(partial(self._door.call, name))
        if kind == CALL_IN_PARTS:
            return grpc.stream_unary_rpc_method_handler(partial(self._door.call_in_parts, name))
        if kind == STREAM:
            return grpc.unary_stream_rpc_method_handler(partial(self._door.stream, name))
        return None


class MeanLoad:
    """Calls inside: now, and on average since somebody last asked."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = 0
        self._clock = clock
        self._asked_s = self._changed_s = clock()
        self._call_seconds = 0.0

    def change(self, by: int) -> None:
        """One call more or less."""
        self._add_up()
        self.now += by

    def take_mean(self) -> float:
        """Calls inside since the last time this was called."""
        self._add_up()
        took_s = self._changed_s - self._asked_s
        mean = self._call_seconds / took_s if took_s > 0.0 else float(self.now)
        self._asked_s, self._call_seconds = self._changed_s, 0.0
        return mean

    def _add_up(self) -> None:
        now_s = self._clock()
        self._call_seconds += self.now * (now_s - self._changed_s)
        self._changed_s = now_s


def packed(value: object) -> bytes:
    """As it travels."""
    return pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL)


async def _last(requests: Any) -> Any:
    try:
        return pickle.loads(await anext(requests))
    except StopAsyncIteration:
        # Whoever calls went away, which ends whatever waits for this.
        raise asyncio.CancelledError from None
