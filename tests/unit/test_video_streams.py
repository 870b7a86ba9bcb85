"""Streams of packets over a real channel, with the fake stages in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import pytest

from agent.streaming.session_store import MemorySessionStore
from groundstream import aio
from groundstream.conversions import packet_to_message
from groundstream.events import KeyframeAnswer, StreamError
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import FramePriority, FrameResult, OutgoingFrame, OutgoingPacket, VideoCodec
from groundstream.watch_stream import Reconnect
from tests.clips import packets_of, write_clip
from tests.in_process import FOLLOW, GROUND, SETTINGS, Service, conversation, running_service
from tests.packet_streams import (
    LOSSLESS,
    OLDEST,
    sent,
    settings_with,
    spoken,
    until_received,
    watched,
)
from tests.pictures import encoded_image
from tests.waiting import eventually
from tests.wire_format import delimited


async def test_every_picture_is_answered_in_the_order_of_showing(
    client: aio.Client, packets: list[OutgoingPacket]
) -> None:
    results, errors, stats = await watched(client, packets, LOSSLESS)
    assert errors == []
    assert [result.sequence for result in results] == list(range(40))
    assert {(result.width, result.height) for result in results} == {(160, 120)}
    for result in results:
        assert result.capture_time_ns == 1000 + result.sequence
        assert result.received_time_ns <= result.answered_time_ns
    assert stats.received == 40


async def test_the_newest_picture_wins_and_all_are_decoded(
    client: aio.Client, service: Service, packets: list[OutgoingPacket]
) -> None:
    """Superseded packets are decoded all the same: those after them can be."""
    async with conversation(client, "held") as talk:
        for packet in packets:
            talk.send_frame(packet)
        await until_received(service, 40)
        service.stages.released.set()
        talk.end()
        events = await talk.rest()
    assert not [event for event in events if isinstance(event, StreamError)]
    results = [event.sequence for event in events if isinstance(event, FrameResult)]
    assert results[-1] == 39
    assert len(results) < 10
    assert talk.stats[-1].received == 40
    assert talk.stats[-1].superseded == 40 - len(results)


async def test_in_follow_mode_the_tracker_sees_the_pictures(
    client: aio.Client, packets: list[OutgoingPacket]
) -> None:
    results, errors, stats = await watched(client, packets, FOLLOW, every_s=0.02)
    assert errors == []
    assert stats.answered + stats.tracked_only == len(results) >= 5
    assert any(result.timings.follow_ms > 0 for result in results)


async def test_oldest_wins(client: aio.Client, packets: list[OutgoingPacket]) -> None:
    results, errors, stats = await watched(client, packets, OLDEST)
    assert errors == []
    assert stats.superseded == 40 - len(results)
    assert results[0].sequence == 0


async def test_h265(client: aio.Client, tmp_path: Path) -> None:
    path = write_clip(tmp_path / "a.mp4", 20, b_frames=2, codec=VideoCodec.H265)
    results, errors, _ = await watched(client, packets_of(path), LOSSLESS)
    assert errors == []
    assert [result.sequence for result in results] == list(range(20))


async def test_pictures_and_packets_may_alternate(
    client: aio.Client, plain: list[OutgoingPacket]
) -> None:
    pictures = [OutgoingFrame(encoded_image(n), n) for n in (40, 41)]
    again = [dataclasses.replace(p, sequence=p.sequence + 100) for p in plain]
    results, errors, _ = await watched(client, [*plain, *pictures, *again], LOSSLESS)
    assert errors == []
    assert [result.sequence for result in results] == [*range(42), *range(100, 140)]


async def test_a_lost_packet_takes_those_up_to_the_next_key_frame(
    service: Service, plain: list[OutgoingPacket]
) -> None:
    async with spoken(service) as wire:
        await wire.start(plain[0])
        for number, packet in enumerate(plain, 1):
            if packet.sequence != 20:
                await wire.send(packet, number)
        stats = await wire.close()
    assert wire.errors == dict.fromkeys(range(21, 30), "KEY_FRAME_NEEDED")
    assert "send a key frame" in wire.messages[21]
    assert wire.results == [*range(20), *range(30, 40)]
    assert stats.received == 39


@pytest.mark.parametrize("harm", ["garbage", "empty", "cut", "too large"])
async def test_a_bad_packet_takes_those_up_to_the_next_key_frame(
    plain: list[OutgoingPacket], harm: str
) -> None:
    bad = {
        "garbage": b"\0\0\1\x41" + bytes(range(256)) * 4,
        "empty": b"",
        "cut": b"\0\0\1\x41\x9a",
        "too large": b"\0\0\1\x41\x9a" + bytes(5000),
    }[harm]
    async with (
        running_service(settings=settings_with(max_packet_bytes=5000)) as service,
        spoken(service) as wire,
    ):
        await wire.start(plain[0])
        for number, packet in enumerate(plain, 1):
            is_bad = packet.sequence == 18
            await wire.send(dataclasses.replace(packet, data=bad) if is_bad else packet, number)
        stats = await wire.close()
    own = {"empty": "INVALID_FRAME", "too large": "FRAME_TOO_LARGE"}.get(harm)
    assert wire.errors.pop(18) in ([own] if own else ["INVALID_FRAME", "KEY_FRAME_NEEDED"])
    assert wire.errors == dict.fromkeys(range(19, 30), "KEY_FRAME_NEEDED")
    assert wire.results == [*range(18), *range(30, 40)]
    assert stats.received == 40


async def test_what_a_decoder_needs_first(service: Service, plain: list[OutgoingPacket]) -> None:
    async with spoken(service) as wire:
        await wire.send(plain[0])
        await wire.call.write(pb.WatchRequest(start_video=pb.StartVideo(codec=7)))
        await wire.start(plain[0])
        await wire.send(plain[1])
        await wire.send(dataclasses.replace(plain[2], is_key=True))  # It is not.
        await wire.send(plain[15])
        await wire.close()
    assert "StartVideo" in wire.messages[0]
    assert wire.complaints == ["video codec 7 is unknown to this service"]
    assert wire.errors[1] == "KEY_FRAME_NEEDED"
    assert wire.errors[2] == "KEY_FRAME_NEEDED"
    assert wire.results == [15]


async def test_a_service_may_take_no_video(plain: list[OutgoingPacket]) -> None:
    async with (
        running_service(settings=settings_with(enabled=False)) as service,
        spoken(service) as wire,
    ):
        await wire.start(plain[0])
        await wire.send(plain[0])
        await wire.close()
    assert wire.complaints == ["this service takes pictures only; see stream.video.enabled"]
    assert wire.errors == {0: "KEY_FRAME_NEEDED"}


async def test_numbers_must_increase_in_the_order_of_showing(
    service: Service, plain: list[OutgoingPacket]
) -> None:
    async with spoken(service) as wire:
        await wire.start(plain[0])
        for packet in plain[:10]:
            same = packet.sequence in (4, 5)
            await wire.send(dataclasses.replace(packet, sequence=3) if same else packet)
        await wire.call.write(pb.WatchRequest(end=pb.End()))
        errors = [r.error async for r in wire.call if r.HasField("error")]
    assert [(e.sequence, e.code) for e in errors] == 2 * [(3, pb.ERROR_CODE_INVALID_ARGUMENT)]


async def test_a_packet_refused_unread_breaks_the_row(
    service: Service, plain: list[OutgoingPacket]
) -> None:
    async with spoken(service) as wire:
        await wire.start(plain[0])
        for packet in plain[:5]:
            await wire.send(packet)
        # A field twice: refused before it is parsed, under the number that stands in it.
        twice = pb.WatchRequest(packet=packet_to_message(plain[5], packet_number=0))
        field = twice.packet.SerializeToString()
        doubled = pb.VideoPacket(priority=2).SerializeToString()
        content = field + doubled + doubled
        await wire.call.write(delimited(12, content))
        for packet in plain[6:16]:
            await wire.send(packet)
        await wire.close()
    assert wire.errors == {5: "INVALID_ARGUMENT"} | dict.fromkeys(range(6, 15), "KEY_FRAME_NEEDED")
    assert wire.results == [0, 1, 2, 3, 4, 15]


async def test_an_answer_can_be_asked_for(client: aio.Client, plain: list[OutgoingPacket]) -> None:
    high = [
        dataclasses.replace(p, priority=FramePriority.HIGH) if p.sequence == 30 else p
        for p in plain
    ]
    keyframes = []
    async with client.watch(sent(high, 0.01), ["dog"], policy=FOLLOW) as stream:
        async for event in stream:
            if isinstance(event, KeyframeAnswer):
                keyframes.append((event.result.sequence, event.reason))
    assert (30, "REQUESTED") in keyframes


async def test_a_paused_stream_goes_on_decoding(
    client: aio.Client, service: Service, plain: list[OutgoingPacket]
) -> None:
    async with conversation(client, "dog", policy=LOSSLESS) as talk:
        for packet in plain[:2]:
            talk.send_frame(packet)
        await until_received(service, 2)
        await asyncio.sleep(0.05)
        await talk.stream.pause()
        for packet in plain[2:8]:
            talk.send_frame(packet)
        await until_received(service, 8)
        await talk.stream.resume()
        for packet in plain[8:10]:
            talk.send_frame(packet)
        talk.end()
        events = await talk.rest()
    assert [e for e in events if isinstance(e, StreamError)] == []
    assert [e.sequence for e in events if isinstance(e, FrameResult)] == [0, 1, 8, 9]
    assert talk.stats[-1].superseded == 6


async def test_a_resumed_session_goes_on_with_a_key_frame(plain: list[OutgoingPacket]) -> None:
    """The decoder went down with the replica; the client skips to what a new one can begin with."""
    store = MemorySessionStore(ttl_s=60.0)
    quick = Reconnect(max_attempts=10_000, first_pause_s=0.02, max_pause_s=0.05)
    async with contextlib.AsyncExitStack() as stack:
        first = await stack.enter_async_context(running_service(store=store))
        port = int(first.target.rpartition(":")[2])
        client = await stack.enter_async_context(aio.Client(first.target))
        talk = await stack.enter_async_context(
            conversation(client, "dog", policy=LOSSLESS, reconnect=quick)
        )
        for packet in plain[:20]:
            talk.send_frame(packet)
        events = [await talk.next() for _ in range(20)]
        drained = asyncio.create_task(first.drain())
        reading = asyncio.create_task(talk.rest())
        await drained
        await stack.enter_async_context(running_service(port=port, store=store))
        await eventually(lambda: len(talk.openings) == 2)
        for packet in plain[20:]:
            talk.send_frame(packet)
        talk.end()
        events += await reading
    assert talk.openings[1].resumed
    assert [e for e in events if isinstance(e, StreamError)] == []
    results = [e.sequence for e in events if isinstance(e, FrameResult)]
    assert results == [*range(20), *range(30, 40)]
    assert talk.stream.num_unsent == 10
    assert talk.stats[-1].received == talk.stream.num_sent == 30


async def test_the_client_skips_what_the_service_cannot_decode(
    client: aio.Client, plain: list[OutgoingPacket]
) -> None:
    """After the first KEY_FRAME_NEEDED nothing useless is sent."""
    torn = [
        dataclasses.replace(p, data=p.data[:6] + b"\xff" * 40) if p.sequence == 17 else p
        for p in plain
    ]
    results, errors, stats = await watched(client, torn, FOLLOW, every_s=0.03)
    assert errors[0].sequence in (17, 18)
    # Those under way when it hears of it are refused, and no more.
    assert len(errors) <= 4
    assert stats.received == 27 + len(errors) + (errors[0].sequence - 17)
    assert results[-1].sequence == 39


async def test_who_looks_on_sees_the_pictures(plain: list[OutgoingPacket]) -> None:
    observed = dataclasses.replace(
        SETTINGS, server=dataclasses.replace(SETTINGS.server, observe=True)
    )
    async with (
        running_service(settings=observed) as service,
        aio.Client(service.target) as owner,
        aio.Client(service.target) as other,
        conversation(owner, "dog", policy=GROUND) as talk,
    ):
        (listed,) = await other.streams()
        looking = asyncio.create_task(anext(other.observe(listed.number)))
        for packet in plain:
            talk.send_frame(packet)
            await talk.next()
            await asyncio.sleep(0.01)
            if looking.done():
                break
        seen = await looking
    assert seen.encoded.startswith(b"\xff\xd8")
    assert seen.result.width == 160
