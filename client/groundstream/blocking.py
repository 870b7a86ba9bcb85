"""The client for programs without asyncio: `groundstream.aio`, waited for.

All the work is done by the asyncio client, on a loop in a thread of its own that every blocking
client of the process shares: gRPC's asyncio does not like several loops.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Sequence
from functools import lru_cache
from types import TracebackType
from typing import Any, TypeVar

from groundstream import aio
from groundstream.channel import TlsOptions
from groundstream.events import Observed, OpenStreamInfo, StreamEvent
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
    Zoom,
)
from groundstream.watch_stream import Reconnect
from groundstream.watch_stream import WatchStream as AsyncWatchStream

T = TypeVar("T")
_END = object()


class Client:
    """One connection to a service; use it as a context manager. May be shared by threads.

    Every method does what that of `groundstream.aio.Client` does, and raises the same.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: TlsOptions | None = None,
        token: str | None = None,
    ) -> None:
        """Prepare a connection; it is made with the first call. See `groundstream.aio.Client`."""
        self._client = _wait(_connect(target, tls, token))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        _type: type[BaseException] | None,
        _error: BaseException | None,
        _traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; open streams end."""
        _wait(self._client.close())

    def ground(
        self,
        image: bytes,
        queries: Iterable[str | Query],
        *,
        boxes: Sequence[Box] | None = None,
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> FrameResult:
        """The answers to some questions about one encoded picture."""
        return _wait(
            self._client.ground(image, queries, boxes=boxes, zoom=zoom, timeout_s=timeout_s)
        )

    def ground_anytime(
        self,
        image: bytes,
        queries: Iterable[str | Query],
        *,
        boxes: Sequence[Box] | None = None,
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> Iterator[FrameResult]:
        """The answers at once, then every revision of them."""
        return _each(
            self._client.ground_anytime(image, queries, boxes=boxes, zoom=zoom, timeout_s=timeout_s)
        )

    def ask(
        self,
        image: bytes,
        query: str | Query,
        *,
        zoom: Zoom | None = None,
        timeout_s: float | None = 60.0,
    ) -> Iterator[str | FrameResult]:
        """One question about one encoded picture: its text as it is written, then the answer.

        A string is a free question; see `groundstream.aio.Client.ask`.
        """
        return _each(self._client.ask(image, query, zoom=zoom, timeout_s=timeout_s))

    def capabilities(self) -> Capabilities:
        """What the service can do and where its limits are."""
        return _wait(self._client.capabilities())

    def stats(self) -> ServiceStats:
        """What the front-end replica behind this connection has done."""
        return _wait(self._client.stats())

    def streams(self) -> list[OpenStreamInfo]:
        """Your tenant's open streams at the front-end replica behind this connection."""
        return _wait(self._client.streams())

    def observe(self, number: int) -> Iterator[Observed]:
        """Look on at one of `streams` until it ends."""
        return _each(self._client.observe(number))

    def wait_until_ready(self, timeout_s: float | None = 120.0) -> None:
        """Return as soon as the service answers frames; None: wait for ever."""
        _wait(self._client.wait_until_ready(timeout_s))

    def watch(
        self,
        frames: Iterable[OutgoingFrame | OutgoingPacket]
        | AsyncIterator[OutgoingFrame | OutgoingPacket],
        queries: Iterable[str | Query] = (),
        *,
        policy: StreamPolicy | None = None,
        reconnect: Reconnect | None = None,
    ) -> WatchStream:
        """A stream of frames answered against standing queries; enter it, then iterate.

        Args:
            frames: read in a thread where they are a plain iterable, so `next` may wait for a
                camera.
            queries, policy, reconnect: see `groundstream.aio.Client.watch`.
        """
        stream = self._client.watch(frames, queries, policy=policy, reconnect=reconnect)
        return WatchStream(stream)


class WatchStream:
    """One session; see `groundstream.watch_stream.WatchStream`, whose methods it has."""

    def __init__(self, stream: AsyncWatchStream) -> None:
        self._stream = stream

    def __enter__(self) -> WatchStream:
        _wait(self._stream.__aenter__())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        _wait(self._stream.__aexit__(kind, error, traceback))

    @property
    def num_sent(self) -> int:
        """Frames written so far."""
        return self._stream.num_sent

    @property
    def num_unsent(self) -> int:
        """Frames that came while there was no connection, and were not sent at all."""
        return self._stream.num_unsent

    @property
    def num_reconnects(self) -> int:
        """How often the stream was opened again."""
        return self._stream.num_reconnects

    def __iter__(self) -> Iterator[StreamEvent]:
        """Everything the server says, until the frames have ended and are answered."""
        return _each(self._stream.__aiter__())

    def results(self) -> Iterator[FrameResult]:
        """Only the answers."""
        return _each(self._stream.results())

    def set_queries(self, queries: Iterable[str | Query]) -> int:
        """Replace all standing queries; returns the change id."""
        return _wait(self._stream.set_queries(queries))

    def put_query(self, query: str | Query) -> int:
        """Add a query or replace the one of its name; returns the change id."""
        return _wait(self._stream.put_query(query))

    def remove_query(self, query_id: str) -> int:
        """Stop asking a query; returns the change id."""
        return _wait(self._stream.remove_query(query_id))

    def set_policy(self, policy: StreamPolicy) -> int:
        """Have frames answered otherwise; returns the change id."""
        return _wait(self._stream.set_policy(policy))

    def pause(self) -> None:
        """Have frames dropped until `resume`; tracks and queries stay."""
        _wait(self._stream.pause())

    def resume(self) -> None:
        """Have frames answered again."""
        _wait(self._stream.resume())


@lru_cache(maxsize=1)
def _loop() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="groundstream", daemon=True).start()
    return loop


async def _connect(target: str, tls: TlsOptions | None, token: str | None) -> aio.Client:
    # gRPC binds a channel to the loop that runs when it is made.
    return aio.Client(target, tls=tls, token=token)


def _wait(work: Coroutine[Any, Any, T]) -> T:
    """What it returns or raises; interrupted, it is given up."""
    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _each(items: AsyncIterator[T]) -> Iterator[T]:
    async def following() -> Any:
        return await anext(items, _END)

    async def close() -> None:
        if hasattr(items, "aclose"):
            await items.aclose()

    try:
        while (item := _wait(following())) is not _END:
            yield item
    finally:
        _wait(close())
