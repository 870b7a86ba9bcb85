"""Region cache: features of frames already seen, in this process or over the Redis protocol.

A cache never raises and never decides: when it is down, slow or holds a damaged entry, it
misses and counts. Knows no models and no sessions. The only user of Redis.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from agent.detections import Proposals
from agent.feature_codec import CorruptFeatures, decode_features, encode_features, num_bytes
from agent.features import FrameFeatures
from agent.frame import Frame
from agent.settings import CacheSettings

PREPROCESSING_VERSION = 1
"""Raise it when the way pixels become model inputs changes: old entries then miss."""

_logger = logging.getLogger(__name__)
_NAMESPACE = "groundstream:features:"


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


class RegionCache(Protocol):
    """Features by key. Never raises: a cache that is down is a cache that misses."""

    stats: CacheStats

    async def get(self, key: str) -> FrameFeatures | None: ...

    def put_soon(self, key: str, features: FrameFeatures) -> None:
        """Store in the background, off the critical path."""
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
        return found[0]

    def put_soon(self, key: str, features: FrameFeatures) -> None:
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
    """Features behind a Redis-protocol server, shared by all front-end replicas.

    After a failed call the server is left alone for a while (doubling up to a limit), so that an
    unreachable Redis costs its timeout once in a while and not once per frame.
    """

    def __init__(
        self, settings: CacheSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        if settings.url is None:
            raise ValueError("a Redis cache needs a URL")
        self.stats = CacheStats()
        self._settings = settings
        self._clock = clock
        self._redis = redis.asyncio.Redis.from_url(
            settings.url,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            # The client's own retries would hide an outage behind seconds of waiting.
            retry=Retry(NoBackoff(), 0),
        )
        self._writes: set[asyncio.Task[None]] = set()
        self._closed_until_s = 0.0
        self._pause_s = settings.retry_after_s

    async def get(self, key: str) -> FrameFeatures | None:
        if not self._may_call():
            self.stats.misses += 1
            return None
        blob: bytes | str | None = None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                blob = await self._redis.get(_NAMESPACE + key)
            self._succeeded()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
        features = self._checked(key, blob) if isinstance(blob, bytes) else None
        if features is None:
            self.stats.misses += 1
        else:
            self.stats.hits += 1
        return features

    def put_soon(self, key: str, features: FrameFeatures) -> None:
        if len(self._writes) >= self._settings.max_pending_writes:
            self.stats.skipped += 1
            return
        if self._may_call():
            task = asyncio.create_task(self._put(key, features))
            self._writes.add(task)
            task.add_done_callback(self._writes.discard)

    async def settle(self) -> None:
        if self._writes:
            await asyncio.wait(set(self._writes))

    async def close(self) -> None:
        for task in self._writes:
            task.cancel()
        await self.settle()
        await self._redis.aclose()

    async def _put(self, key: str, features: FrameFeatures) -> None:
        blob = encode_features(features, key)
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                await self._redis.set(
                    _NAMESPACE + key, blob, px=max(1, round(self._settings.ttl_s * 1000))
                )
            self.stats.stored += 1
            self._succeeded()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)

    def _checked(self, key: str, blob: bytes) -> FrameFeatures | None:
        try:
            return decode_features(blob, key)
        except CorruptFeatures as error:
            self.stats.corrupt += 1
            _logger.warning("region cache entry %s is damaged: %s", key[:16], error)
            return None

    def _may_call(self) -> bool:
        if self._clock() >= self._closed_until_s:
            return True
        self.stats.skipped += 1
        return False

    def _succeeded(self) -> None:
        self._pause_s = self._settings.retry_after_s

    def _failed(self, error: Exception) -> None:
        self.stats.errors += 1
        if self._clock() < self._closed_until_s:
            return  # One of several calls under way when the server went; the pause is set.
        self._closed_until_s = self._clock() + self._pause_s
        _logger.warning(
            "region cache unavailable (%s); answers go on uncached, next try in %.1f s",
            type(error).__name__,
            self._pause_s,
        )
        self._pause_s = min(2 * self._pause_s, self._settings.max_retry_after_s)


def open_cache(settings: CacheSettings) -> RegionCache:
    """The Redis cache when a URL is set, else one in this process' memory."""
    if settings.url is None:
        return MemoryRegionCache(budget_bytes=settings.budget_bytes, ttl_s=settings.ttl_s)
    return RedisRegionCache(settings)
