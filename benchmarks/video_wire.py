"""Packets of video against JPEG: bytes, latency, processor time of the front end, and boxes.

    python -m benchmarks.video_wire

The demo's street video goes to one service (or to `--target`) as it is, in packets of H.264, and as
pictures compressed to JPEG of quality 90, in turns, at 30 frames a second. Latency runs from when a
picture was due; packets are sent in the order of decoding, early enough for every picture to be
there when it is due, as of a file. Then the language model answers the same pictures sent either
way, every one, and their boxes are compared. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from agent.detections import box_iou
from agent.interrupts import interruptible
from deployments.local.service_process import ServiceProcess
from groundstream import aio
from groundstream.conversions import frame_to_message, packet_to_message
from groundstream.events import StreamError, StreamStats
from groundstream.types import (
    AnswerMode,
    Box,
    DropPolicy,
    FrameResult,
    OutgoingFrame,
    OutgoingPacket,
    StreamPolicy,
    VideoCodec,
)
from groundstream.video.pictures import encode_jpeg
from groundstream.video.playback import JPEG_QUALITY
from groundstream.video.sources import SourcePacket, VideoFile

VIDEO = Path(__file__).parents[1] / "deployments" / "demo" / "data" / "pedestrians.mp4"
QUERIES = ("person", "car")
READY_S = 300.0
_LEAST_IOU = 0.5
_IN_TURN = StreamPolicy(drop=DropPolicy.LOSSLESS, mode=AnswerMode.GROUND, window=8, ack_window=0)

Item = OutgoingFrame | OutgoingPacket


@dataclass
class Way:
    """One way of sending the video: its frames in the order of sending, and what came of them."""

    items: list[Item]
    client_ms: float
    """Processor time of the client for one frame, before it is sent."""
    latency_ms: list[float] = field(default_factory=list)
    front_end_s: float = 0.0
    sent_s: float = 0.0
    num_due: int = 0
    superseded: int = 0
    tracked: list[float] = field(default_factory=list)

    @property
    def bytes_per_frame(self) -> float:
        """On the wire, without gRPC's own."""
        return sum(_num_bytes(item) for item in self.items) / len(self.items)


def _num_bytes(item: Item) -> int:
    if isinstance(item, OutgoingFrame):
        return int(frame_to_message(item).ByteSize())
    return int(packet_to_message(item, packet_number=item.sequence + 1).ByteSize())


def ways(video: Path) -> dict[str, Way]:
    """The video as packets and as pictures."""
    started_s = time.process_time()
    packets: list[Item] = []
    for item in VideoFile(str(video)).packets(tuple(VideoCodec)):
        assert isinstance(item, SourcePacket), "the video cannot be passed on"
        coded = item.coded
        packets.append(OutgoingPacket(coded.data, coded.format, coded.rank, is_key=coded.is_key))
    packets_s = time.process_time() - started_s
    started_s = time.process_time()
    pictures: list[Item] = [
        OutgoingFrame(encode_jpeg(picture.rgb, JPEG_QUALITY), number)
        for number, picture in enumerate(VideoFile(str(video)))
    ]
    pictures_s = time.process_time() - started_s
    assert len(packets) == len(pictures)
    return {
        "packets": Way(packets, 1e3 * packets_s / len(packets)),
        "JPEG": Way(pictures, 1e3 * pictures_s / len(pictures)),
    }


async def due_items(items: Sequence[Item], *, fps: float, rounds: int) -> AsyncIterator[Item]:
    """Frames at a fixed rate, several times over; each knows when its picture is due."""
    count = len(items)
    # So many frame intervals before its picture is due goes the packet that is sent last for it.
    lead = max(index - item.sequence for index, item in enumerate(items))
    started_s, started_ns = time.monotonic(), time.time_ns()
    for number in range(rounds * count):
        item = items[number % count]
        sequence = item.sequence + number // count * count
        await asyncio.sleep(max(0.0, started_s + number / fps - time.monotonic()))
        due_ns = started_ns + round((sequence + lead) / fps * 1e9)
        yield replace(item, sequence=sequence, capture_time_ns=due_ns)


async def follow(
    client: aio.Client, way: Way, service: ServiceProcess | None, *, fps: float, rounds: int
) -> None:
    """One stream, followed."""
    used_s, started_s = _front_end_s(service), time.monotonic()
    frames = due_items(way.items, fps=fps, rounds=rounds)
    async with client.watch(frames, QUERIES) as stream:
        async for event in stream:
            match event:
                case FrameResult():
                    way.latency_ms.append((time.time_ns() - event.capture_time_ns) / 1e6)
                case StreamError():
                    raise RuntimeError(event.message)
                case StreamStats(ended=True):
                    assert event.balanced
                    way.num_due += event.received
                    way.superseded += event.superseded
    way.sent_s += time.monotonic() - started_s
    way.front_end_s += _front_end_s(service) - used_s


def _front_end_s(service: ServiceProcess | None) -> float:
    if service is None:
        return 0.0
    return sum(seconds for name, seconds in service.cpu_s_by_process().items() if "Ingress" in name)


async def answered(client: aio.Client, items: Sequence[Item]) -> dict[int, dict[str, list[Box]]]:
    """Every frame by the language model: its boxes by query."""
    boxes = {}
    async with client.watch(iter(items), QUERIES, policy=_IN_TURN) as stream:
        async for result in stream.results():
            boxes[result.sequence] = {
                answer.query_id: [detection.box for detection in answer.detections]
                for answer in result.results
            }
    return boxes


@dataclass
class Agreement:
    """Boxes of the same pictures sent in two ways."""

    num_frames: int = 0
    num_first: int = 0
    num_second: int = 0
    overlaps: list[float] = field(default_factory=list)

    def add(self, first: list[Box], second: list[Box]) -> None:
        """One question about one picture: each box is matched once, the best first."""
        self.num_first += len(first)
        self.num_second += len(second)
        if not first or not second:
            return
        overlap = box_iou(np.asarray(first, np.float32), np.asarray(second, np.float32))
        while overlap.size and overlap.max() >= _LEAST_IOU:
            row, column = np.unravel_index(overlap.argmax(), overlap.shape)
            self.overlaps.append(float(overlap[row, column]))
            overlap[row, :] = overlap[:, column] = 0.0


async def measure(
    target: str, service: ServiceProcess | None, *, fps: float, rounds: int, compared: int
) -> dict[str, object]:
    """All of it."""
    sent = ways(VIDEO)
    async with aio.Client(target) as client:
        await client.wait_until_ready(READY_S)
        for way in sent.values():  # Nobody pays for what happens once.
            await follow(client, Way(way.items, 0.0), None, fps=fps, rounds=1)
        for _ in range(rounds):
            for way in sent.values():
                await follow(client, way, service, fps=fps, rounds=2)
        agreement = Agreement()
        # Packets of the first pictures to be shown; those after them are not needed for them.
        by_packets = await answered(client, sent["packets"].items[: compared + 8])
        by_pictures = await answered(client, sent["JPEG"].items[:compared])
        for number in sorted(by_packets.keys() & by_pictures.keys()):
            agreement.num_frames += 1
            for query in QUERIES:
                agreement.add(by_packets[number][query], by_pictures[number][query])
    return {**{name: _figures(way, fps) for name, way in sent.items()}, **_compared(agreement)}


def _figures(way: Way, fps: float) -> dict[str, float]:
    return {
        "kilobytes_per_s": round(way.bytes_per_frame * fps / 1e3, 1),
        **{
            f"latency_p{share}_ms": round(float(np.percentile(way.latency_ms, share)), 1)
            for share in (50, 95)
        },
        "front_end_cpu_ms_per_frame": round(1e3 * way.front_end_s / way.num_due, 2),
        "client_cpu_ms_per_frame": round(way.client_ms, 2),
        "frames_due": way.num_due,
        "frames_answered": len(way.latency_ms),
        "superseded": way.superseded,
    }


def _compared(agreement: Agreement) -> dict[str, object]:
    return {
        "frames_compared": agreement.num_frames,
        "boxes_packets": agreement.num_first,
        "boxes_jpeg": agreement.num_second,
        "boxes_matched": len(agreement.overlaps),
        "mean_iou": round(float(np.mean(agreement.overlaps)), 3) if agreement.overlaps else None,
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--target", help="a running service; default: start one")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each way")
    parser.add_argument(
        "--compared", type=int, default=40, help="pictures whose boxes are compared"
    )
    options = parser.parse_args()
    with interruptible(), contextlib.ExitStack() as stack:
        service = None if options.target else stack.enter_context(ServiceProcess())
        target = options.target or (service.target if service else "")
        result = asyncio.run(
            measure(
                target,
                service,
                fps=options.fps,
                rounds=options.rounds,
                compared=options.compared,
            )
        )
    table = Table("figure", "packets", "JPEG", title=f"{options.fps:g} frames a second")
    packets, pictures = result["packets"], result["JPEG"]
    assert isinstance(packets, dict)
    assert isinstance(pictures, dict)
    for name, value in packets.items():
        table.add_row(name, str(value), str(pictures[name]))
    for name, figure in result.items():
        if not isinstance(figure, dict):
            table.add_row(name, str(figure), "")
    Console().print(table)
    print(json.dumps({"benchmark": "video_wire", **result}))


if __name__ == "__main__":
    main()
