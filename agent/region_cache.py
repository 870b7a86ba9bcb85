"""Region cache: features of frames already seen, in this process or over the Redis protocol.

A cache never raises and never decides: when it is down, slow or holds a damaged entry, it
misses and counts. What a server is given is what may be asked about again; a frame of a stream
hardly ever is. Knows no models and no sessions.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from agent.detections import Proposals
from agent.feature_codec import CorruptFeatures, decode_features, encode_features, num_bytes
from agent.features import FrameFeatures
from agent.frame import Frame
from agent.redis_connection import RedisConnection
from agent.settings import CacheSettings

PREPROCESSING_VERSION = 4
"""Raise it when pixels become model inputs in another way, or features are written otherwise: old
entries then miss."""

_logger = logging.getLogger(__name__)
_NAMESPACE = "groundstream:features:"
_SEEN_NAMESPACE = "groundstream:seen:"
"""Here stands that some replica has computed a frame's features, without them."""
_MAX_KEPT_BACK = 4096


@dataclass
class CacheStats:
    """What a cache did since it was made."""

    hits: int = 0
    misses: int = 0
    stored: int = 0
    errors: int = 0
    """Calls that failed or timed out."""
    corrupt: int = 0
    """Entries whose check failed; counted as misses too."""
    skipped: int = 0
    """Calls not made because the cache was down a moment ago, and writes beyond the bound."""
    read_bytes: int = 0
    """Of the features that were found; as stored, behind a server."""
    written_bytes: int = 0

    def __add__(self, other: CacheStats) -> CacheStats:
        """What both did."""
        mine, others = dataclasses.astuple(self), dataclasses.astuple(other)
        return CacheStats(*(a + b for a, b in zip(mine, others, strict=True)))

    def since(self, earlier: CacheStats) -> CacheStats:
        """What was done after that."""
        now, before = dataclasses.astuple(self), dataclasses.astuple(earlier)
        return CacheStats(*(a - b for a, b in zip(now, before, strict=True)))


class RegionCache(Protocol):
    """Features by key. Never raises: a cache that is down is a cache that misses."""

    @property
    def stats(self) -> CacheStats: ...

    async def get(self, key: str) -> FrameFeatures | None: ...

    def put_soon(
        self, key: str, features: FrameFeatures, *, may_be_asked_again: bool = True
    ) -> None:
        """Store in the background, off the critical path.

        What will hardly be asked about again a server gets only when it is; see `asked_again`.
        """
        ...

    def asked_again(self, key: str) -> None:
        """Another question about features that were put came."""
        ...

    async def settle(self) -> None:
        """Wait until everything put so far is stored or given up."""
        ...

    async def close(self) -> None:
        """Give up pending writes and let go of connections."""
        ...


def feature_key(
    frame: Frame, model_digest: str, *, tenant: str = "", boxes: Proposals | None = None
) -> str:
    """BLAKE2b-256, in hexadecimal, over everything the features of a frame depend on.

    Fields are length-prefixed, so no two different combinations share their bytes.
    """
    fields = [
        frame.digest.encode(),
        model_digest.encode(),
        str(PREPROCESSING_VERSION).encode(),
        tenant.encode(),
        b"proposed" if boxes is None else b"given" + boxes.xyxy.tobytes(),
    ]
    digest = hashlib.blake2b(digest_size=32)
    for part in fields:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


class MemoryRegionCache:
    """Features in this process, least recently used out first, bounded in bytes."""

    def __init__(
        self,
        *,
        budget_bytes: int = 256 * 1024 * 1024,
        ttl_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.stats = CacheStats()
        self._budget_bytes = budget_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._entries: OrderedDict[str, tuple[FrameFeatures, float]] = OrderedDict()
        self._held_bytes = 0

    async def get(self, key: str) -> FrameFeatures | None:
        found = self._entries.get(key)
        if found is not None and found[1] <= self._clock():
            self._drop(key)
            found = None
        if found is None:
            self.stats.misses += 1
            return None
        self._entries.move_to_end(key)
        self.stats.hits += 1
        self.stats.read_bytes += num_bytes(found[0])
        return found[0]

    def put_soon(
        self, key: str, features: FrameFeatures, *, may_be_asked_again: bool = True
    ) -> None:
        """Store at once; there is nothing to wait for in memory."""
        size = num_bytes(features)
        if size > self._budget_bytes:
            self.stats.skipped += 1
            return
        self._drop(key)
        self._entries[key] = (features, self._clock() + self._ttl_s)
        self._held_bytes += size
        while self._held_bytes > self._budget_bytes:
            self._drop(next(iter(self._entries)))
        self.stats.stored += 1
        self.stats.written_bytes += size

    def peek(self, key: str) -> FrameFeatures | None:
        """What is there, uncounted."""
        found = self._entries.get(key)
        return None if found is None else found[0]

    def asked_again(self, key: str) -> None:
        return None

    async def settle(self) -> None:
        return None

    async def close(self) -> None:
        self._entries.clear()
        self._held_bytes = 0

    def _drop(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._held_bytes -= num_bytes(entry[0])


class RedisRegionCache:
    """Features behind a Redis-protocol server, shared by all replicas.

    What was computed or found a moment ago is also in this process's memory.
    """

    def __init__(
        self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._stats = CacheStats()
        self._settings = settings
        self._memory = MemoryRegionCache(
            budget_bytes=settings.memory_bytes, ttl_s=settings.ttl_s, clock=clock
        )
        self._door = RedisConnection(settings, purpose="region cache", clock=clock)
        self._writes: set[asyncio.Task[None]] = set()
        self._kept_back: OrderedDict[str, None] = OrderedDict()
        """Keys of features in memory that the server was not given."""

    @property
    def stats(self) -> CacheStats:
        """What it did so far."""
        return dataclasses.replace(
            self._stats,
            errors=self._door.num_errors,
            skipped=self._stats.skipped + self._door.num_skipped,
        )

    async def get(self, key: str) -> FrameFeatures | None:
        features = await self._memory.get(key)
        if features is None:
            features = await self._from_server(key)
        if features is None:
            self._stats.misses += 1
        else:
            self._stats.hits += 1
        return features

    def put_soon(
        self, key: str, features: FrameFeatures, *, may_be_asked_again: bool = True
    ) -> None:
        self._memory.put_soon(key, features)
        if may_be_asked_again or self._settings.keep_keyframes:
            self._write_soon(lambda: self._put(key, features))
            return
        self._kept_back[key] = None
        if len(self._kept_back) > _MAX_KEPT_BACK:
            self._kept_back.popitem(last=False)
        self._write_soon(lambda: self._put_if_seen(key, features))

    def asked_again(self, key: str) -> None:
        if key not in self._kept_back:
            return
        del self._kept_back[key]
        features = self._memory.peek(key)
        if features is not None:
            self._write_soon(lambda: self._put(key, features))

    async def settle(self) -> None:
        if self._writes:
            await asyncio.wait(set(self._writes))

    async def close(self) -> None:
        for task in self._writes:
            task.cancel()
        await self.settle()
        await self._door.close()

    def _write_soon(self, write: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if len(self._writes) >= self._settings.max_pending_writes:
            self._stats.skipped += 1
            return
        if self._door.may_call(writes=True):
            task = asyncio.create_task(write())
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def _put(self, key: str, features: FrameFeatures) -> None:
        # Megabytes to checksum; the event loop has streams to answer meanwhile.
        blob = await asyncio.to_thread(encode_features, features, key)
        stored = await self._door.set(_NAMESPACE + key, blob, ttl_s=self._settings.ttl_s)
        self._stats.stored += stored
        self._stats.written_bytes += len(blob) if stored else 0

    async def _put_if_seen(self, key: str, features: FrameFeatures) -> None:
        """Another replica had this frame, too; there may be a third."""
        name = _SEEN_NAMESPACE + key
        if await self._door.set_new(name, b"1", ttl_s=self._settings.ttl_s) is False:
            self._kept_back.pop(key, None)
            await self._put(key, features)

    async def _from_server(self, key: str) -> FrameFeatures | None:
        blob = await self._door.get(_NAMESPACE + key)
        if blob is None:
            return None
        features = await asyncio.to_thread(self._checked, key, blob)
        if features is not None:
            self._stats.read_bytes += len(blob)
            self._memory.put_soon(key, features)
        return features

    def _checked(self, key: str, blob: bytes) -> FrameFeatures | None:
        try:
            return decode_features(blob, key)
        except CorruptFeatures as error:
            self._stats.corrupt += 1
            _logger.warning("region cache entry %s is damaged: %s", key[:16], error)
            return None


def open_cache(settings: CacheSettings) -> RegionCache:
    """The Redis cache when a URL is set, else one in this process' memory."""
    if settings.url is None:
        return MemoryRegionCache(budget_bytes=settings.budget_bytes, ttl_s=settings.ttl_s)
    return RedisRegionCache(settings)
