"""Redis away at the start, back, away in mid-run: answers go on, uncached, and are counted."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from groundstream import aio
from groundstream.types import OutgoingFrame
from tests.integration.conftest import RedisSwitch
from tests.pictures import encoded_image

_pictures = iter(range(200_000, 300_000))


async def stored_within(client: aio.Client, seconds: float) -> bool:
    """Whether a new picture's features reach the server in that time."""
    before = (await client.stats()).cache.stored
    deadline_s = time.monotonic() + seconds
    while time.monotonic() < deadline_s:
        await client.ground(encoded_image(next(_pictures)), ["dog"])
        if (await client.stats()).cache.stored > before:
            return True
        await asyncio.sleep(0.05)
    return False


async def test_unreachable_then_back_then_gone_again(
    client: aio.Client, redis_switch: RedisSwitch
) -> None:
    # The service was started without it (see the fixture), or has lost it since.
    redis_switch.off()
    for _ in range(3):
        result = await client.ground(encoded_image(next(_pictures)), ["dog"])
        assert result["dog"].detections
        assert not result.cache_hit
    assert (await client.stats()).cache.errors > 0

    redis_switch.on()
    assert await stored_within(client, 10)

    redis_switch.off()
    before = (await client.stats()).cache
    for _ in range(3):
        result = await client.ground(encoded_image(next(_pictures)), ["dog"])
        assert result["dog"].detections
        assert not result.cache_hit
    after = (await client.stats()).cache
    assert after.errors > before.errors
    assert after.misses == before.misses + 3

    redis_switch.on()
    assert await stored_within(client, 10)


async def test_a_stream_goes_on_while_redis_goes(
    client: aio.Client, redis_switch: RedisSwitch
) -> None:
    redis_switch.on()

    async def frames() -> AsyncIterator[OutgoingFrame]:
        for number in range(30):
            if number == 10:
                redis_switch.off()
            yield OutgoingFrame(encoded_image(next(_pictures)), number)
            await asyncio.sleep(0.05)

    async with client.watch(frames(), ["dog"]) as stream:
        answered = [result.sequence async for result in stream.results()]
    assert answered[-1] == 29
    assert any(number > 12 for number in answered[:-1])
