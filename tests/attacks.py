"""A front end over fakes, and callers who mean harm, each as a process of its own.

    python -m tests.attacks serve PORT KEYS
    python -m tests.attacks NAME TARGET KEY     one of `ATTACKS`, until it is killed

Every attack goes on at a few calls a second: what is measured is what one of them costs, not how
many a machine can send.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from agent.server_settings import AccessSettings, QuotaSettings
from agent.settings import ServiceSettings, StreamSettings
from groundstream.protos import vision_agent_pb2 as pb
from tests.in_process import running_service
from tests.pictures import encoded_image

GROUND = "/vision_agent.v1.VisionAgent/Ground"
WATCH = "/vision_agent.v1.VisionAgent/Watch"
PAUSE_S = 0.2
_EMPTY_SCAN = bytes.fromhex("ffda0008010100013f00")


def settings(keys: Path) -> ServiceSettings:
    """As shipped, but for keys and a quota."""
    access = AccessSettings(api_keys=str(keys), quota=QuotaSettings(prompts_per_s=50.0))
    return dataclasses.replace(
        ServiceSettings(), access=access, stream=StreamSettings(), model="fake"
    )


async def serve(port: int, keys: Path) -> None:
    """Until killed."""
    async with running_service(port=port, settings=settings(keys)):
        print("ready", flush=True)
        await asyncio.sleep(3600)


Send = Callable[[grpc.aio.Channel, tuple[tuple[str, str], ...]], Awaitable[object]]


async def empty_turns_of_a_stranger(channel: grpc.aio.Channel, _key: object) -> None:
    """Fault 1: 16 M empty turns, gzipped, without credentials."""
    content = b"\x12\x80\x80\x80\x0f" + b"\x3a\x00" * (15 * 2**20)
    await channel.unary_unary(GROUND)(content, compression=grpc.Compression.Gzip)


async def calls_without_a_message(
    channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]
) -> None:
    """Fault 2: 100 calls and 100 watches of health, all of them silent."""
    calls = [channel.stream_stream(WATCH)(metadata=key) for _ in range(100)]
    health = health_pb2_grpc.HealthStub(channel)
    watches = [health.Watch(health_pb2.HealthCheckRequest()) for _ in range(100)]
    await asyncio.sleep(1.0)
    for call in (*calls, *watches):
        call.cancel()


async def costly_pictures(channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]) -> None:
    """Fault 4: 150,000 empty scans."""
    picture = encoded_image(1)
    frame = pb.Frame(encoded_image=picture[:-2] + _EMPTY_SCAN * 150_000 + picture[-2:])
    request = pb.GroundRequest(frame=frame, queries=[pb.Query(text="dog")])
    await channel.unary_unary(GROUND)(
        request.SerializeToString(), metadata=key, compression=grpc.Compression.Gzip
    )


async def many_queries(channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]) -> None:
    """Fault 5: SetQueries with 6.6 M queries."""
    call = channel.stream_stream(WATCH)(metadata=key)
    content = b"\x12\x80\x80\x80\x06" + b"\x0a\x00" * (6 * 2**20)
    await call.write(content)
    await call.read()
    call.cancel()


async def a_long_conversation(channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]) -> None:
    """Fault 6: CHAT with 100,000 empty turns."""
    turns = [pb.Exchange()] * 100_000
    query = pb.Query(text="And?", task=pb.TASK_KIND_CHAT, history=turns)
    request = pb.GroundRequest(frame=pb.Frame(encoded_image=encoded_image(1)), queries=[query])
    await channel.unary_unary(GROUND)(request.SerializeToString(), metadata=key)


async def all_that_may_be_asked(
    channel: grpc.aio.Channel, key: tuple[tuple[str, str], ...]
) -> None:
    """Fault 15: 16 questions about 1,000 boxes, a new picture each time."""
    boxes = pb.BoxList(boxes=[pb.Box(x1=n % 60, y1=1, x2=n % 60 + 9, y2=30) for n in range(1000)])
    frame = pb.Frame(encoded_image=encoded_image(id(boxes) % 251), boxes=boxes)
    queries = [pb.Query(text=f"dog {number}") for number in range(16)]
    request = pb.GroundRequest(frame=frame, queries=queries)
    await channel.unary_unary(GROUND)(request.SerializeToString(), metadata=key)


ATTACKS: dict[str, Send] = {
    "1": empty_turns_of_a_stranger,
    "2": calls_without_a_message,
    "4": costly_pictures,
    "5": many_queries,
    "6": a_long_conversation,
    "15": all_that_may_be_asked,
}


async def attack(name: str, target: str, key: str) -> None:
    """Again and again; errors are what it is meant to get."""
    metadata = (("authorization", f"Bearer {key}"),)
    async with grpc.aio.insecure_channel(target) as channel:
        print("ready", flush=True)
        while True:
            with contextlib.suppress(grpc.aio.AioRpcError):
                await ATTACKS[name](channel, metadata)
            await asyncio.sleep(PAUSE_S)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        asyncio.run(serve(int(sys.argv[2]), Path(sys.argv[3])))
    else:
        asyncio.run(attack(*sys.argv[1:4]))
