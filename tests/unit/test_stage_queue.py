"""The line before a stage's thread: one-off questions first, nothing that comes too late."""

from __future__ import annotations

import asyncio
import threading

import pytest

from agent.urgency import Limits, Urgency
from deployments.observability.stage_meter import Served
from deployments.stages.queue import StageQueue
from groundstream.errors import Overloaded

STANDING = Limits(urgency=Urgency.STANDING)


class Gate:
    """Work that lasts until it is told to end, and the order in which work was done."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self._started = threading.Event()
        self._open = threading.Event()

    def hold(self) -> None:
        self._started.set()
        self._open.wait(10)

    async def held(self) -> None:
        """Returns once the thread is held."""
        await asyncio.to_thread(self._started.wait, 10)

    def release(self) -> None:
        self._open.set()


async def test_a_one_off_goes_before_all_key_frames_that_wait() -> None:
    line, gate = StageQueue(), Gate()
    running = asyncio.create_task(line.run(line.ticket(STANDING), gate.hold))
    await gate.held()
    work = [(f"key frame {i}", STANDING) for i in range(5)] + [("one-off", Limits())]
    waiting = [
        asyncio.create_task(line.run(line.ticket(limits), gate.done.append, name))
        for name, limits in work
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await asyncio.gather(running, *waiting)
    assert gate.done == ["one-off", *(f"key frame {i}" for i in range(5))]


@pytest.mark.parametrize("limits", [STANDING, Limits()])
async def test_tenants_take_turns_however_many_calls_one_has(limits: Limits) -> None:
    line, gate = StageQueue(), Gate()
    running = asyncio.create_task(line.run(line.ticket(limits, "greedy"), gate.hold))
    await gate.held()
    names = [("greedy", f"greedy {number}") for number in range(30)]
    names += [(whose, f"{whose} {number}") for number in range(2) for whose in ("a", "b")]
    waiting = [
        asyncio.create_task(line.run(line.ticket(limits, whose), gate.done.append, name))
        for whose, name in names
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await asyncio.gather(running, *waiting)
    of_greedy = [name for name in gate.done if "greedy" in name]
    assert of_greedy == [f"greedy {number}" for number in range(30)]
    # Before each call of another tenant stands at most one turn.
    assert set(gate.done[:3]) == {"a 0", "b 0", "greedy 0"}
    assert set(gate.done[3:6]) == {"a 1", "b 1", "greedy 1"}
    assert not any(last > 31 for last in line._last_turns.values())


async def test_who_comes_later_goes_before_what_another_has_waiting() -> None:
    line = StageQueue()
    for number in range(20):
        await line.run(line.ticket(STANDING, "greedy"), int, number)
    gate = Gate()
    running = asyncio.create_task(line.run(line.ticket(STANDING, "greedy"), gate.hold))
    await gate.held()
    waiting = [
        asyncio.create_task(line.run(line.ticket(STANDING, whose), gate.done.append, whose))
        for whose in ["greedy"] * 9 + ["new"]
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await asyncio.gather(running, *waiting)
    assert "new" in gate.done[:2]
    assert len(line._last_turns) <= 2, "who has nothing in the line is forgotten"


async def test_a_call_keeps_its_place_for_what_it_does_later() -> None:
    line, gate = StageQueue(), Gate()
    first = line.ticket(STANDING)
    running = asyncio.create_task(line.run(line.ticket(STANDING), gate.hold))
    await gate.held()
    waiting = [
        asyncio.create_task(line.run(ticket, gate.done.append, name))
        for ticket, name in ((line.ticket(STANDING), "start of the second"), (first, "pooling"))
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await asyncio.gather(running, *waiting)
    assert gate.done == ["pooling", "start of the second"]


async def test_what_comes_too_late_is_not_computed() -> None:
    line, gate = StageQueue(), Gate()
    running = asyncio.create_task(line.run(line.ticket(Limits()), gate.hold))
    await gate.held()
    late = line.run(line.ticket(Limits.starting_now(0.02)), gate.done.append, "late")
    gone = asyncio.create_task(line.run(line.ticket(Limits()), gate.done.append, "cancelled"))
    late_one = asyncio.create_task(late)
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.release()
    with pytest.raises(Overloaded, match="deadline"):
        await late_one
    await running
    served = await line.run(line.ticket(Limits()), gate.done.append, "next")
    assert gate.done == ["next"]
    assert served.compute_s >= 0.0


async def test_an_error_is_the_callers_and_the_thread_goes_on() -> None:
    line = StageQueue()

    def fail() -> None:
        raise ValueError("of the stage")

    with pytest.raises(ValueError, match="of the stage"):
        await line.run(line.ticket(Limits()), fail)
    assert (await line.run(line.ticket(Limits()), int, "7")).value == 7


async def test_what_waits_for_the_same_method_goes_together() -> None:
    line, gate, calls = StageQueue(), Gate(), list[list[int]]()

    def double(numbers: list[int]) -> list[int]:
        calls.append(numbers)
        if min(numbers) < 0:
            raise ValueError("negative")
        return [2 * number for number in numbers]

    running = asyncio.create_task(line.run(line.ticket(Limits()), gate.hold))
    await gate.held()
    work = [(1, STANDING), (2, STANDING), (-3, STANDING), (4, Limits())]
    waiting = [
        asyncio.create_task(line.run_together(line.ticket(limits), double, number, limit=3))
        for number, limits in work
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await running
    one, two, bad, urgent = await asyncio.gather(*waiting, return_exceptions=True)
    assert [served.value for served in (one, two, urgent) if isinstance(served, Served)] == [
        2,
        4,
        8,
    ]
    assert isinstance(bad, ValueError), "a bad item fails alone"
    assert calls == [[4, 1, 2], [-3]]


async def test_a_bad_item_spoils_no_other() -> None:
    line, gate = StageQueue(), Gate()

    def strict(items: list[str]) -> list[str]:
        if "bad" in items:
            raise ValueError("bad")
        return items

    running = asyncio.create_task(line.run(line.ticket(Limits()), gate.hold))
    await gate.held()
    waiting = [
        asyncio.create_task(line.run_together(line.ticket(Limits()), strict, item, limit=8))
        for item in ("good", "bad", "fine")
    ]
    await asyncio.sleep(0.01)
    gate.release()
    await running
    good, bad, fine = await asyncio.gather(*waiting, return_exceptions=True)
    assert isinstance(bad, ValueError)
    assert [s.value for s in (good, fine) if isinstance(s, Served)] == ["good", "fine"]
