"""Where sessions wait for clients that come back: in this process or behind a Redis server.

Values are bytes under a name derived from a secret token and its tenant, with a seal that only this
token gives: whoever can write to the server, but has no token, can lose sessions and not make them
up. Like the region cache, a store never raises: when it is down, or what it holds is damaged,
sessions cannot be resumed and nothing else changes. Knows no snapshots.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from agent.redis_connection import RedisConnection
from agent.settings import CacheSettings

_NAMESPACE = "groundstream:session:"
_TOKEN_BYTES = 24
_MAX_IN_MEMORY = 1000
_MAX_MEMORY_BYTES = 268_435_456
_SEAL_BYTES = 32


class SessionStore(Protocol):
    """Snapshots by token."""

    def for_tenant(self, tenant: str) -> SessionStore:
        """The same store, where only this tenant's tokens are known."""
        ...

    async def load(self, token: str) -> bytes | None: ...

    async def save(self, token: str, snapshot: bytes) -> None: ...

    async def delete(self, token: str) -> None: ...

    async def close(self) -> None: ...


def new_token() -> str:
    """A secret that nobody guesses."""
    return secrets.token_urlsafe(_TOKEN_BYTES)


def _name(token: str, tenant: str) -> str:
    """What a token's snapshot is stored under; does not tell the token."""
    digest = hashlib.blake2b(token.encode(), digest_size=32, salt=_salt(tenant))
    return _NAMESPACE + digest.hexdigest()


def _salt(tenant: str) -> bytes:
    return hashlib.blake2b(tenant.encode(), digest_size=16).digest()


def _seal(snapshot: bytes, token: str, tenant: str) -> bytes:
    """What only somebody who has the token can put before a snapshot."""
    key = hashlib.blake2b(token.encode(), digest_size=64, salt=_salt(tenant)).digest()
    return hashlib.blake2b(snapshot, key=key, digest_size=_SEAL_BYTES, person=b"snapshot").digest()


class MemorySessionStore:
    """Snapshots in this process: outlive a connection, not the replica."""

    def __init__(
        self,
        *,
        ttl_s: float,
        tenant: str = "",
        clock: Callable[[], float] = time.monotonic,
        max_bytes: int = _MAX_MEMORY_BYTES,
    ) -> None:
        self._ttl_s = ttl_s
        self._tenant = tenant
        self._clock = clock
        self._snapshots: OrderedDict[str, tuple[bytes, float]] = OrderedDict()
        self._max_bytes = max_bytes

    def for_tenant(self, tenant: str) -> MemorySessionStore:
        """A view of the same snapshots."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    async def load(self, token: str) -> bytes | None:
        """The snapshot, unless it is too old."""
        found = self._snapshots.get(_name(token, self._tenant))
        return found[0] if found is not None and found[1] > self._clock() else None

    async def save(self, token: str, snapshot: bytes) -> None:
        """Keep a snapshot; the one saved longest ago makes room."""
        name = _name(token, self._tenant)
        self._snapshots[name] = (snapshot, self._clock() + self._ttl_s)
        self._snapshots.move_to_end(name)
        num_bytes = sum(len(kept) for kept, _ in self._snapshots.values())
        while len(self._snapshots) > _MAX_IN_MEMORY or num_bytes > self._max_bytes:
            _, (gone, _) = self._snapshots.popitem(last=False)
            num_bytes -= len(gone)

    async def delete(self, token: str) -> None:
        """The session is over."""
        self._snapshots.pop(_name(token, self._tenant), None)

    async def close(self) -> None:
        self._snapshots.clear()


class RedisSessionStore:
    """Snapshots behind a Redis-protocol server: any front-end replica finds them."""

    def __init__(self, settings: CacheSettings, *, ttl_s: float, tenant: str = "") -> None:
        self._redis = RedisConnection(settings, purpose="session store")
        self._ttl_s = ttl_s
        self._tenant = tenant

    def for_tenant(self, tenant: str) -> RedisSessionStore:
        """The same connection under other names."""
        view = copy.copy(self)
        view._tenant = tenant
        return view

    async def load(self, token: str) -> bytes | None:
        """The snapshot; None also when nobody answers, or when it is not what was saved."""
        found = await self._redis.get(_name(token, self._tenant))
        if found is None:
            return None
        seal, snapshot = found[:_SEAL_BYTES], found[_SEAL_BYTES:]
        is_ours = hmac.compare_digest(seal, _seal(snapshot, token, self._tenant))
        return snapshot if is_ours else None

    async def save(self, token: str, snapshot: bytes) -> None:
        """Keep a snapshot, or go on without."""
        sealed = _seal(snapshot, token, self._tenant) + snapshot
        await self._redis.set(_name(token, self._tenant), sealed, ttl_s=self._ttl_s)

    async def delete(self, token: str) -> None:
        """The session is over."""
        await self._redis.delete(_name(token, self._tenant))

    async def close(self) -> None:
        await self._redis.close()


def open_session_store(settings: CacheSettings, *, ttl_s: float) -> SessionStore:
    """The Redis store when a URL is set, else one in this process' memory."""
    if settings.url is None:
        return MemorySessionStore(ttl_s=ttl_s)
    return RedisSessionStore(settings, ttl_s=ttl_s)
