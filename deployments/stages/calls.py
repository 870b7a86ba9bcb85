"""Calls to a stage through its deployment handle, made again where a replica dies or says nothing.

Calls change nothing, so two of them do no harm; but they cost twice, so a second one because of
silence is made for a small share of all calls only, lest an overloaded stage get twice its load.
Knows no stage.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import grpc.aio
from ray.exceptions import ObjectLostError, RayActorError
from ray.serve.exceptions import BackPressureError
from ray.serve.handle import DeploymentHandle

from agent.started_tasks import started
from deployments.stages.requests import Refused
from groundstream.errors import StageUnavailable

BY_VALUE_BYTES = 1 << 20
"""Smaller arguments travel inside the call, larger ones through Ray's object store."""
_FIRST_SILENCES = 5.0
_SHARE_OF_SILENCES = 0.05
_GONE = (RayActorError, ObjectLostError, asyncio.CancelledError)
_BUGS = (
    grpc.StatusCode.UNAUTHENTICATED,
    grpc.StatusCode.UNIMPLEMENTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
)
"""Said by a replica that is there; any other is what gRPC makes of a connection that ends."""
_GONE_MESSAGE = "a stage went away while it was at work; try again in a few seconds"


class StageFull(Exception):
    """As many calls as may wait for a replica do."""


class StageCalls:
    """Calls to one deployment."""

    def __init__(self, handle: DeploymentHandle[Any], *, by_value: bool = False) -> None:
        """`by_value`: where neither what is sent nor what comes back is large."""
        options = {"_by_reference": False, "request_serialization": "pickle"} if by_value else {}
        self._handle: Any = handle.options(**options) if by_value else handle
        self._by_reference: Any = handle
        self._silences = _FIRST_SILENCES

    async def call(
        self,
        method: str,
        *arguments: object,
        session: str = "",
        num_bytes: int = 0,
        attempt_s: float = math.inf,
        on_sent: Callable[[Any], None] | None = None,
    ) -> Any:
        """What a replica's method returns.

        Args:
            method: its name.
            arguments: its arguments.
            session: calls of one session go to one replica, while that has room.
            num_bytes: about as large are the arguments.
            attempt_s: a replica that is silent for longer may be gone; another one is asked, too.
            on_sent: is given the first response before it is there.

        Raises:
            AgentError: the method's own.
            StageUnavailable: two replicas went away while they were at it.
            StageFull: too many calls wait.
        """

        def attempt(session: str, on_sent: Callable[[Any], None] | None = None) -> Any:
            handle = self._bound(method, session, num_bytes)
            return started(_sent(handle, arguments, on_sent))

        attempts, num_attempts = {attempt(session, on_sent)}, 1
        try:
            await asyncio.wait(attempts, timeout=None if math.isinf(attempt_s) else attempt_s)
            while True:
                done = {one for one in attempts if one.done()}
                for one in done:
                    others_wait = len(attempts) > len(done)
                    if not _is_gone(one) and not (others_wait and _is_full(one)):
                        self._silences = min(_FIRST_SILENCES, self._silences + _SHARE_OF_SILENCES)
                        return _value(one)
                attempts -= done
                # Not a third time: it may be the call that kills them.
                if num_attempts < 2 and (done or self._may_ask_another()):
                    # Of another session, because this one's replica is the one that went.
                    attempts.add(attempt(f"{session}/again" if session else ""))
                    num_attempts += 1
                if not attempts:
                    raise StageUnavailable(_GONE_MESSAGE)
                await asyncio.wait(attempts, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in attempts:
                one.cancel()

    async def stream(
        self, method: str, *arguments: object, session: str = "", num_bytes: int = 0
    ) -> AsyncIterator[Any]:
        """What a replica's method yields; raises as `call`."""
        handle = self._bound(method, session, num_bytes).options(stream=True)
        pieces, is_done = handle.remote(*arguments), False
        try:
            async for piece in pieces:
                if isinstance(piece, Refused):
                    raise piece.error
                yield piece
            is_done = True
        except BackPressureError as error:
            raise StageFull from error
        except (RayActorError, ObjectLostError) as error:
            raise StageUnavailable(_GONE_MESSAGE) from error
        except grpc.aio.AioRpcError as error:
            if error.code() in _BUGS:
                raise
            raise StageUnavailable(_GONE_MESSAGE) from error
        finally:
            if not is_done:
                pieces.cancel()

    def _bound(self, method: str, session: str, num_bytes: int) -> Any:
        handle = self._by_reference if num_bytes > BY_VALUE_BYTES else self._handle
        options = {"session_id": session} if session else {}
        return handle.options(method_name=method, **options)

    def _may_ask_another(self) -> bool:
        if self._silences < 1.0:
            return False
        self._silences -= 1.0
        return True


async def _sent(
    handle: Any, arguments: tuple[object, ...], on_sent: Callable[[Any], None] | None
) -> Any:
    response = handle.remote(*arguments)
    if on_sent is not None:
        on_sent(response)
    try:
        return await response
    except BackPressureError as error:
        raise StageFull from error
    except asyncio.CancelledError:
        # Serve would let it go on.
        response.cancel()
        raise


def _is_gone(attempt: asyncio.Future[Any]) -> bool:
    """Whether the replica went away with the call inside."""
    if attempt.cancelled():
        return True
    error = attempt.exception()
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() not in _BUGS
    return isinstance(error, _GONE)


def _is_full(attempt: asyncio.Future[Any]) -> bool:
    return isinstance(attempt.exception(), StageFull)


def _value(attempt: asyncio.Future[Any]) -> Any:
    value = attempt.result()
    if isinstance(value, Refused):
        raise value.error
    return value
