"""Which frames wait and which go, under each drop policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.streaming.inbox import Inbox
from agent.streaming.policy import DropPolicy, Priority
from groundstream.errors import Overloaded

LOW, NORMAL, HIGH = Priority.LOW, Priority.NORMAL, Priority.HIGH


def test_the_newest_wins() -> None:
    inbox: Inbox[int] = Inbox()
    assert inbox.put(1) == []
    assert inbox.put(2) == [1]
    assert (inbox.take(), inbox.take()) == (2, None)


def test_the_oldest_win() -> None:
    inbox: Inbox[int] = Inbox(DropPolicy.OLDEST_WINS, window=2)
    assert [inbox.put(item) for item in (1, 2, 3)] == [[], [], [3]]
    assert (inbox.take(), inbox.take(), inbox.take()) == (1, 2, None)


def test_lossless_refuses_rather_than_drops() -> None:
    inbox: Inbox[int] = Inbox(DropPolicy.LOSSLESS, window=1)
    inbox.put(1)
    with pytest.raises(Overloaded, match="1 frames of 0 bytes are waiting"):
        inbox.put(2)
    assert inbox.take() == 1
    assert inbox.put(3) == []


@pytest.mark.parametrize(
    ("arrivals", "gone", "left"),
    [
        ([(1, HIGH), (2, NORMAL)], [], [1, 2]),  # a HIGH frame waits beside the newest
        ([(1, HIGH), (2, NORMAL), (3, NORMAL)], [2], [1, 3]),
        ([(1, HIGH), (2, HIGH)], [1], [2]),  # only another HIGH one takes its place
        ([(1, NORMAL), (2, HIGH)], [1], [2]),
        ([(1, NORMAL), (2, LOW)], [2], [1]),  # a LOW frame makes nothing better go
        ([(1, LOW), (2, LOW)], [1], [2]),
        ([(1, LOW), (2, NORMAL)], [1], [2]),
    ],
)
def test_priorities_among_the_latest(
    arrivals: list[tuple[int, Priority]], gone: list[int], left: list[int]
) -> None:
    inbox: Inbox[int] = Inbox()
    assert [lost for item, priority in arrivals for lost in inbox.put(item, priority)] == gone
    assert inbox.clear() == left


@given(
    drop=st.sampled_from(DropPolicy),
    window=st.integers(1, 4),
    steps=st.lists(
        st.one_of(
            st.sampled_from(Priority),
            st.just("take"),
            st.tuples(st.sampled_from(DropPolicy), st.integers(1, 4)),
        ),
        max_size=50,
    ),
)
def test_nothing_is_lost_unsaid_and_order_is_kept(
    drop: DropPolicy, window: int, steps: list[Priority | str | tuple[DropPolicy, int]]
) -> None:
    inbox: Inbox[int] = Inbox(drop, window)
    taken, gone, put = [], [], []
    for number, step in enumerate(steps):
        if isinstance(step, Priority):
            try:
                gone += inbox.put(number, step)
                put.append(number)
            except Overloaded:
                assert drop is DropPolicy.LOSSLESS
        elif isinstance(step, tuple):
            drop, window = step
            gone += inbox.configure(drop, window)
        elif (item := inbox.take()) is not None:
            taken.append(item)
        bound = 2 if drop is DropPolicy.LATEST_WINS else window
        assert len(inbox) <= bound
    taken_and_left = taken + inbox.clear()
    assert taken_and_left == sorted(taken_and_left)
    assert sorted(taken_and_left + gone) == put
