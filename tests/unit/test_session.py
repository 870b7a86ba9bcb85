"""Standing queries, epochs and books of one stream."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import InvalidQuery
from agent.prompts import Task
from agent.streaming.session import Books, Outcome, Session

DOG, CAT = Task.detect("dog"), Task.detect("cat")


def new_session(max_queries: int = 3) -> Session[int]:
    """A session whose frames are numbers."""
    return Session(max_queries=max_queries)


def test_every_change_is_an_epoch() -> None:
    session = new_session()
    assert session.epoch == 0
    assert session.set_queries([("a", DOG)]) == 1
    assert session.put_query("b", CAT) == 2
    assert session.remove_query("a") == 3
    assert session.query_ids == ("b",)


def test_replacing_keeps_the_order() -> None:
    session = new_session()
    session.set_queries([("a", DOG), ("b", DOG)])
    session.put_query("a", CAT)
    assert session.query_ids == ("a", "b")


async def test_work_carries_the_queries_that_stood_when_it_was_taken() -> None:
    session = new_session()
    session.set_queries([("a", DOG), ("b", CAT)])
    session.offer(1)
    work = await session.take()
    assert work is not None
    session.put_query("b", DOG)
    assert work.epoch == 1
    assert [query.task for query in work.queries] == [DOG, CAT]
    # "a" was not touched, so its answer may go out; "b" was replaced meanwhile.
    assert [session.stands(query) for query in work.queries] == [True, False]


async def test_a_query_put_again_with_the_same_words_is_a_new_query() -> None:
    session = new_session()
    session.put_query("a", DOG)
    session.offer(1)
    work = await session.take()
    assert work is not None
    session.put_query("a", DOG)
    assert not session.stands(work.queries[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "a"], "must differ"),
        (["a", "b", "c", "d"], "limit is 3"),
    ],
)
def test_a_bad_set_changes_nothing(names: list[str], message: str) -> None:
    session = new_session()
    session.set_queries([("old", DOG)])
    with pytest.raises(InvalidQuery, match=message):
        session.set_queries([(name, DOG) for name in names])
    assert session.epoch == 1
    assert session.query_ids == ("old",)


def test_too_many_or_unknown_queries_change_nothing() -> None:
    session = new_session(max_queries=1)
    session.put_query("a", DOG)
    with pytest.raises(InvalidQuery, match="limit is 1"):
        session.put_query("b", DOG)
    with pytest.raises(InvalidQuery, match=r"'b'.*standing: 'a'"):
        session.remove_query("b")
    assert session.epoch == 1


async def test_books_follow_a_frame() -> None:
    session = new_session()
    session.offer(1)
    assert session.books == Books(received=1, in_flight=1)
    session.offer(2)
    assert session.books == Books(received=2, superseded=1, in_flight=1)
    assert await session.take() is not None
    session.offer(3)
    assert session.books == Books(received=3, superseded=1, in_flight=2)
    session.finish(Outcome.ANSWERED)
    session.reject()
    assert session.books == Books(received=4, answered=1, superseded=1, rejected=1, in_flight=1)


async def test_after_the_end_frames_are_neither_taken_nor_counted() -> None:
    session = new_session()
    session.offer(1)
    session.end()
    session.offer(2)
    assert session.books.received == 1
    assert await session.take() is not None
    assert await session.take() is None


def test_finishing_what_was_not_taken_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        new_session().finish(Outcome.ANSWERED)


@given(st.lists(st.sampled_from(["offer", "reject", "take", "finish", "change"]), max_size=60))
def test_books_balance_after_any_history(steps: list[str]) -> None:
    async def run() -> None:
        session = new_session()
        outcomes = list(Outcome)
        num_taken = 0
        for index, step in enumerate(steps):
            if step == "offer":
                session.offer(index)
            elif step == "reject":
                session.reject()
            elif step == "take" and session.books.in_flight > num_taken:
                assert await session.take() is not None
                num_taken += 1
            elif step == "finish" and num_taken:
                session.finish(outcomes[index % len(outcomes)])
                num_taken -= 1
            elif step == "change":
                session.put_query("a", DOG)
            assert session.books.balanced
        assert session.books.in_flight <= num_taken + 1

    asyncio.run(run())
