"""What streams of packets share: threads, memory, quotas, and the line before the decoder."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import pytest

from agent.frame import FrameLimits
from agent.server_settings import AccessSettings, QuotaSettings
from agent.settings import VideoSettings
from deployments.front_end.api_keys import add_api_key
from deployments.streams import video_decoding
from groundstream import aio
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import FramePriority, OutgoingPacket, StreamPolicy
from tests.clips import packets_of, write_clip
from tests.in_process import SETTINGS, Service, running_service
from tests.packet_streams import held_decoding, sent, settings_with, spoken, until_received
from tests.waiting import eventually


async def test_a_quota_holds_for_packets_too(plain: list[OutgoingPacket]) -> None:
    access = AccessSettings(quota=QuotaSettings(frames_per_s=1.0), burst_s=5.0)
    limited = dataclasses.replace(SETTINGS, access=access)
    async with running_service(settings=limited) as service, spoken(service) as wire:
        await wire.start(plain[0])
        for packet in plain[:15]:
            await wire.send(packet)
        stats = await wire.close()
    assert stats.received == 15
    assert "QUOTA_EXCEEDED" in wire.errors.values()
    first = min(wire.errors)
    assert wire.results == list(range(first))


async def test_decoders_share_what_memory_there_is(plain: list[OutgoingPacket]) -> None:
    """One stream's decoder has it; when that has ended, another's can."""
    async with running_service(settings=settings_with(memory_bytes=900_000)) as service:
        async with spoken(service) as wire:
            await wire.start(plain[0])
            await wire.send(plain[0])
            await until_received(service, 1)
            async with spoken(service) as other:
                await other.start(plain[0])
                await other.send(plain[0])
                await other.close()
            assert other.errors == {0: "OVERLOADED"}
            await wire.close()
            assert wire.errors == {}
        async with spoken(service) as third:
            await third.start(plain[0])
            await third.send(plain[0])
            await third.close()
        assert third.results == [0]


async def test_a_tenant_leaves_memory_to_the_next(
    plain: list[OutgoingPacket], tmp_path: Path
) -> None:
    """There is room for three decoders; one tenant has at most two of them."""
    path = tmp_path / "keys.yaml"
    keys = {tenant: add_api_key(path, name=tenant, tenant=tenant) for tenant in ("greedy", "next")}
    settings = dataclasses.replace(
        settings_with(memory_bytes=2_000_000), access=AccessSettings(api_keys=str(path))
    )
    async with running_service(settings=settings) as service, contextlib.AsyncExitStack() as open_:
        wires = []

        def taken_and_rejected() -> tuple[int, int]:
            left = service.agent.decoding.memory.num_left
            return left, service.metrics.totals().frames_rejected

        for tenant in ("greedy", "greedy", "greedy", "next"):
            before = taken_and_rejected()
            wires.append(await open_.enter_async_context(spoken(service, key=keys[tenant])))
            await wires[-1].start(plain[0])
            await wires[-1].send(plain[0])
            await eventually(lambda before=before: taken_and_rejected() != before)
        for wire in wires:
            await wire.close()
        assert [wire.results for wire in wires] == [[0], [0], [], [0]]
        assert wires[2].errors == {0: "OVERLOADED"}
        assert "your streams" in wires[2].messages[0]
        assert "end a stream" in wires[2].messages[0]


async def test_tenants_take_turns_at_the_decoding_threads() -> None:
    threads = video_decoding.DecodingThreads(VideoSettings(decoders_at_once=1), FrameLimits())
    order: list[str] = []

    async def ask(tenant: str) -> None:
        await threads.for_tenant(tenant).run(lambda: order.append(tenant))

    await asyncio.gather(*(ask("greedy") for _ in range(20)), ask("next"))
    assert order.index("next") <= 2
    assert len(order) == 21
    threads.close()


async def test_a_silent_stream_gives_its_decoder_back(
    plain: list[OutgoingPacket], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video_decoding, "_DECODER_IDLE_S", 0.05)
    async with running_service(settings=settings_with(memory_bytes=900_000)) as service:
        async with spoken(service) as silent:
            await silent.start(plain[0])
            await silent.send(plain[0])
            memory = service.agent.decoding.memory
            await eventually(lambda: memory.num_left < 900_000)
            await eventually(lambda: memory.num_left == 900_000)
            async with spoken(service) as other:
                await other.start(plain[0])
                await other.send(plain[0])
                await other.close()
            assert other.results == [0]
            await silent.send(plain[1])
            await silent.close()
        assert silent.results == [0]
        assert silent.errors == {1: "KEY_FRAME_NEEDED"}


async def test_packets_that_came_while_paused_are_superseded_however_late_they_are_decoded(
    service: Service, plain: list[OutgoingPacket], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spoken(service) as wire:
        with held_decoding(monkeypatch):
            await wire.start(plain[0])
            await wire.call.write(pb.WatchRequest(pause=pb.Pause()))
            for packet in plain[:5]:
                await wire.send(packet)
            await wire.call.write(pb.WatchRequest(resume=pb.Resume()))
            await until_received(service, 5)
            await asyncio.sleep(0.1)  # Resume has been read by now.
        for packet in plain[5:7]:
            await wire.send(packet)
        stats = await wire.close()
    assert wire.errors == {}
    assert wire.results == [5, 6]
    assert stats.superseded == 5


async def test_behind_a_key_frame_supersedes_those_before_it(
    service: Service, plain: list[OutgoingPacket], monkeypatch: pytest.MonkeyPatch
) -> None:
    for priority, results in ((FramePriority.NORMAL, [0, 30]), (FramePriority.HIGH, None)):
        async with spoken(service, StreamPolicy()) as wire:
            before = service.metrics.totals().frames_received
            with held_decoding(monkeypatch):
                await wire.start(plain[0])
                for number, packet in enumerate(plain[:31], 1):
                    high = packet.sequence == 20
                    sent_as = dataclasses.replace(packet, priority=priority) if high else packet
                    await wire.send(sent_as, number)
                await until_received(service, before + 31)
            stats = await wire.close()
        assert wire.errors == {}
        assert stats.received == 31
        if results:
            assert wire.results == results
            assert stats.superseded == 29
        else:
            assert 20 in wire.results  # A frame that must be seen goes for none but its like.


async def test_too_many_packets_that_wait_are_refused(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packets = packets_of(write_clip(tmp_path / "a.mp4", 100, every=90))
    async with spoken(service) as wire:
        with held_decoding(monkeypatch):
            await wire.start(packets[0])
            for number, packet in enumerate(packets[:75], 1):
                await wire.send(packet, number)
            await until_received(service, 75)
        await eventually(lambda: not service.metrics.totals().frames_in_flight)
        for number, packet in enumerate(packets[75:], 76):
            await wire.send(packet, number)
        stats = await wire.close()
    assert wire.errors == {61: "OVERLOADED"} | dict.fromkeys(range(62, 90), "KEY_FRAME_NEEDED")
    assert "60 packets wait" in wire.messages[61]
    assert wire.results == [*range(61), *range(90, 100)]
    assert stats.received == 100


async def test_a_client_that_goes_away_in_mid_decoding_leaves_nothing(
    service: Service, packets: list[OutgoingPacket]
) -> None:
    memory = service.agent.decoding.memory
    before = memory.num_left
    for _ in range(5):
        async with aio.Client(service.target) as client, client.watch(sent(packets), ["dog"]):
            await asyncio.sleep(0.02)
    await eventually(lambda: memory.num_left == before)
    await eventually(lambda: service.metrics.num_open_streams == 0)
