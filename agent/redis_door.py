"""A Redis-protocol server that may be slow or gone: every call is bounded and none raises.

After a failed call the server is left alone for a while (doubling up to a limit), so that an
unreachable one costs its timeout once in a while and not once per frame. Knows no keys and no
values. The only user of Redis.
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
from redis.exceptions import RedisError

from agent.settings import CacheSettings

T = TypeVar("T")

_logger = logging.getLogger(__name__)


class RedisDoor:
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
            raise ValueError("a Redis door needs a URL")
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
        self._closed_until_s = 0.0
        self._pause_s = settings.retry_after_s

    async def get(self, key: str) -> bytes | None:
        """The value; None when there is none or nobody answers."""
        found = await self._call(lambda: self._redis.get(key))
        return found if isinstance(found, bytes) else None

    async def set(self, key: str, value: bytes, *, ttl_s: float) -> bool:
        """Whether the value was stored."""
        lifetime_ms = max(1, round(ttl_s * 1000))
        return await self._call(lambda: self._redis.set(key, value, px=lifetime_ms)) is not None

    async def delete(self, key: str) -> None:
        """Forget a value."""
        await self._call(lambda: self._redis.delete(key))

    async def run(
        self, script: str, keys: Sequence[str], arguments: Sequence[str | int | float]
    ) -> Any:
        """What a Lua script returns, run as one step; None when nobody answers."""
        # Sends its digest; the text only to a server that does not know it.
        command = self._redis.register_script(script)
        return await self._call(lambda: command(keys=list(keys), args=list(arguments)))

    def may_call(self) -> bool:
        """Whether the server is worth a call; counts the calls it saved."""
        if self._clock() >= self._closed_until_s:
            return True
        self.num_skipped += 1
        return False

    async def close(self) -> None:
        """Let go of the connection."""
        await self._redis.aclose()

    async def _call(self, command: Callable[[], Awaitable[T]]) -> T | None:
        if not self.may_call():
            return None
        try:
            async with asyncio.timeout(self._settings.timeout_s):
                result = await command()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(error)
            return None
        self._pause_s = self._settings.retry_after_s
        return result

    def _failed(self, error: Exception) -> None:
        self.num_errors += 1
        if self._clock() < self._closed_until_s:
            return  # One of several calls under way when the server went; the pause is set.
        self._closed_until_s = self._clock() + self._pause_s
        _logger.warning(
            "%s unavailable (%s); answers go on without it, next try in %.1f s",
            self._purpose,
            type(error).__name__,
            self._pause_s,
        )
        self._pause_s = min(2 * self._pause_s, self._settings.max_retry_after_s)
