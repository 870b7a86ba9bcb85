"""Observing open streams: callers of the same tenant see what a stream says, with its pictures.

Stands between a stream and its call, and passes on all that is read and written; keeps a picture
only while it is observed. A slow observer skips; the stream waits for none. Knows no server.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncGenerator, Iterator
from typing import Any

from deployments.streams.buffers import LatestValue, PictureBuffer
from groundstream.errors import InvalidRequest
from groundstream.protos import vision_agent_pb2 as pb


class ObservedCall:
    """A stream's call, seen by others too."""

    def __init__(self, call: Any, number: int, tenant: str) -> None:
        self.number = number
        self.tenant = tenant
        self._call = call
        self._opened_s = time.monotonic()
        self._query_ids: list[str] = []
        self._stats = pb.StreamStats()
        self._num_observers = 0
        self._pending = PictureBuffer()
        self._latest: LatestValue[pb.ObserveResponse] = LatestValue()

    async def read(self) -> Any:
        """The call's next message."""
        return await self._call.read()

    @property
    def is_observed(self) -> bool:
        """Whether anybody looks on."""
        return self._num_observers > 0

    def keep_picture(self, sequence: int, encoded: bytes) -> None:
        """A frame was taken in; its picture is shown with its result, if there are observers."""
        if self._num_observers:
            self._pending.put(sequence, encoded)

    async def write(self, message: pb.WatchResponse) -> None:
        """Send a message; observers get what is about a picture."""
        await self._call.write(message)
        match message.WhichOneof("message"):
            case "stats":
                self._stats = message.stats
            case "ack":
                self._query_ids = list(message.ack.query_ids)
            case "opened":
                self._query_ids = list(message.opened.query_ids)
            case "result" if self._num_observers:
                self._show(message.result)

    async def responses(self) -> AsyncGenerator[pb.ObserveResponse, None]:
        """The latest picture and its result, whenever there is a newer one, to the end."""
        self._num_observers += 1
        try:
            async with contextlib.aclosing(self._latest.values()) as latest:
                async for response in latest:
                    yield response
        finally:
            self._num_observers -= 1
            if not self._num_observers:
                self._pending.clear()
                self._latest.forget()

    def description(self) -> pb.OpenStreamInfo:
        """What a list of streams says of it; the books are those that its client was told last."""
        return pb.OpenStreamInfo(
            number=self.number,
            age_s=time.monotonic() - self._opened_s,
            query_ids=self._query_ids,
            stats=self._stats,
        )

    def close(self) -> None:
        """The stream has ended; its observers are let go."""
        self._latest.close()

    def _show(self, result: pb.FrameResult) -> None:
        encoded = self._pending.take(result.sequence)
        if encoded is not None:
            self._latest.put(pb.ObserveResponse(encoded_image=encoded, result=result))


class ObservableStreams:
    """The open streams of a front-end replica, where they may be observed."""

    def __init__(self, *, allowed: bool) -> None:
        self._allowed = allowed
        self._numbers = itertools.count(1)
        self._calls: dict[int, ObservedCall] = {}

    @contextlib.contextmanager
    def watching(self, call: Any, tenant: str) -> Iterator[Any]:
        """The call that a stream is to be served on; as it is where observing is off."""
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

    def of_tenant(self, tenant: str) -> list[ObservedCall]:
        """A tenant's own, oldest first.

        Raises:
            InvalidRequest: observing is off.
        """
        if not self._allowed:
            raise InvalidRequest("this service lets nobody look on; see server.observe")
        return [call for call in self._calls.values() if call.tenant == tenant]

    def find(self, tenant: str, number: int) -> ObservedCall:
        """One of a tenant's own; another tenant's does not exist.

        Raises:
            InvalidRequest: there is none of that number, or observing is off.
        """
        for call in self.of_tenant(tenant):
            if call.number == number:
                return call
        raise InvalidRequest(f"there is no open stream {number} here; list them again")
