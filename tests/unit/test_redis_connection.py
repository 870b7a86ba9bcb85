"""Calls to a Redis that does not answer: bounded, and ended by whoever cancels them."""

from __future__ import annotations

import asyncio
import random
import time

from agent.redis_connection import RedisConnection
from agent.settings import CacheSettings
from deployments.local.service_process import free_port
from tests.fake_redis import Illness, ill_redis

_ROUNDS = 40
_TIMEOUT_S = 0.02


def connection_at(port: int) -> RedisConnection:
    """One that tries again at once."""
    settings = CacheSettings(
        url=f"redis://127.0.0.1:{port}",
        timeout_s=_TIMEOUT_S,
        retry_after_s=0.0,
        max_retry_after_s=0.0,
    )
    return RedisConnection(settings, purpose="test")


async def test_a_call_that_is_cancelled_ends_whatever_its_connection_does() -> None:
    port, dice = free_port(), random.Random(3)
    connection = connection_at(port)

    async def save_for_ever() -> None:
        while True:
            await connection.set("key", bytes(2000), ttl_s=10.0)
            await asyncio.sleep(0)

    async with ill_redis(port, Illness.HANGS_UP):
        for _ in range(_ROUNDS):
            savers = [asyncio.create_task(save_for_ever()) for _ in range(4)]
            await asyncio.sleep(dice.uniform(0.0, 2.5) * _TIMEOUT_S)
            for saver in savers:
                saver.cancel()
            _, going_on = await asyncio.wait(savers, timeout=5.0)
            assert not going_on
    await connection.close()


async def test_a_call_without_an_answer_is_over_in_time() -> None:
    port = free_port()
    connection = connection_at(port)
    async with ill_redis(port, Illness.SILENT):
        started_s = time.monotonic()
        assert await connection.get("key") is None
        assert time.monotonic() - started_s < 1.0
    assert connection.num_errors == 1
    await connection.close()
