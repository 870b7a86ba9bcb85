"""The clients of a soak: good, slow, silent and killed ones, and those that send rubbish.

Each kind is a function that lives for some seconds and says what it saw; `benchmarks/soak.py`
decides how many there are and what is wrong with what they saw.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import struct
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import grpc.aio

from benchmarks.driver import with_comment
from groundstream import aio
from groundstream.errors import AgentError
from groundstream.events import StreamError, StreamStats, adds_up
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc
from groundstream.types import FrameResult, OutgoingFrame, StreamPolicy
from groundstream.watch_stream import Reconnect, WatchStream

_FPS = 8.0
_PATIENT = Reconnect(max_attempts=1000, first_pause_s=0.1, max_pause_s=1.0)
_WORDS = ("dog", "automobile", "cat", "house", "tree")
_END_S = 90.0
"""A stream whose stage was just killed ends when the next replica has answered."""
_METHOD = "/vision_agent.v1.VisionAgent/Ground"
_LOST_WHILE_WRITING = "Internal error from Core"
"""What grpc's own client says where a call ends while it writes: no status of a server's."""


@dataclass
class Seen:
    """What all clients together saw."""

    lives: Counter[str] = field(default_factory=Counter)
    results: Counter[str] = field(default_factory=Counter)
    """Results, by kind of client."""
    errors: Counter[str] = field(default_factory=Counter)
    """Errors that the service told, by code."""
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)
    """What must not happen."""


@dataclass(frozen=True)
class Surroundings:
    """What a client needs."""

    target: str
    pictures: Sequence[bytes]
    folder: Path
    """Holds some pictures as files, for clients that are programs."""
    seen: Seen
    dice: random.Random

    def words(self) -> list[str]:
        """Something to look for."""
        return self.dice.sample(_WORDS, 2)


async def good_stream(around: Surroundings) -> None:
    """A camera for some seconds; its books must close, whatever happens meanwhile."""
    await _stream(around, "good", StreamPolicy())


async def slow_reader(around: Surroundings) -> None:
    """Reads a result now and then."""
    await _stream(around, "slow", StreamPolicy(ack_window=4), read_pause_s=0.4)


async def changing_queries(around: Surroundings) -> None:
    """Asks for something else several times a second."""
    await _stream(around, "churn", StreamPolicy(), change_every_s=0.25)


async def never_acking(around: Surroundings) -> None:
    """Reads all and acknowledges nothing; the service stops sending and goes on counting."""
    seen, books = around.seen, None
    try:
        async with (
            asyncio.timeout(_END_S),
            grpc.aio.insecure_channel(around.target) as channel,
        ):
            call = pb_grpc.VisionAgentStub(channel).Watch()  # type: ignore[no-untyped-call]
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(_write_frames(call, around))
                async for response in call:
                    seen.results["mute"] += response.HasField("result")
                    if response.HasField("stats"):
                        books = response.stats
                        if not adds_up(books):
                            seen.wrong.append(f"never-acking: books do not balance: {books}")
    except* grpc.aio.AioRpcError as errors:
        # Nobody comes back here, so that a killed front end is the end of the stream.
        books = None
        for error in errors.exceptions:
            assert isinstance(error, grpc.aio.AioRpcError)
            _note_status(seen, "never-acking", error)
    except* asyncio.InvalidStateError:
        books = None  # Written to after it had ended.
    if books is not None and books.in_flight:
        seen.wrong.append(f"never-acking: {books.in_flight} frames in flight at the end")


async def _write_frames(call: Any, around: Surroundings) -> None:
    """A camera without a client library; a call that has ended raises."""
    policy = pb.SetPolicy(policy=pb.StreamPolicy(ack_window=2), change_id=1)
    queries = pb.SetQueries(queries=[pb.Query(id="q", text="dog")], change_id=2)
    await call.write(pb.WatchRequest(set_policy=policy))
    await call.write(pb.WatchRequest(set_queries=queries))
    for number in range(round(_FPS * around.dice.uniform(3.0, 8.0))):
        picture = around.pictures[number % len(around.pictures)]
        await call.write(pb.WatchRequest(frame=pb.Frame(sequence=number, encoded_image=picture)))
        await asyncio.sleep(1 / _FPS)
    await call.done_writing()


async def killed_client(around: Surroundings) -> None:
    """A program in the middle of its stream, killed outright."""
    command = [
        sys.executable, "-m", "deployments.cli", "watch", str(around.folder), "dog",
        "--target", around.target, "--json",
    ]  # fmt: skip
    silent = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=silent, stderr=silent)
    await asyncio.sleep(around.dice.uniform(2.0, 6.0))
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()


async def garbage(around: Surroundings) -> None:
    """Bytes that are no HTTP, calls that are no messages, frames that are no pictures."""
    host, _, port = around.target.rpartition(":")
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(around.dice.randbytes(4000))
        await writer.drain()
        writer.close()
    async with grpc.aio.insecure_channel(around.target) as channel:
        call = channel.unary_unary(_METHOD)
        for _ in range(5):
            try:
                await call(around.dice.randbytes(500), timeout=30.0)
            except grpc.aio.AioRpcError as error:
                _note_status(around.seen, "garbage", error)
    damaged = [around.dice.randbytes(2000), around.pictures[0][:700], b""]
    await _bad_calls(around, "garbage", damaged)


async def oversize(around: Surroundings) -> None:
    """Pictures beyond every limit: of bytes, of pixels, of shape."""
    pictures = [
        around.pictures[0] + bytes(17_000_000),
        _png_header(60_000, 60_000),
        _png_header(100_000, 3),
    ]
    await _bad_calls(around, "oversize", pictures)


async def one_question(around: Surroundings) -> None:
    """Single calls, now and then."""
    async with aio.Client(around.target) as client:
        for _ in range(4):
            picture = with_comment(around.dice.choice(around.pictures), str(around.dice.random()))
            try:
                await client.ground(picture, around.words(), timeout_s=30.0)
                around.seen.results["ground"] += 1
            except AgentError as error:
                _note_error(around.seen, "ground", error)
            await asyncio.sleep(0.5)


KINDS: tuple[tuple[Callable[[Surroundings], Awaitable[None]], int], ...] = (
    (good_stream, 6),
    (one_question, 3),
    (changing_queries, 2),
    (slow_reader, 2),
    (never_acking, 2),
    (garbage, 2),
    (oversize, 1),
    (killed_client, 1),
)
"""Who comes, and how often."""


async def _stream(
    around: Surroundings,
    kind: str,
    policy: StreamPolicy,
    *,
    read_pause_s: float = 0.0,
    change_every_s: float | None = None,
) -> None:
    seen, produced = around.seen, itertools.count()
    until_s = time.monotonic() + around.dice.uniform(4.0, 15.0)
    num_produced = 0

    async def frames() -> AsyncIterator[OutgoingFrame]:
        nonlocal num_produced
        while time.monotonic() < until_s:
            number = next(produced)
            yield OutgoingFrame(around.pictures[number % len(around.pictures)], number)
            num_produced += 1
            await asyncio.sleep(1 / _FPS)

    last = None
    try:
        async with (
            asyncio.timeout(until_s - time.monotonic() + _END_S),
            aio.Client(around.target) as client,
            client.watch(frames(), around.words(), policy=policy, reconnect=_PATIENT) as stream,
            _changing(stream, around, change_every_s),
        ):
            async for event in stream:
                if isinstance(event, StreamStats):
                    last = event
                    if not event.balanced:
                        seen.wrong.append(f"{kind}: books do not balance: {event}")
                elif isinstance(event, StreamError):
                    seen.errors[event.code] += 1
                elif isinstance(event, FrameResult):
                    seen.results[kind] += 1
                    await asyncio.sleep(read_pause_s)
    except TimeoutError:
        seen.wrong.append(
            f"{kind}: not ended {_END_S:.0f} s after {num_produced} frames, of which "
            f"{stream.num_sent} were sent; {stream.num_reconnects} reconnects; last books {last}"
        )
        return
    except AgentError as error:
        _note_error(seen, kind, error)
        return
    if last is None or last.in_flight or last.received != stream.num_sent:
        seen.wrong.append(f"{kind}: {stream.num_sent} frames sent, books at the end: {last}")
    if stream.num_sent + stream.num_unsent != num_produced:
        seen.wrong.append(
            f"{kind}: {num_produced} frames, {stream.num_sent} sent, {stream.num_unsent} not"
        )


@contextlib.asynccontextmanager
async def _changing(
    stream: WatchStream, around: Surroundings, every_s: float | None
) -> AsyncIterator[None]:
    async def change() -> None:
        while every_s is not None:
            await asyncio.sleep(every_s)
            await stream.set_queries(around.words())

    changing = asyncio.create_task(change())
    try:
        yield
    finally:
        changing.cancel()
        (ended,) = await asyncio.gather(changing, return_exceptions=True)
        if isinstance(ended, Exception) and not isinstance(ended, AgentError):
            around.seen.wrong.append(f"churn: {ended!r}")


async def _bad_calls(around: Surroundings, kind: str, pictures: Sequence[bytes]) -> None:
    async with aio.Client(around.target) as client:
        for picture in pictures:
            try:
                await client.ground(picture, ["dog"], timeout_s=30.0)
                around.seen.wrong.append(f"{kind}: a bad picture of {len(picture)} bytes passed")
            except AgentError as error:
                _note_error(around.seen, kind, error)


def _note_error(seen: Seen, kind: str, error: BaseException) -> None:
    name = type(error).__name__
    seen.errors[name] += 1
    text = str(error)
    if "INTERNAL" in text or "internal error" in text:
        seen.wrong.append(f"{kind}: {name}: {text[:200]}")


def _note_status(seen: Seen, kind: str, error: grpc.aio.AioRpcError) -> None:
    if error.details() == _LOST_WHILE_WRITING:
        seen.errors["lost while writing"] += 1
        return
    seen.errors[error.code().name] += 1
    if error.code() in (grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN):
        seen.wrong.append(f"{kind}: {error.code().name}: {error.details()}")


def _png_header(width: int, height: int) -> bytes:
    """A picture that says it is so large, and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in chunks
    )
