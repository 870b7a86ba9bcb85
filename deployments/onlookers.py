"""Looking on at open streams: who of the same tenant may see what a stream says, with its pictures.

Stands between a stream and its call, and passes on all that is read and written; keeps a picture
only while somebody looks on. A slow onlooker skips; the stream waits for none. Knows no server.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from agent.errors import InvalidRequest
from deployments.kept_pictures import KeptPictures
from deployments.newest import Newest
from protos import vision_agent_pb2 as pb


class ObservedCall:
    """A stream's call, seen by others too."""

    def __init__(self, call: Any, number: int, tenant: str) -> None:
        self.number = number
        self.tenant = tenant
        self._call = call
        self._opened_s = time.monotonic()
        self._query_ids: list[str] = []
        self._stats = pb.StreamStats()
        self._num_onlookers = 0
        self._pending = KeptPictures()
        self._newest: Newest[pb.ObserveResponse] = Newest()

    async def read(self) -> Any:
        """The call's next message."""
        return await self._call.read()

    def keep_picture(self, sequence: int, encoded: bytes) -> None:
        """A frame was taken in; its picture is shown with its result, if anybody looks on."""
        if self._num_onlookers:
            self._pending.put(sequence, encoded)

    async def write(self, message: pb.WatchResponse) -> None:
        """Send a message; onlookers get what is about a picture."""
        await self._call.write(message)
        match message.WhichOneof("message"):
            case "stats":
                self._stats = message.stats
            case "ack":
                self._query_ids = list(message.ack.query_ids)
            case "opened":
                self._query_ids = list(message.opened.query_ids)
            case "result" if self._num_onlookers:
                self._show(message.result)

    async def responses(self) -> AsyncGenerator[pb.ObserveResponse, None]:
        """The newest picture and its result, whenever there is a newer one, to the end."""
        self._num_onlookers += 1
        try:
            async with contextlib.aclosing(self._newest.values()) as newest:
                async for response in newest:
                    yield response
        finally:
            self._num_onlookers -= 1
            if not self._num_onlookers:
                self._pending.clear()
                self._newest.forget()

    def description(self) -> pb.OpenStreamInfo:
        """What a list of streams says of it; the books are those that its client was told last."""
        return pb.OpenStreamInfo(
            number=self.number,
            age_s=time.monotonic() - self._opened_s,
            query_ids=self._query_ids,
            stats=self._stats,
        )

    def close(self) -> None:
        """The stream has ended; its onlookers are let go."""
        self._newest.close()

    def _show(self, result: pb.FrameResult) -> None:
        encoded = self._pending.pop(result.sequence)
        if encoded is not None:
            self._newest.put(pb.ObserveResponse(encoded_image=encoded, result=result))


class Onlookers:
    """The open streams of a front-end replica, where they may be looked at."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._numbers = itertools.count(1)
        self._calls: dict[int, ObservedCall] = {}

    @contextlib.contextmanager
    def watching(self, call: Any, tenant: str) -> Iterator[Any]:
        """The call that a stream is to be served on; as it is where nobody may look on."""
        if not self._allowed:
            yield call
            return
        observed = ObservedCall(call, next(self._numbers), tenant)
        self._calls[observed.number] = observed
        try:
            yield observed
        finally:
            del self._calls[observed.number]
            observed.close()

    def of(self, tenant: str) -> list[ObservedCall]:
        """A tenant's own, oldest first.

        Raises:
            InvalidRequest: this service lets nobody look on.
        """
        if not self._allowed:
            raise InvalidRequest("this service lets nobody look on; see server.observe")
        return [call for call in self._calls.values() if call.tenant == tenant]

    def find(self, tenant: str, number: int) -> ObservedCall:
        """One of a tenant's own; another tenant's does not exist.

        Raises:
            InvalidRequest: there is none of that number, or nobody may look on.
        """
        for call in self.of(tenant):
            if call.number == number:
                return call
        raise InvalidRequest(f"there is no open stream {number} here; list them again")
