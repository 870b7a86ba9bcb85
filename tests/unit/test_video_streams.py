"""Streams of packets over a real channel, with the fake stages in this process."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path

import grpc
import pytest

from agent.frame import FrameLimits
from agent.server_settings import AccessSettings, QuotaSettings
from agent.settings import ServiceSettings, VideoSettings
from agent.streaming.session_store import MemorySessionStore
from deployments.front_end.api_keys import add_api_key
from deployments.streams import video_decoding
from groundstream import aio
from groundstream.conversions import format_to_message, packet_to_message
from groundstream.events import KeyframeAnswer, StreamError, StreamStats
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import (
    DropPolicy,
    FramePriority,
    FrameResult,
    OutgoingFrame,
    OutgoingPacket,
    StreamPolicy,
    VideoCodec,
)
from groundstream.watch_stream import Reconnect
from tests.clips import packets_of, write_clip
from tests.in_process import (
    FOLLOW,
    GROUND,
    SETTINGS,
    Service,
    check_books,
    conversation,
    running_service,
)
from tests.pictures import encoded_image
from tests.wire_format import delimited

LOSSLESS = StreamPolicy(drop=DropPolicy.LOSSLESS, window=64, ack_window=0)
OLDEST = StreamPolicy(drop=DropPolicy.OLDEST_WINS, window=2, ack_window=0)


@pytest.fixture(scope="module")
def packets(tmp_path_factory: pytest.TempPathFactory) -> list[OutgoingPacket]:
    """Forty pictures of H.264 with B pictures; every fifteenth is a key frame."""
    return packets_of(write_clip(tmp_path_factory.mktemp("clips") / "a.mp4", 40, b_frames=2))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[OutgoingPacket]:
    """Forty pictures without B pictures."""
    return packets_of(write_clip(tmp_path_factory.mktemp("clips") / "b.mp4", 40))


async def sent(
    items: Sequence[OutgoingPacket | OutgoingFrame], every_s: float = 0.0
) -> AsyncIterator[OutgoingPacket | OutgoingFrame]:
    for item in items:
        yield item
        await asyncio.sleep(every_s)


def settings_with(**video: int) -> ServiceSettings:
    stream = dataclasses.replace(SETTINGS.stream, video=VideoSettings(**video))
    return dataclasses.replace(SETTINGS, stream=stream)


async def watched(
    client: aio.Client,
    items: Sequence[OutgoingPacket | OutgoingFrame],
    policy: StreamPolicy,
    every_s: float = 0.0,
) -> tuple[list[FrameResult], list[StreamError], StreamStats]:
    results: list[FrameResult] = []
    errors: list[StreamError] = []
    async with client.watch(sent(items, every_s), ["dog"], policy=policy) as stream:
        async for event in stream:
            if isinstance(event, FrameResult):
                results.append(event)
            elif isinstance(event, StreamError):
                errors.append(event)
            elif isinstance(event, StreamStats):
                check_books(event)
                stats = event
    assert stats.ended
    assert stats.in_flight == 0
    return results, errors, stats


class Wire:
    """A stream spoken by hand."""

    def __init__(self, call: grpc.aio.StreamStreamCall) -> None:
        self.call = call
        self.results: list[int] = []
        self.errors: dict[int, str] = {}
        self.messages: dict[int, str] = {}
        self.complaints: list[str] = []
        """Errors about no frame."""
        self.stats = pb.StreamStats()

    async def start(self, packet: OutgoingPacket) -> None:
        await self.call.write(pb.WatchRequest(start_video=format_to_message(packet.format)))

    async def send(self, packet: OutgoingPacket, number: int = 0) -> None:
        message = packet_to_message(packet, packet_number=number)
        await self.call.write(pb.WatchRequest(packet=message))

    async def close(self) -> pb.StreamStats:
        """End the stream and read all that it said; the books at its end."""
        await self.call.write(pb.WatchRequest(end=pb.End()))
        async for response in self.call:
            match response.WhichOneof("message"):
                case "result":
                    self.results.append(response.result.sequence)
                case "error" if not response.error.HasField("sequence"):
                    self.complaints.append(response.error.message)
                case "error":
                    code = pb.ErrorCode.Name(response.error.code).removeprefix("ERROR_CODE_")
                    self.errors[response.error.sequence] = code
                    self.messages[response.error.sequence] = response.error.message
                case "stats":
                    self.stats = stats = response.stats
                    assert stats.received == (
                        stats.answered + stats.tracked_only + stats.superseded + stats.expired
                        + stats.rejected + stats.failed + stats.in_flight
                    )  # fmt: skip
        assert self.stats.ended
        assert self.stats.in_flight == 0
        assert self.stats.rejected == len(self.errors)
        return self.stats


@contextlib.asynccontextmanager
async def spoken(
    service: Service, policy: StreamPolicy = LOSSLESS, key: str = ""
) -> AsyncIterator[Wire]:
    async with grpc.aio.insecure_channel(service.target) as channel:
        call = channel.stream_stream(
            "/vision_agent.v1.VisionAgent/Watch",
            request_serializer=lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            response_deserializer=pb.WatchResponse.FromString,
        )(metadata=(("authorization", f"Bearer {key}"),) if key else ())
        message = pb.StreamPolicy(drop=f"DROP_POLICY_{policy.drop.value}", window=policy.window)
        await call.write(pb.WatchRequest(open=pb.OpenStream(policy=message)))
        yield Wire(call)


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
        while service.metrics.totals().frames_received < 40:
            await asyncio.sleep(0.005)
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
        while service.metrics.totals().frames_received < 2:
            await asyncio.sleep(0.005)
        await asyncio.sleep(0.05)
        await talk.stream.pause()
        for packet in plain[2:8]:
            talk.send_frame(packet)
        while service.metrics.totals().frames_received < 8:
            await asyncio.sleep(0.005)
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
        while len(talk.openings) < 2:
            await asyncio.sleep(0.01)
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
            while service.metrics.totals().frames_received < 1:
                await asyncio.sleep(0.005)
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
        memory = service.agent.decoding.memory
        wires = []
        for tenant in ("greedy", "greedy", "greedy", "next"):
            before = memory.num_left, service.metrics.totals().frames_rejected
            wires.append(await open_.enter_async_context(spoken(service, key=keys[tenant])))
            await wires[-1].start(plain[0])
            await wires[-1].send(plain[0])
            async with asyncio.timeout(10):
                while (memory.num_left, service.metrics.totals().frames_rejected) == before:
                    await asyncio.sleep(0.005)
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
            async with asyncio.timeout(10):
                while service.agent.decoding.memory.num_left == 900_000:
                    await asyncio.sleep(0.005)
                while service.agent.decoding.memory.num_left < 900_000:
                    await asyncio.sleep(0.005)
            async with spoken(service) as other:
                await other.start(plain[0])
                await other.send(plain[0])
                await other.close()
            assert other.results == [0]
            await silent.send(plain[1])
            await silent.close()
        assert silent.results == [0]
        assert silent.errors == {1: "KEY_FRAME_NEEDED"}


@contextlib.contextmanager
def held_decoding(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No packet is decoded before this ends."""
    released = asyncio.Event()
    threads = service.agent.decoding
    decode = threads.run

    async def run(tenant: str, work: Callable[[], object]) -> object:
        await released.wait()
        return await decode(tenant, work)

    monkeypatch.setattr(threads, "run", run)
    yield
    released.set()


async def until_received(service: Service, count: int) -> None:
    async with asyncio.timeout(10):
        while service.metrics.totals().frames_received < count:
            await asyncio.sleep(0.005)


async def test_packets_that_came_while_paused_are_superseded_however_late_they_are_decoded(
    service: Service, plain: list[OutgoingPacket], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with spoken(service) as wire:
        with held_decoding(service, monkeypatch):
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
            with held_decoding(service, monkeypatch):
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
        with held_decoding(service, monkeypatch):
            await wire.start(packets[0])
            for number, packet in enumerate(packets[:75], 1):
                await wire.send(packet, number)
            await until_received(service, 75)
        while service.metrics.totals().frames_in_flight:
            await asyncio.sleep(0.005)
        for number, packet in enumerate(packets[75:], 76):
            await wire.send(packet, number)
        stats = await wire.close()
    assert wire.errors == {61: "OVERLOADED"} | dict.fromkeys(range(62, 90), "KEY_FRAME_NEEDED")
    assert "60 packets wait" in wire.messages[61]
    assert wire.results == [*range(61), *range(90, 100)]
    assert stats.received == 100


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


async def test_a_client_that_goes_away_in_mid_decoding_leaves_nothing(
    service: Service, packets: list[OutgoingPacket]
) -> None:
    before = service.agent.decoding.memory.num_left
    for _ in range(5):
        async with aio.Client(service.target) as client, client.watch(sent(packets), ["dog"]):
            await asyncio.sleep(0.02)
    async with asyncio.timeout(10):
        while service.agent.decoding.memory.num_left != before:
            await asyncio.sleep(0.02)
    assert service.metrics.num_open_streams == 0
