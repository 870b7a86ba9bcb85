"""Redis slow, full, read-only, silent or answering garbage: answers go on, and it comes back.

A real Valkey that is told to be ill, or something else at its port. (Redis gone altogether:
test_cache_outage.py.)
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio

from groundstream import aio
from groundstream.events import StreamError, StreamStats
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from tests.fake_redis import Illness, ill_redis
from tests.integration.conftest import RedisSwitch
from tests.integration.test_cache_outage import stored_within
from tests.pictures import encoded_image

_pictures = itertools.count(400_000)
_NUM_FRAMES = 12
_SLOWEST_S = 3.0
"""The cache's timeout of 1 s is paid once or twice, not for every frame."""


@contextlib.asynccontextmanager
async def _told(switch: RedisSwitch, *commands: str) -> AsyncIterator[None]:
    switch.on()
    async with redis.asyncio.Redis.from_url(switch.url) as server:
        for command in commands:
            await server.execute_command(*command.split())
    yield
    # A new one is well again.
    switch.off()


def full(switch: RedisSwitch) -> contextlib.AbstractAsyncContextManager[None]:
    return _told(switch, "CONFIG SET maxmemory-policy noeviction", "CONFIG SET maxmemory 1")


def read_only(switch: RedisSwitch) -> contextlib.AbstractAsyncContextManager[None]:
    return _told(switch, "REPLICAOF 127.0.0.1 1")


def slow(switch: RedisSwitch) -> contextlib.AbstractAsyncContextManager[None]:
    return _told(switch, "CLIENT PAUSE 60000 ALL")


def _ill(illness: Illness) -> Callable[[RedisSwitch], contextlib.AbstractAsyncContextManager[None]]:
    def enter(switch: RedisSwitch) -> contextlib.AbstractAsyncContextManager[None]:
        switch.off()
        return ill_redis(switch.port, illness)

    return enter


@pytest.mark.parametrize(
    "illness",
    [full, read_only, slow, *(_ill(illness) for illness in Illness)],
    ids=["full", "read-only", "slow", *(illness.name for illness in Illness)],
)
async def test_answers_go_on_and_the_cache_comes_back(
    client: aio.Client,
    redis_switch: RedisSwitch,
    illness: Callable[[RedisSwitch], contextlib.AbstractAsyncContextManager[None]],
) -> None:
    async def frames() -> AsyncIterator[OutgoingFrame]:
        for number in range(_NUM_FRAMES):
            yield OutgoingFrame(encoded_image(next(_pictures)), number)

    before = (await client.stats()).cache
    async with illness(redis_switch):
        for _ in range(3):
            started_s = time.monotonic()
            result = await client.ground(encoded_image(next(_pictures)), ["dog"])
            assert result["dog"].detections
            assert time.monotonic() - started_s < _SLOWEST_S
        policy = StreamPolicy()
        async with client.watch(frames(), ["dog"], policy=policy) as stream:
            events = [event async for event in stream]
        after = (await client.stats()).cache
    assert after.errors + after.corrupt > before.errors + before.corrupt
    assert not [event for event in events if isinstance(event, StreamError)]
    assert [event for event in events if isinstance(event, FrameResult)]
    last = events[-1]
    assert isinstance(last, StreamStats)
    assert (last.balanced, last.received, last.in_flight) == (True, _NUM_FRAMES, 0)

    redis_switch.on()
    started_s = time.monotonic()
    assert await stored_within(client, 10)
    print(f"cached again after {time.monotonic() - started_s:.2f} s")
