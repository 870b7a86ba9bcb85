"""A Redis-protocol server that may be slow or gone: every call is bounded and none raises.

After a failed call the server is left alone for a while (doubling up to a limit), so that an
unreachable one costs its timeout once in a while and not once per frame; one that only refuses to
be written to, being full or a replica, is still read. Knows no keys and no values. The only user
of Redis.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import OutOfMemoryError, ReadOnlyError, RedisError

from agent.settings import CacheSettings
from agent.started_tasks import started

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class _CircuitBreaker:
    """Closed, it lets calls pass; a failed call opens it for a while that doubles."""

    def __init__(self, settings: CacheSettings) -> None:
        self._first_s = settings.retry_after_s
        self._most_s = settings.max_retry_after_s
        self._pause_s = self._first_s
        self._until_s = 0.0

    def is_closed(self, now_s: float) -> bool:
        """Whether calls pass."""
        return now_s >= self._until_s

    def failed(self, now_s: float) -> float:
        """Open it; returns for how many seconds."""
        pause_s, self._until_s = self._pause_s, now_s + self._pause_s
        self._pause_s = min(2 * self._pause_s, self._most_s)
        return pause_s

    def succeeded(self) -> None:
        """The next pause is short again."""
        self._pause_s = self._first_s


class RedisConnection:
    """Bounded reads and writes; counts what went wrong."""

    def __init__(
        self,
        settings: CacheSettings,
        *,
        purpose: str,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare a connection; nothing is sent yet.

        Args:
            settings: where the server is and how long to wait for it.
            purpose: what is kept there, for the log.
            clock: seconds.
        """
        if settings.url is None:
            raise ValueError("a Redis connection needs a URL")
        self.num_errors = 0
        """Calls that failed or timed out."""
        self.num_skipped = 0
        """Calls not made because the server was down a moment ago."""
        self._settings = settings
        self._purpose = purpose
        self._clock = clock
        self._redis = redis.asyncio.Redis.from_url(
            settings.url,
            socket_timeout=settings.timeout_s,
            socket_connect_timeout=settings.timeout_s,
            # The client's own retries would hide an outage behind seconds of waiting.
            retry=Retry(NoBackoff(), 0),
        )
        self._all, self._writes = _CircuitBreaker(settings), _CircuitBreaker(settings)

    async def get(self, key: str) -> bytes | None:
        """The value; None when there is none or nobody answers."""
        found = await self._call(lambda: self._redis.get(key))
        return found if isinstance(found, bytes) else None

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Whether the value was stored."""
        lifetime_ms = max(1, round(ttl_s * 1000))
        stored = await self._call(lambda: self._redis.set(key, value, px=lifetime_ms), writes=True)
        return stored is not None

    async def set_new(self, key: str, value: bytes, *, ttl_s: float) -> bool | None:
        """Whether the value was stored, because there was none; None when nobody answers."""
        lifetime_ms = max(1, round(ttl_s * 1000))

        async def stored() -> bool:
            return await self._redis.set(key, value, px=lifetime_ms, nx=True) is not None

        return await self._call(stored, writes=True)

    async def delete(self, key: str) -> None:
        """Forget a value."""
        await self._call(lambda: self._redis.delete(key), writes=True)

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]
    ) -> Any:
        """What a Lua script returns, run as one step; None when nobody answers."""
        # Sends its digest; the text only to a server that does not know it.
        command = self._redis.register_script(script)
        return await self._call(lambda: command(keys=list(keys), args=list(arguments)), writes=True)

    def may_call(self, *, writes: bool = False) -> bool:
        """Whether the server is worth a call; counts the calls it saved."""
        now_s = self._clock()
        is_closed = self._all.is_closed(now_s) and (not writes or self._writes.is_closed(now_s))
        self.num_skipped += not is_closed
        return is_closed

    async def close(self) -> None:
        """Let go of the connection."""
        await self._redis.aclose()

    async def _call(self, command: Callable[[], Awaitable[T]], *, writes: bool = False) -> T | None:
        if not self.may_call(writes=writes):
            return None
        try:
            result = await self._bounded(command())
        except (OutOfMemoryError, ReadOnlyError) as error:
            self._failed(error, self._writes)
            return None
        except (RedisError, OSError, TimeoutError, ValueError) as error:
            # A ValueError: what answered does not speak the protocol.
            self._failed(error, self._all)
            return None
        self._all.succeeded()
        if writes:
            self._writes.succeeded()
        return result

    async def _bounded(self, work: Awaitable[T]) -> T:
        """The result of a command, within the timeout.

        In a task of its own, because the Redis client loses cancellations while its connection
        fails: a caller that was cancelled in its code would go on for ever.
        """
        task = started(work)
        try:
            await asyncio.wait([task], timeout=self._settings.timeout_s)
        finally:
            task.cancel()
        if not task.done():
            raise TimeoutError
        return task.result()

    def _failed(self, error: Exception, breaker: _CircuitBreaker) -> None:
        self.num_errors += 1
        now_s = self._clock()
        if not breaker.is_closed(now_s):
            return  # One of several calls under way when the server went; the pause is set.
        _logger.warning(
            "%s %s (%s); answers go on without it, next try in %.1f s",
            self._purpose,
            "takes no writes" if breaker is self._writes else "unavailable",
            type(error).__name__,
            breaker.failed(now_s),
        )
