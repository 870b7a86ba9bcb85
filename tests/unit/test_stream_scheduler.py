"""How streams of one front end share key frames and tracking threads."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from typing import Any

import pytest

from agent.frame import FrameLimits
from agent.settings import FollowSettings, SharingSettings
from agent.streaming.camera_path import CameraPath
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking
from deployments.streams.scheduler import KeyframeTurns, StreamScheduler, TrackingThreads
from deployments.wire import messages
from groundstream.protos import vision_agent_pb2 as pb
from tests.pictures import encoded_image

FRAME_S = 0.1


class Clock:
    """Time that a test moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def played(
    turns: KeyframeTurns, clock: Clock, *, num_streams: int, seconds: float, took_s: float
) -> Counter[int]:
    """Streams at 10 frames a second that would make every frame a key frame."""
    given: Counter[int] = Counter()
    under_way: list[tuple[float, int]] = []
    for step in range(round(seconds / FRAME_S * num_streams)):
        clock.now_s = step * FRAME_S / num_streams
        for ends_s, stream in [entry for entry in under_way if entry[0] <= clock.now_s]:
            turns.give_back(stream)
            under_way.remove((ends_s, stream))
        stream = step % num_streams
        if all(other != stream for _, other in under_way) and turns.try_take(stream):
            given[stream] += 1
            under_way.append((clock.now_s + took_s, stream))
    return given


@pytest.mark.parametrize("num_streams", [3, 32])
def test_turns_are_fair(num_streams: int) -> None:
    clock = Clock()
    turns = KeyframeTurns(SharingSettings(keyframes_at_once=1), clock)
    given = played(turns, clock, num_streams=num_streams, seconds=60.0, took_s=0.25)
    assert len(given) == num_streams
    assert max(given.values()) - min(given.values()) <= 1
    # The stage is kept busy: a turn waits for its stream's next frame at most.
    assert sum(given.values()) >= 60.0 / (0.25 + 1.5 * FRAME_S)


def test_key_frames_become_rarer_as_fewer_frames_can_be_followed() -> None:
    counts = []
    for tracked in (True, False):
        clock = Clock()
        turns = KeyframeTurns(
            SharingSettings(keyframes_at_once=1, least_keyframe_share=0.25), clock
        )
        for _ in range(500):
            turns.note_frame(tracked=tracked)
        counts.append(played(turns, clock, num_streams=4, seconds=60.0, took_s=0.4).total())
    assert counts[1] == pytest.approx(60.0 / (0.4 / 0.25), rel=0.1)
    assert counts[0] > 2.5 * counts[1]


def test_beside_a_one_off_question_one_turn_fewer_is_given() -> None:
    turns = KeyframeTurns(SharingSettings(keyframes_at_once=2), Clock())
    turns.num_one_offs = 1
    assert [turns.try_take(stream) for stream in "abc"] == [True, False, False]
    turns.num_one_offs = 0
    assert turns.try_take("b")
    assert not turns.try_take("c")


def test_who_knows_nothing_yet_goes_first_and_who_lost_interest_holds_nobody_up() -> None:
    clock = Clock()
    turns = KeyframeTurns(SharingSettings(keyframes_at_once=1), clock)
    assert turns.try_take("a")
    assert not turns.try_take("refresh")
    assert not turns.try_take("new", rank=0)
    turns.give_back("a")
    assert not turns.try_take("refresh")
    assert turns.try_take("new", rank=0)
    turns.give_back("new")
    # "refresh" went longest without, but does not come any more.
    assert not turns.try_take("a")
    clock.now_s = 2.0
    assert turns.try_take("a")


async def test_who_must_have_a_turn_gets_it_when_it_is_free() -> None:
    turns = KeyframeTurns(SharingSettings(keyframes_at_once=1))
    await turns.take("a")
    second = asyncio.create_task(turns.take("b"))
    given_up = asyncio.create_task(turns.take("c"))
    await asyncio.sleep(0.01)
    assert not second.done()
    given_up.cancel()
    turns.give_back("a")
    async with asyncio.timeout(1):
        await second
    turns.leave("b")
    assert turns.try_take("d")


async def test_however_many_take_turns_one_timer_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    timers: list[asyncio.TimerHandle] = []
    call_later = loop.call_later

    def counted(*arguments: Any) -> asyncio.TimerHandle:
        timers.append(call_later(*arguments))
        return timers[-1]

    def pending() -> int:
        return sum(not timer.cancelled() and timer.when() > loop.time() for timer in timers)

    turns = KeyframeTurns(SharingSettings(keyframes_at_once=1))
    await turns.take("a")
    monkeypatch.setattr(loop, "call_later", counted)
    waiting = [asyncio.create_task(turns.take(("b", number))) for number in range(50)]
    await asyncio.sleep(0)
    assert pending() == 1
    turns.give_back("a")
    for _ in range(200):
        turns.try_take("a")
        turns._hand_on()
    assert pending() == 1
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert pending() == 0  # Nobody waits: nothing to come back for.


async def test_a_frame_waits_only_briefly_for_its_look() -> None:
    threads = TrackingThreads(1)
    assert await threads.take(0.0, patience_s=0.0)
    assert not await threads.take(0.0, patience_s=0.01)
    # The one who has not looked for longest is next; who has given up is passed over.
    order: list[str] = []

    async def look(name: str, last_tracked_s: float) -> None:
        assert await threads.take(last_tracked_s, patience_s=None)
        order.append(name)
        threads.give_back()

    waiting = [asyncio.create_task(look(*who)) for who in (("b", 2.0), ("c", 3.0), ("a", 1.0))]
    await asyncio.sleep(0.01)
    threads.give_back()
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c"]
    assert await threads.take(0.0, patience_s=0.0)
    threads.close()


async def test_a_turn_that_comes_at_the_last_moment_is_not_lost() -> None:
    threads, loop = TrackingThreads(1), asyncio.get_running_loop()
    assert await threads.take(0.0, patience_s=None)
    loop.call_later(0.01, threads.give_back)
    loop.call_later(0.005, time.sleep, 0.03)  # Both are due when the loop comes back.
    if await threads.take(0.0, patience_s=0.01):
        threads.give_back()
    assert await threads.take(0.0, patience_s=0.01)
    threads.close()


async def test_a_stream_long_unseen_waits_longer_for_a_thread_but_not_for_ever() -> None:
    settings = SharingSettings(
        looks_at_once=1, look_wait_s=0.01, max_unseen_s=0.5, unseen_wait_s=0.2
    )
    scheduler, path = StreamScheduler(settings), CameraPath()
    tracking = FrameTracking(None, scheduler, FollowSettings())  # type: ignore[arg-type]

    async def is_seen(number: int, *, free_after_s: float) -> bool:
        """Whether a frame is tracked while another stream has the thread for so long."""
        assert await scheduler.threads.take(0.0, patience_s=0.0)
        free = asyncio.get_running_loop().call_later(free_after_s, scheduler.threads.give_back)
        message = pb.Frame(sequence=number, encoded_image=encoded_image(number))
        received = messages.frame_from_message(
            message, limits=FrameLimits(), received_time_ns=number
        )
        arrived = ArrivedFrame.at(path.step(None), received)
        tracked = await tracking.track(arrived, must=False, with_proposals=False)
        if free.when() > asyncio.get_running_loop().time():
            free.cancel()
            scheduler.threads.give_back()
        return tracked.ahead_s is None

    assert not await is_seen(0, free_after_s=60.0)
    assert await is_seen(1, free_after_s=0.05)
    # Seen a moment ago.
    assert not await is_seen(2, free_after_s=60.0)
    scheduler.close()
