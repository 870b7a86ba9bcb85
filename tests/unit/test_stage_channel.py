"""From a front end to a replica's door: results, errors, who gets a call, and replicas that go."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from agent.errors import InvalidFrame, Overloaded, SettingsError, StageUnavailable
from deployments.proposal import Proposal
from deployments.replica_roster import best
from deployments.stage_channel import StageChannel
from deployments.stage_door import KEY_HEADER, StageBug, StageFull
from tests.certificates import Authority
from tests.handles import Handle


class Replica:
    """Does as it is asked."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.num_cancelled = 0
        self.has_begun = asyncio.Event()
        self.may_end = asyncio.Event()

    async def answer(self, wanted: Any) -> Any:
        """What was sent; raises what is an error."""
        self.num_calls += 1
        if isinstance(wanted, Exception):
            raise wanted
        return wanted

    async def propose(self) -> str:
        """Waits until it may end."""
        self.num_calls += 1
        self.has_begun.set()
        try:
            await self.may_end.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return "done"

    async def encode(self, frame: str, boxes: Awaitable[str]) -> str:
        """Needs both."""
        self.num_calls += 1
        self.has_begun.set()
        if frame == "refused":
            raise Overloaded("not now", retry_after_s=0.5)
        try:
            both = f"{frame} with {await boxes}"
            if frame == "slow":
                await self.may_end.wait()
            return both
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise

    async def write_answer(self, num: int) -> AsyncIterator[str]:
        """Some pieces, and an error where none are wanted."""
        for number in range(num):
            yield f"piece {number}"
        if not num:
            raise InvalidFrame("nothing to write about")

    async def secret(self) -> str:
        """Not for callers."""
        return "secret"


@contextlib.asynccontextmanager
async def channel_to(*replicas: Any) -> AsyncIterator[tuple[StageChannel, Handle]]:
    handle = Handle(*replicas)
    channel = StageChannel(handle)  # type: ignore[arg-type]
    try:
        yield channel, handle
    finally:
        await channel.close()
        await handle.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


async def test_results_and_errors_come_back_as_they_are() -> None:
    large = bytes(20 * 2**20)
    async with channel_to(Replica()) as (channel, _):
        assert await channel.call("answer", {"a": (1, 2.5)}) == {"a": (1, 2.5)}
        assert await channel.call("answer", large) == large
        assert await channel.call("answer", None) is None
        with pytest.raises(Overloaded, match="later") as raised:
            await channel.call("answer", Overloaded("later", retry_after_s=0.25))
        assert raised.value.retry_after_s == 0.25
        with pytest.raises(StageBug, match=r"in answer(.|\n)*ValueError: a bug"):
            await channel.call("answer", ValueError("a bug"))


async def test_pieces_come_as_they_are_written() -> None:
    async with channel_to(Replica()) as (channel, _):
        pieces = [piece async for piece in channel.stream("write_answer", 3)]
        assert pieces == ["piece 0", "piece 1", "piece 2"]
        with pytest.raises(InvalidFrame, match="nothing to write"):
            [piece async for piece in channel.stream("write_answer", 0)]


async def test_whoever_reads_no_further_ends_the_writing() -> None:
    ended = asyncio.Event()

    class Endless(Replica):
        async def write_answer(self, num: int) -> AsyncIterator[str]:
            try:
                while True:
                    yield "piece"
                    await asyncio.sleep(0.001)
            finally:
                ended.set()

    async with channel_to(Endless()) as (channel, handle):
        pieces = channel.stream("write_answer", 0)
        assert await anext(pieces) == "piece"
        await pieces.aclose()
        (door,) = handle.doors.values()
        await asyncio.wait_for(ended.wait(), 10)
        await until(lambda: door.load.now == 0)


async def test_a_replica_begins_before_the_last_argument_is_there() -> None:
    boxes: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    replica = Replica()
    async with channel_to(replica) as (channel, _):
        call = asyncio.create_task(channel.call_in_parts("encode", "frame", last=boxes))
        await asyncio.wait_for(replica.has_begun.wait(), 10)
        assert not call.done()
        boxes.set_result("boxes")
        assert await call == "frame with boxes"


async def test_a_refusal_before_the_last_argument_keeps_its_type() -> None:
    async with channel_to(Replica()) as (channel, _):
        for _ in range(20):
            with pytest.raises(Overloaded, match="not now"):
                await channel.call_in_parts("encode", "refused", last=asyncio.sleep(0.01, "boxes"))


async def test_a_last_argument_that_fails_ends_the_call() -> None:
    async def failing() -> str:
        await replica.has_begun.wait()
        raise StageUnavailable("no boxes")

    replica = Replica()
    async with channel_to(replica) as (channel, handle):
        with pytest.raises(StageUnavailable, match="no boxes"):
            await channel.call_in_parts("encode", "frame", last=failing())
        (door,) = handle.doors.values()
        await until(lambda: replica.num_cancelled == 1 and door.load.now == 0)


async def test_whoever_waits_no_longer_takes_its_call_out() -> None:
    replica = Replica()
    async with channel_to(replica) as (channel, handle):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await channel.call("propose")
        (door,) = handle.doors.values()
        await until(lambda: replica.num_cancelled == 1 and door.load.now == 0)


async def test_a_full_replica_says_so_at_once() -> None:
    replica = Replica()
    async with channel_to(replica) as (channel, handle):
        (door,) = handle.doors.values()
        door.max_calls = 2
        calls = [asyncio.create_task(channel.call("propose")) for _ in range(2)]
        await until(lambda: door.load.now == 2)
        with pytest.raises(StageFull):
            await channel.call("propose")
        replica.may_end.set()
        assert await asyncio.gather(*calls) == ["done", "done"]
        assert await channel.call("answer", 1) == 1


async def test_strangers_are_not_let_in() -> None:
    replica = Replica()
    async with channel_to(replica) as (channel, handle):
        (door,) = handle.doors.values()
        address = (await door.open("127.0.0.1"))["address"]
        async with grpc.aio.insecure_channel(address) as stranger:
            for key in ("", "0" * 64):
                call = stranger.unary_unary("/call/answer")
                with pytest.raises(grpc.aio.AioRpcError) as raised:
                    await call(b"malicious", metadata=((KEY_HEADER, key),))
                assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED
        with pytest.raises(grpc.aio.AioRpcError) as unknown:
            await channel.call("secret")
        assert unknown.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert replica.num_calls == 0


async def test_the_least_busy_replica_gets_the_call() -> None:
    replicas = [Replica() for _ in range(3)]
    async with channel_to(*replicas) as (channel, _):
        calls = [asyncio.create_task(channel.call("propose")) for _ in range(9)]
        await until(lambda: sum(replica.num_calls for replica in replicas) == 9)
        assert [replica.num_calls for replica in replicas] == [3, 3, 3]
        for replica in replicas:
            replica.may_end.set()
        await asyncio.gather(*calls)


def test_a_replica_more_or_less_moves_no_session_but_its_own() -> None:
    def owners(replicas: list[str]) -> dict[str, str]:
        return {name: best(replicas, in_flight={}, session=name) for name in sessions}

    sessions = [f"frame {number}" for number in range(400)]
    three = owners(["a", "b", "c"])
    assert min(Counter(three.values()).values()) > 80
    for name, owner in owners(["a", "c"]).items():
        assert owner == three[name] or three[name] == "b"
    busy = {"a": 9, "b": 9, "c": 9}
    assert {best("abc", in_flight=busy, session=name) for name in sessions} == set("abc")
    assert best("ab", in_flight={"a": 0, "b": 5}, shunned={"a"}) == "b"
    assert best("a", in_flight={}, shunned={"a"}) == "a", "where there is no other"


async def test_a_replica_that_went_is_passed_over() -> None:
    replicas = [Replica() for _ in range(2)]
    async with channel_to(*replicas) as (channel, handle):
        await asyncio.gather(*(channel.call("answer", n) for n in range(8)))
        await handle.doors["replica0"].close(0.0)
        # Serve has not noticed yet.
        assert [await channel.call("answer", n) for n in range(8)] == list(range(8))


async def test_where_there_is_none_a_call_waits_for_one() -> None:
    replica = Replica()
    async with channel_to(replica, Replica()) as (channel, handle):
        handle.gone.add("replica1")
        assert await channel.call("answer", 1) == 1
        await handle.doors["replica0"].close(0.0)
        call = asyncio.create_task(channel.call("answer", 2))
        await asyncio.sleep(0.3)
        assert not call.done()
        handle.gone = {"replica0"}
        assert await asyncio.wait_for(call, 10) == 2
        assert replica.num_calls == 1


async def goes(handle: Handle) -> None:
    """The replica that is at work, before Serve notices."""

    def at_work() -> list[str]:
        doors = handle.doors.items()
        return [name for name, door in doors if door.load.now and name not in handle.gone]

    await until(at_work)
    (name,) = at_work()
    handle.gone.add(name)
    await handle.doors[name].close(0.0)


@pytest.mark.parametrize("in_parts", [False, True])
async def test_a_call_outlives_one_replica_but_not_two(in_parts: bool) -> None:
    replicas = [Replica() for _ in range(4)]
    boxes: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    boxes.set_result("boxes")

    async def called() -> Any:
        if in_parts:
            return await channel.call_in_parts("encode", "slow", last=boxes)
        return await channel.call("propose")

    async with channel_to(*replicas) as (channel, handle):
        call = asyncio.create_task(called())
        await goes(handle)
        await goes(handle)
        with pytest.raises(StageUnavailable, match="went away"):
            await call
        call = asyncio.create_task(called())
        await goes(handle)
        for replica in replicas:
            replica.may_end.set()
        assert await call in ("done", "slow with boxes")


async def test_a_replica_may_go_before_the_last_argument_is_there() -> None:
    boxes: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    async with channel_to(Replica(), Replica()) as (channel, handle):
        call = asyncio.create_task(
            channel.call_in_parts("encode", "frame", last=asyncio.shield(boxes))
        )
        await goes(handle)
        await asyncio.sleep(0.1)
        boxes.set_result("boxes")
        assert await call == "frame with boxes"


async def test_pieces_that_were_written_are_not_written_again() -> None:
    class Slow(Replica):
        async def write_answer(self, num: int) -> AsyncIterator[str]:
            self.num_calls += 1
            yield "first piece"
            await asyncio.sleep(60)

    replicas = [Slow() for _ in range(2)]
    async with channel_to(*replicas) as (channel, handle):
        pieces = channel.stream("write_answer", 2)
        assert await anext(pieces) == "first piece"
        await goes(handle)
        with pytest.raises(StageUnavailable, match="went away"):
            await anext(pieces)
        assert sum(replica.num_calls for replica in replicas) == 1


async def test_a_replica_that_is_told_to_go_ends_its_calls_first() -> None:
    replica = Replica()
    async with channel_to(replica) as (channel, handle):
        call = asyncio.create_task(channel.call("propose"))
        await asyncio.wait_for(replica.has_begun.wait(), 10)
        closing = asyncio.create_task(handle.doors["replica0"].close(10.0))
        await asyncio.sleep(0.1)
        assert not closing.done()
        replica.may_end.set()
        assert await call == "done"
        await closing


async def test_limits_change_without_a_restart() -> None:
    replica = Proposal("tests.fakes:FakeProposer", "", "cpu", 1)
    replica.reconfigure({"max_calls": 0})
    with pytest.raises(SettingsError, match="max_cals"):
        replica.reconfigure({"max_cals": 3})
    metadata = await replica.record_replica_metadata()
    closing = replica.__del__()
    assert metadata.keys() == {"address", "key"}
    assert replica.record_autoscaling_stats() == {"calls_under_way": 0.0}
    assert closing is not None
    await closing


@pytest.fixture
def tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Authority:
    """Ray's own variables for encryption inside a cluster."""
    authority = Authority(tmp_path, "authority")
    pair = authority.sign("node")
    monkeypatch.setenv("RAY_USE_TLS", "1")
    monkeypatch.setenv("RAY_TLS_SERVER_CERT", str(pair.chain))
    monkeypatch.setenv("RAY_TLS_SERVER_KEY", str(pair.key))
    monkeypatch.setenv("RAY_TLS_CA_CERT", str(authority.path))
    return authority


async def test_a_cluster_that_encrypts_encrypts_these_calls_too(tls: Authority) -> None:
    async with channel_to(Replica()) as (channel, handle):
        assert await channel.call("answer", 1) == 1
        (door,) = handle.doors.values()
        started_s = time.monotonic()
        async with grpc.aio.insecure_channel((await door.open("127.0.0.1"))["address"]) as plain:
            with pytest.raises(grpc.aio.AioRpcError) as raised:
                await plain.unary_unary("/call/answer")(b"", timeout=5)
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert time.monotonic() - started_s < 5
