"""Whoever asks most waits for others, and nobody else does."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import statistics
import time
from typing import Any, ClassVar

import numpy as np
import pytest

from agent.detections import Proposals
from agent.features import FrameFeatures, Generation
from agent.frame import Frame, frame_from_rgb, read_frame
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.region_cache import MemoryRegionCache
from agent.urgency import CurrentLimits, Limits
from deployments.fair_queue import FairQueue
from deployments.front_end.access import Caller, calling
from deployments.front_end.fair_share import FairGrounder
from deployments.observability.metrics import ServiceMetrics
from groundstream.errors import Overloaded
from tests.fakes import FakeProposer, FakeStages
from tests.handles import remote_pipeline
from tests.pictures import encoded_image


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Asked:
    """Work that ends when it is told to, one after the other."""

    def __init__(self, turns: FairQueue) -> None:
        self.order: list[str] = []
        self._turns = turns
        self._go = asyncio.Semaphore(0)
        self.tasks: list[asyncio.Task[None]] = []

    def ask(self, whose: str, number: int = 1, within_s: float | None = None) -> None:
        for _ in range(number):
            self.tasks.append(asyncio.create_task(self._work(whose, within_s)))

    async def finish(self, number: int = 1) -> None:
        for _ in range(number):
            self._go.release()
            await settle()

    async def _work(self, whose: str, within_s: float | None) -> None:
        async with self._turns.turn(whose, within_s=within_s):
            self.order.append(whose)
            await self._go.acquire()


async def test_there_is_room_for_whoever_comes_next() -> None:
    asked = Asked(FairQueue(8))
    asked.ask("a", 160)
    await settle()
    assert asked.order == ["a"] * 6
    asked.ask("b", 2)
    await settle()
    assert asked.order == [*["a"] * 6, "b", "b"]
    await asked.finish(154 + 6 + 2)
    await asyncio.gather(*asked.tasks)
    assert asked.order.count("a") == 160


async def test_who_has_fewest_under_way_is_next() -> None:
    asked = Asked(FairQueue(4))
    asked.ask("a", 20)
    await settle()
    asked.ask("b", 3)
    asked.ask("c", 3)
    await settle()
    assert asked.order == ["a", "a", "a", "b"]
    await asked.finish(4)
    assert asked.order.count("c") >= 1
    assert asked.order.count("b") >= 2
    await asked.finish(30)
    await asyncio.gather(*asked.tasks)


async def test_waiting_ends_at_the_deadline_and_leaves_nothing() -> None:
    turns = FairQueue(1)
    asked = Asked(turns)
    asked.ask("a")
    await settle()
    with pytest.raises(Overloaded, match="deadline"):
        async with turns.turn("b", within_s=0.02):
            raise AssertionError("nobody let it in")
    waiting = asyncio.create_task(asked._work("c", None))
    await settle()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await asked.finish()
    async with turns.turn("b", within_s=1.0):
        pass
    assert not turns._lines
    assert not turns._under_way


async def test_what_fails_gives_its_place_back() -> None:
    turns = FairQueue(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with turns.turn("a"):
                raise ZeroDivisionError
    assert not turns._under_way


async def test_nobody_passes_one_who_needs_many_places() -> None:
    turns = FairQueue(4)
    asked = Asked(turns)
    asked.ask("a", 3)
    await settle()
    order: list[str] = []

    async def work(whose: str, places: int) -> None:
        async with turns.turn(whose, places=places):
            order.append(whose)

    waiting = [asyncio.create_task(work("b", 3)), asyncio.create_task(work("c", 1))]
    await settle()
    assert order == []
    await asked.finish(3)
    await asyncio.gather(*waiting)
    assert order == ["b", "c"]
    async with turns.turn("d", places=100):  # More than there are: as many as one may have.
        pass
    assert not turns._under_way


class CountingStages(FakeStages):
    """How many prompts are under way."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0

    def within(self, limits: CurrentLimits) -> CountingStages:
        return self

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            return await super().answer(features, task)
        finally:
            self.now -= 1


async def test_one_tenants_many_prompts_are_asked_few_at_a_time() -> None:
    stages = CountingStages()
    pipeline = Pipeline(stages, MemoryRegionCache(), model_digest="m")
    grounder = FairGrounder(pipeline, FairQueue(8)).within(Limits.starting_now(30.0))
    frame = frame_from_rgb(np.zeros((32, 32, 3), np.uint8))
    tasks = [Task.detect("red"), Task.detect("blue")]
    with calling(Caller("a")):
        calls = [asyncio.create_task(grounder.ground(frame, tasks)) for _ in range(30)]
    await asyncio.sleep(0.015)
    with calling(Caller("b")):
        await asyncio.wait_for(grounder.ground(frame, tasks), 5)
    assert not all(call.done() for call in calls)
    await asyncio.gather(*calls)
    assert 2 < stages.most <= 8
    assert dataclasses.asdict(stages.calls)["answer"] == 62


class SlowProposer(FakeProposer):
    """Takes some milliseconds a frame, and remembers whose frames it had, by their first row."""

    seen: ClassVar[list[str]] = []

    def propose(self, frames: list[Frame]) -> list[Proposals]:
        time.sleep(0.004)
        self.seen.extend("greedy" if frame.index else "good" for frame in frames)
        return super().propose(frames)


async def test_a_greedy_tenants_frames_do_not_hold_up_anothers() -> None:
    SlowProposer.seen.clear()
    service = remote_pipeline(ServiceMetrics(), proposer=f"{__name__}:SlowProposer")
    grounder = FairGrounder(service, FairQueue(48))
    pictures = (read_frame(encoded_image(number), index=number) for number in itertools.count(1))

    def ask(whose: str, frame: Frame) -> asyncio.Task[Any]:
        way = grounder.for_tenant(whose).within(Limits.starting_now(60.0))
        with calling(Caller(whose)):
            return asyncio.create_task(way.ground(frame, [Task.detect("dog")]))

    greedy = [ask("greedy", next(pictures)) for _ in range(150)]
    while len(SlowProposer.seen) < 3:
        await asyncio.sleep(0.001)
    before_good = []
    for number in range(7):
        asked_at = len(SlowProposer.seen)
        await ask("good", read_frame(encoded_image(10_000 + number), index=0))
        before_good.append(SlowProposer.seen.index("good", asked_at) - asked_at)
    assert not all(task.done() for task in greedy), "the greedy one has work left all the time"
    # The frame that is computed, and one of the same turn; 36 of the greedy one's are in the line.
    assert statistics.median(before_good) <= 3
    for task in greedy:
        task.cancel()
    await asyncio.gather(*greedy, return_exceptions=True)
