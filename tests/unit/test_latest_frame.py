"""The one-slot inbox."""

from __future__ import annotations

import asyncio

import pytest

from agent.streaming.latest_frame import LatestFrame


async def test_the_newest_item_wins_and_the_others_are_counted() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    assert [inbox.put(item) for item in (1, 2, 3)] == [None, 1, 2]
    assert inbox.num_superseded == 2
    assert len(inbox) == 1
    assert await inbox.take() == 3
    assert len(inbox) == 0


async def test_take_waits_for_an_item() -> None:
    inbox: LatestFrame[str] = LatestFrame()
    taking = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    assert not taking.done()
    inbox.put("late")
    assert await taking == "late"


async def test_an_item_is_taken_once() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    inbox.put(1)
    assert await inbox.take() == 1
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(inbox.take(), 0.02)


async def test_after_closing_the_unread_item_is_still_taken_then_none() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    inbox.put(7)
    inbox.close()
    assert await inbox.take() == 7
    assert await inbox.take() is None
    assert await inbox.take() is None


async def test_closing_wakes_who_waits() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    taking = asyncio.create_task(inbox.take())
    await asyncio.sleep(0)
    inbox.close()
    assert await taking is None


async def test_a_closed_inbox_takes_nothing() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    inbox.close()
    with pytest.raises(RuntimeError, match="closed"):
        inbox.put(1)


async def test_falsy_items_are_items() -> None:
    inbox: LatestFrame[int] = LatestFrame()
    inbox.put(0)
    assert len(inbox) == 1
    assert await inbox.take() == 0
