"""Whoever asks most waits for others, and nobody else does."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from agent.errors import Overloaded
from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from agent.urgency import Limits
from deployments.access import Caller, calling
from deployments.fair_share import FairStages, Turns
from tests.fakes import FakeStages


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Asked:
    """Work that ends when it is told to, one after the other."""

    def __init__(self, turns: Turns) -> None:
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
    asked = Asked(Turns(8))
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
    asked = Asked(Turns(4))
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
    turns = Turns(1)
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
    turns = Turns(1)
    for _ in range(3):
        with pytest.raises(ZeroDivisionError):
            async with turns.turn("a"):
                raise ZeroDivisionError
    assert not turns._under_way


class CountingStages(FakeStages):
    """How many prompts are under way, and whose."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.most = 0

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await asyncio.sleep(0.01)
            return await super().answer(features, task)
        finally:
            self.now -= 1


async def test_one_tenants_many_prompts_are_asked_few_at_a_time() -> None:
    inner = CountingStages()
    stages = FairStages(inner, Turns(8)).within(Limits.starting_now(30.0))
    with calling(Caller("a")):
        tasks = [asyncio.create_task(stages.answer(None, Task.chat("Hi"))) for _ in range(60)]
    await asyncio.sleep(0.015)
    with calling(Caller("b")):
        await asyncio.wait_for(stages.answer(None, Task.chat("Hi")), 5)
    assert not all(task.done() for task in tasks)
    await asyncio.gather(*tasks)
    assert inner.most == 7
    assert dataclasses.asdict(inner.calls)["answer"] == 61
