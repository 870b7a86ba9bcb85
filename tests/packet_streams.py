"""Streams of packets spoken by a client, and by hand."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable, Iterator, Sequence

import grpc
import pytest

from agent.settings import ServiceSettings, VideoSettings
from deployments.streams.video_decoding import DecodingThreads
from groundstream import aio
from groundstream.conversions import format_to_message, packet_to_message
from groundstream.events import StreamError, StreamStats
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.types import DropPolicy, FrameResult, OutgoingFrame, OutgoingPacket, StreamPolicy
from tests.in_process import SETTINGS, Service, check_books
from tests.waiting import eventually

LOSSLESS = StreamPolicy(drop=DropPolicy.LOSSLESS, window=64, ack_window=0)
OLDEST = StreamPolicy(drop=DropPolicy.OLDEST_WINS, window=2, ack_window=0)


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


@contextlib.contextmanager
def held_decoding(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No packet is decoded before this ends."""
    released = asyncio.Event()
    decode = DecodingThreads.run

    async def run(threads: DecodingThreads, work: Callable[[], object]) -> object:
        await released.wait()
        return await decode(threads, work)

    monkeypatch.setattr(DecodingThreads, "run", run)
    yield
    released.set()


async def until_received(service: Service, count: int) -> None:
    """Wait until so many pictures and packets have come."""
    await eventually(lambda: service.metrics.totals().frames_received >= count)
