"""Standing queries, epochs and books of one stream."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.prompts import Task
from agent.streaming.policy import DropPolicy, Priority, StreamPolicy
from agent.streaming.session import Books, Outcome, Seen, Session, Work
from groundstream.errors import InvalidQuery, InvalidRequest, Overloaded

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


def test_queries_are_counted_before_anything_else() -> None:
    session = new_session()
    with pytest.raises(InvalidQuery, match="1000 queries, the limit is 3") as raised:
        session.set_queries([("the same name", DOG)] * 1000)
    assert len(str(raised.value)) < 100
    session.check_count(3)
    with pytest.raises(InvalidQuery, match="the limit is 3"):
        session.check_count(4)


def test_replacing_keeps_the_order() -> None:
    session = new_session()
    session.set_queries([("a", DOG), ("b", DOG)])
    session.put_query("a", CAT)
    assert session.query_ids == ("a", "b")


async def test_work_carries_the_queries_that_stood_when_it_was_taken() -> None:
    session = new_session()
    session.set_queries([("a", DOG), ("b", CAT)])
    session.offer(1, 1)
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
    session.offer(1, 1)
    work = await session.take()
    assert work is not None
    session.put_query("a", DOG)
    assert not session.stands(work.queries[0])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a", "b", "a"], "2 queries are called 'a'"),
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
    session.offer(1, 1)
    assert session.books == Books(received=1, in_flight=1)
    session.offer(2, 2)
    assert session.books == Books(received=2, superseded=1, in_flight=1)
    assert await session.take() is not None
    session.offer(3, 3)
    assert session.books == Books(received=3, superseded=1, in_flight=2)
    session.finish(Outcome.ANSWERED)
    session.reject()
    assert session.books == Books(received=4, answered=1, superseded=1, rejected=1, in_flight=1)


async def test_after_the_end_frames_are_neither_taken_nor_counted() -> None:
    session = new_session()
    session.offer(1, 1)
    session.end()
    session.offer(2, 2)
    assert session.books.received == 1
    assert await session.take() is not None
    assert await session.take() is None


def test_finishing_what_was_not_taken_is_a_bug() -> None:
    with pytest.raises(AssertionError):
        new_session().finish(Outcome.ANSWERED)


# What may happen to a session, as hypothesis writes it down.
STEPS = st.one_of(
    st.tuples(st.just("offer"), st.integers(0, 3), st.sampled_from(Priority)),
    st.tuples(
        st.sampled_from(
            [
                "reject",
                "take",
                "deliver",
                "finish",
                "put",
                "remove",
                "pause",
                "resume",
                "acknowledge",
            ]
        )
    ),
    st.tuples(st.just("policy"), st.sampled_from(DropPolicy), st.integers(1, 3), st.integers(0, 3)),
)


class History:
    """A session driven step by step, with what a client would see of it."""

    def __init__(self) -> None:
        self.session: Session[int] = Session(max_queries=4)
        self.sequence = 0
        self.working: list[Work[int]] = []
        self.delivered: list[int] = []

    def apply(self, number: int, step: tuple[object, ...]) -> None:
        """One step; those that make no sense now do nothing."""
        session = self.session
        match step:
            case ("offer", int(ahead), Priority() as priority):
                self.sequence += ahead  # Zero repeats a number, which is refused.
                with contextlib.suppress(InvalidRequest, Overloaded):
                    session.offer(self.sequence, self.sequence, priority)
            case ("reject",):
                session.reject()
            case ("take",):
                if not session.paused and (work := session.take_now()) is not None:
                    self.working.append(work)
            case ("deliver",) if self.working:
                sequence = self.working[-1].item
                if self.delivered and sequence <= self.delivered[-1]:
                    with pytest.raises(AssertionError):
                        session.deliver(sequence)  # Neither twice nor out of order.
                else:
                    session.deliver(sequence)
                    self.delivered.append(sequence)
            case ("finish",) if self.working:
                self.working.pop()
                session.finish(list(Outcome)[number % len(Outcome)])
            case ("put",):
                session.put_query(f"q{number % 3}", DOG)
            case ("remove",) if session.query_ids:
                session.remove_query(session.query_ids[0])
            case ("pause",):
                session.pause()
            case ("resume",):
                session.resume()
            case ("acknowledge",) if self.delivered:
                session.acknowledge(self.delivered[-1])
            case ("policy", DropPolicy() as drop, int(window), int(acks)):
                policy = StreamPolicy(drop=drop, window=window, ack_window=acks or None)
                session.set_policy(policy)


@given(st.lists(STEPS, max_size=80))
def test_books_balance_and_results_are_in_order_after_any_history(
    steps: list[tuple[object, ...]],
) -> None:
    history = History()
    for number, step in enumerate(steps):
        history.apply(number, step)
        assert history.session.books.balanced
        assert history.session.books.in_flight >= len(history.working)
    assert history.delivered == sorted(set(history.delivered))


@given(st.lists(STEPS, max_size=80))
def test_every_answer_belongs_to_exactly_one_epoch_of_one_query(
    steps: list[tuple[object, ...]],
) -> None:
    history = History()
    for number, step in enumerate(steps):
        before = {query.id: query for query in history.session.queries}
        history.apply(number, step)
        changed = {
            name
            for name in before.keys() | set(history.session.query_ids)
            if before.get(name) not in history.session.queries or name not in before
        }
        for work in history.working:
            for query in work.queries:
                assert query.epoch <= work.epoch
                # One that was replaced or removed, even by its like, never stands again.
                assert not (query.id in changed and history.session.stands(query))


@given(
    st.lists(STEPS, max_size=60),
    st.integers(0, 40),
    st.integers(0, 40),
    st.none() | st.integers(0, 100),
)
def test_the_books_close_over_a_crash(
    steps: list[tuple[object, ...]], more_sent: int, more_results: int, last_result: int | None
) -> None:
    history = History()
    for number, step in enumerate(steps):
        history.apply(number, step)
    snapshot, num_results = history.session.books, history.session.num_results
    after: Session[int] = Session(max_queries=4)
    after.restore(history.session.queries, history.session.epoch, snapshot, num_results)
    num_sent = snapshot.received + more_sent
    more_results = min(more_results, more_sent)
    last_sent = num_sent if num_sent else None
    if last_result is not None:
        last_result = min(last_result, num_sent) if num_sent else None
    gap = after.catch_up(Seen(num_sent, num_results + more_results, last_result, last_sent))
    assert after.books.balanced
    assert after.books.received == num_sent
    assert after.books.in_flight == 0
    lost = 0 if gap is None else gap.num_frames
    if gap is not None:
        assert 0 <= gap.first_sequence <= gap.last_sequence == last_sent
        assert gap.last_sequence - gap.first_sequence + 1 >= lost
    assert after.books.failed - snapshot.failed == lost
    assert lost <= snapshot.in_flight + more_sent
    assert after.queries == history.session.queries
    # Another replica, or this one, has counted all that before.
    assert after.own_books == Books()


def test_sequence_numbers_must_increase() -> None:
    session = new_session()
    session.offer(5, 5)
    for sequence in (5, 4):
        with pytest.raises(InvalidRequest, match="must increase"):
            session.offer(sequence, sequence)
    assert session.books == Books(received=3, rejected=2, in_flight=1)


async def test_a_closed_ack_window_holds_frames_back() -> None:
    session = new_session()
    session.set_policy(StreamPolicy(ack_window=1))
    session.offer(1, 1)
    work = await session.take()
    assert work is not None
    session.deliver(1)
    session.finish(Outcome.TRACKED_ONLY)
    for sequence in (2, 3, 4):
        session.offer(sequence, sequence)
    waiting = asyncio.ensure_future(session.take())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    assert session.books.superseded == 2  # Memory does not grow meanwhile.
    session.acknowledge(1)
    work = await waiting
    assert work is not None
    assert work.item == 4


async def test_a_paused_stream_takes_nothing_and_ends_all_the_same() -> None:
    session = new_session()
    session.offer(1, 1)
    session.pause()
    session.offer(2, 2)
    assert session.books == Books(received=2, superseded=2)
    waiting = asyncio.ensure_future(session.take())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    session.resume()
    session.offer(3, 3)
    work = await waiting
    assert work is not None
    assert work.item == 3
    session.pause()
    session.end()
    assert await session.take() is None
