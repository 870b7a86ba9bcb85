"""What each tenant may use: streams open together; frames, pixels and prompts per second.

Counted for all front-end replicas together behind a Redis server, or in this process without one.
Everything counted there ends by itself, so that what a killed replica or client held comes back.
While the server is down each replica counts for itself. Knows no credentials and no wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agent.prompts import MAX_REGIONS
from agent.redis_connection import RedisConnection
from agent.server_settings import AccessSettings, QuotaSettings
from agent.settings import CacheSettings
from groundstream.errors import QuotaExceeded

_NAMESPACE = "groundstream:quota:"
_RENEWALS = 3
"""Of a lease, within its lifetime."""
_STREAM_RETRY_S = 1.0
_ANY_BURST_S = 1e9

_TAKE_LEASE = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now)
if not redis.call('ZSCORE', KEYS[1], ARGV[1]) and
    redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[2]) then
  return 0
end
redis.call('ZADD', KEYS[1], now + ARGV[3], ARGV[1])
local last = redis.call('ZREVRANGE', KEYS[1], 0, 0, 'WITHSCORES')
redis.call('PEXPIREAT', KEYS[1], last[2])
return 1
"""
_DROP_LEASE = "return redis.call('ZREM', KEYS[1], ARGV[1])"
_SPEND = """
local time = redis.call('TIME')
local now = time[1] * 1000 + time[2] / 1000
local burst, wait, paid = tonumber(ARGV[1]), 0, {}
for i, key in ipairs(KEYS) do
  paid[i] = math.max(tonumber(redis.call('GET', key) or now) or now, now)
  wait = math.max(wait, paid[i] - now - burst)
end
if wait <= 0 then
  for i, key in ipairs(KEYS) do
    local value = paid[i] + ARGV[i + 1]
    if value > now then
      redis.call('SET', key, string.format('%.3f', value), 'PX', math.ceil(value - now))
    end
  end
end
return math.ceil(wait)
"""


@dataclass(frozen=True)
class Cost:
    """A part of something that comes back with time."""

    name: str
    seconds: float
    """How long it takes to come back."""


class QuotaBook(Protocol):
    """Where use is written down."""

    async def take_lease(self, tenant: str, lease: str, limit: int, ttl_s: float) -> bool:
        """Whether one more fits; of a lease that is there, lengthen it."""
        ...

    async def drop_lease(self, tenant: str, lease: str) -> None: ...

    async def spend(self, tenant: str, costs: Sequence[Cost], burst_s: float) -> float:
        """0 when all of it was spent; else seconds to wait, and nothing was."""
        ...

    async def close(self) -> None: ...


class MemoryQuotaBook:
    """Use of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._leases: dict[str, dict[str, float]] = {}
        """By tenant and lease: when it ends."""
        self._paid_until_s: dict[tuple[str, str], float] = {}

    async def take_lease(self, tenant: str, lease: str, limit: int, ttl_s: float) -> bool:
        now_s = self._clock()
        held = {name: end for name, end in self._leases.get(tenant, {}).items() if end > now_s}
        if fits := lease in held or len(held) < limit:
            held[lease] = now_s + ttl_s
        self._leases[tenant] = held
        return fits

    async def drop_lease(self, tenant: str, lease: str) -> None:
        held = self._leases.get(tenant, {})
        held.pop(lease, None)
        if not held:
            self._leases.pop(tenant, None)

    async def spend(self, tenant: str, costs: Sequence[Cost], burst_s: float) -> float:
        now_s = self._clock()
        # What is paid by now is as if it never was; tenants that went away are forgotten.
        self._paid_until_s = {k: end for k, end in self._paid_until_s.items() if end > now_s}
        until_s = [self._paid_until_s.get((tenant, cost.name), now_s) for cost in costs]
        wait_s = max(until_s, default=now_s) - now_s - burst_s
        if wait_s > 0.0:
            return wait_s
        for cost, end_s in zip(costs, until_s, strict=True):
            self._paid_until_s[tenant, cost.name] = end_s + cost.seconds
        return 0.0

    async def close(self) -> None:
        return None


class RedisQuotaBook:
    """Use of all replicas; the server's clock counts."""

    def __init__(self, settings: CacheSettings) -> None:
        self._redis = RedisConnection(settings, purpose="quota book")
        self._own = MemoryQuotaBook()
        """What counts while the server does not answer."""

    async def take_lease(self, tenant: str, lease: str, limit: int, ttl_s: float) -> bool:
        fits_here = await self._own.take_lease(tenant, lease, limit, ttl_s)
        arguments = (lease, limit, round(1e3 * ttl_s))
        fits = await self._redis.run(_TAKE_LEASE, [_key(tenant, "streams")], arguments)
        if fits is None:
            return fits_here
        if not fits:
            await self._own.drop_lease(tenant, lease)
        return bool(fits)

    async def drop_lease(self, tenant: str, lease: str) -> None:
        await self._own.drop_lease(tenant, lease)
        await self._redis.run(_DROP_LEASE, [_key(tenant, "streams")], (lease,))

    async def spend(self, tenant: str, costs: Sequence[Cost], burst_s: float) -> float:
        arguments = [1e3 * burst_s, *(1e3 * cost.seconds for cost in costs)]
        keys = [_key(tenant, cost.name) for cost in costs]
        wait_ms: Any = await self._redis.run(_SPEND, keys, arguments)
        if wait_ms is None:
            return await self._own.spend(tenant, costs, burst_s)
        return float(wait_ms) / 1e3

    async def close(self) -> None:
        await self._redis.close()


def _key(tenant: str, what: str) -> str:
    """Does not tell the tenant; the braces keep one tenant's keys together in a cluster."""
    digest = hashlib.blake2b(tenant.encode(), digest_size=16).hexdigest()
    return f"{_NAMESPACE}{{{digest}}}:{what}"


class Quotas:
    """What every tenant may use, and the book that says what it does."""

    def __init__(self, settings: AccessSettings, book: QuotaBook) -> None:
        self._settings = settings
        self._book = book

    def of(self, tenant: str) -> TenantQuota:
        """One tenant's quota."""
        quota = self._settings.quotas.get(tenant, self._settings.quota)
        return TenantQuota(tenant, quota, self._settings, self._book)

    async def close(self) -> None:
        """Let go of connections."""
        await self._book.close()


class TenantQuota:
    """One tenant's part of the service."""

    def __init__(
        self, tenant: str, quota: QuotaSettings, settings: AccessSettings, book: QuotaBook
    ) -> None:
        self._tenant = tenant
        self._quota = quota
        self._settings = settings
        self._book = book

    @contextlib.asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """An open stream, counted until the context ends.

        Raises:
            QuotaExceeded: the tenant has as many as it may.
        """
        limit, ttl_s = self._quota.streams, self._settings.lease_ttl_s
        if limit is None:
            yield
            return
        lease = secrets.token_hex(8)
        if not await self._book.take_lease(self._tenant, lease, limit, ttl_s):
            raise QuotaExceeded(
                f"{limit} streams are open, as many as your quota allows; end one first",
                retry_after_s=_STREAM_RETRY_S,
            )
        renewing = asyncio.create_task(self._renew(lease, limit, ttl_s))
        try:
            yield
        finally:
            renewing.cancel()
            await self._book.drop_lease(self._tenant, lease)

    async def spend_arrival(self) -> None:
        """A frame came in, of which nothing has been read; a bad one costs as much.

        Raises:
            QuotaExceeded: too many frames of late, or questions that are not paid for yet.
        """
        await self._spend(frames=1.0, prompts=0.0)

    async def spend_pixels(self, num_pixels: int) -> None:
        """It can be read and is to be answered.

        A frame larger than a second's pixels passes, and is paid for by those after it.

        Raises:
            QuotaExceeded: too many pixels of late.
        """
        await self._spend(pixels=float(num_pixels))

    async def spend_questions(self, num_questions: int, num_boxes: int) -> None:
        """Questions that are to be asked about a frame's boxes.

        Raises:
            QuotaExceeded: too many prompts of late.
        """
        await self._spend(prompts=float(num_prompts(num_questions, num_boxes)))

    async def charge_questions(self, num_questions: int, num_boxes: int) -> None:
        """Questions that have been asked; what is too much delays the frames that come next."""
        prompts = float(num_prompts(num_questions, num_boxes))
        if prompts and self._quota.prompts_per_s is not None:
            cost = Cost("prompts", prompts / self._quota.prompts_per_s)
            await self._book.spend(self._tenant, [cost], _ANY_BURST_S)

    async def _spend(self, **amounts: float) -> None:
        rates = {name: getattr(self._quota, f"{name}_per_s") for name in amounts}
        limited = {name: rate for name, rate in rates.items() if rate is not None}
        if not limited:
            return
        costs = [Cost(name, amounts[name] / rate) for name, rate in limited.items()]
        wait_s = await self._book.spend(self._tenant, costs, self._settings.burst_s)
        if wait_s > 0.0:
            limits = " and ".join(f"{rate:g} {name}/s" for name, rate in limited.items())
            raise QuotaExceeded(
                f"your quota is {limits}; send fewer or smaller frames, or ask less about them",
                retry_after_s=wait_s,
            )

    async def _renew(self, lease: str, limit: int, ttl_s: float) -> None:
        while True:
            await asyncio.sleep(ttl_s / _RENEWALS)
            # A stream that is open stays open, though others may have come meanwhile.
            await self._book.take_lease(self._tenant, lease, limit, ttl_s)


def num_prompts(num_questions: int, num_boxes: int) -> int:
    """What the language model is asked: every question, about every page of boxes."""
    return num_questions * max(1, math.ceil(num_boxes / MAX_REGIONS))


def open_quotas(settings: AccessSettings, cache: CacheSettings) -> Quotas:
    """Counted behind the cache's server where there is one, else in this process."""
    book = MemoryQuotaBook() if cache.url is None else RedisQuotaBook(cache)
    return Quotas(settings, book)
