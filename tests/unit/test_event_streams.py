"""Events of any stream: they are told once, in order, and add up."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundstream.enums import AnswerStatus
from groundstream.errors import EventsError
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.events import StreamEvent, StreamOpened
from groundstream.scene_events import EventKind, SceneEvent, event_from_json, event_to_json
from groundstream.types import FrameResult
from tests.told_events import (
    HEIGHT,
    LEFT_HALF,
    UPWARDS,
    WIDTH,
    Places,
    a_result,
    an_answer,
    opened,
    spoken,
)


def made_up(seed: int, num_things: int, num_frames: int, calm: float) -> list[StreamEvent]:
    """Things that wander, vanish and come back; answers that are late, denied or unknown; pauses,
    resumes, new sessions."""
    random_ = random.Random(seed)
    where = {n: (random_.uniform(0, WIDTH), random_.uniform(20, HEIGHT)) for n in range(num_things)}
    shown, evidence, time_s = set(where), dict.fromkeys(where, 0), 0.0
    stream: list[StreamEvent] = []
    for sequence in range(num_frames):
        time_s += 0.1 if random_.random() > 0.03 else random_.uniform(0.5, 20.0)
        places: Places = {}
        for n, (x, y) in where.items():
            where[n] = (
                min(max(x + random_.gauss(0, 12), 0), WIDTH),
                min(max(y + random_.gauss(0, 6), 20), HEIGHT),
            )
            if random_.random() < calm:
                shown ^= {n}
            if n in shown:
                places[n] = where[n]
        status = None
        if random_.random() < calm / 4:
            unknown = [AnswerStatus.EXPIRED, AnswerStatus.PENDING, AnswerStatus.UNSURE]
            status, places = random_.choice(unknown), {}
        answer = an_answer(places, status=status)
        stream.append(
            a_result(
                sequence,
                dataclasses.replace(
                    answer,
                    detections=tuple(
                        dataclasses.replace(d, evidence_sequence=evidence[d.track_id or 0])
                        for d in answer.detections
                    ),
                ),
                time_s=time_s,
            )
        )
        if sequence > 3 and random_.random() < 0.2:
            about = sequence - random_.randrange(4)
            named = {n: where[n] for n in where if random_.random() < 0.6}
            stream.append(spoken(about, named))
            for n in named:
                evidence[n] = about
        if random_.random() < 0.03:
            resumed = random_.random() < 0.8
            stream.append(opened(resumed=resumed))
            if resumed and random_.random() < 0.5:
                stream += [e for e in stream[-6:] if isinstance(e, FrameResult)]
    return stream


def streams() -> st.SearchStrategy[list[StreamEvent]]:
    seeds, shares = st.integers(0, 10**9), st.sampled_from([0.02, 0.1, 0.4])
    return st.builds(made_up, seeds, st.integers(1, 4), st.integers(5, 120), shares)


def a_detector(config: EventSettings) -> EventDetector:
    return EventDetector([dataclasses.replace(LEFT_HALF, dwell_s=1.0)], [UPWARDS], settings=config)


CONFIGS = st.sampled_from(
    [EventSettings(), EventSettings(appear_s=0.0, leave_s=0.2, settle_s=0.0, max_denials=1)]
)


def test_the_made_up_streams_hold_every_kind_of_event() -> None:
    told = [
        event
        for seed in range(20)
        for event in a_detector(EventSettings()).update_all(made_up(seed, 4, 120, 0.02))
    ]
    assert {event.kind for event in told} == set(EventKind)


@given(streams(), CONFIGS)
@settings(max_examples=200, deadline=None)
def test_events_are_told_once_in_order_and_add_up(
    stream: list[StreamEvent], config: EventSettings
) -> None:
    told = a_detector(config).update_all(stream)
    assert len({event.id for event in told}) == len(told)
    assert [e.sequence for e in told] == sorted(e.sequence for e in told)
    assert [e.capture_time_ns for e in told] == sorted(e.capture_time_ns for e in told)
    standing: dict[str, SceneEvent] = {}
    present: set[tuple[int, int]] = set()
    inside: set[tuple[int, int]] = set()
    counts: Counter[str] = Counter()
    for event in told:
        who = (event.session, event.track_id or 0)
        assert event.began_sequence <= event.sequence
        match event.kind:
            case EventKind.RETRACTED:
                undone = standing.pop(event.retracts)  # It was told, and is not yet retracted.
                assert (undone.track_id, undone.session) == (event.track_id, event.session)
                if undone.kind is EventKind.APPEARED:
                    present.discard(who)
                inside.discard(who)
                continue
            case EventKind.APPEARED:
                assert who not in present
                present.add(who)
            case EventKind.LEFT | EventKind.LOST:
                assert who in present
                assert event.kind is EventKind.LOST or who not in inside
                present.remove(who)
                inside.discard(who)
            case EventKind.ZONE_ENTERED:
                assert who in present
                assert who not in inside
                inside.add(who)
            case EventKind.ZONE_LEFT:
                inside.remove(who)
            case EventKind.DWELT:
                assert who in inside
            case EventKind.LINE_CROSSED:
                assert who in present
            case EventKind.COUNT_CHANGED:
                assert event.count_before == counts[event.place]
                counts[event.place] = event.count or 0
        standing[event.id] = event
    assert counts[""] == len(present)
    assert counts["left"] == len(inside)


@given(streams(), CONFIGS, st.integers(1, 30))
@settings(max_examples=60, deadline=None)
def test_pieces_give_what_the_whole_gives(
    stream: list[StreamEvent], config: EventSettings, piece: int
) -> None:
    whole = a_detector(config).update_all(stream)
    detector = a_detector(config)
    parts = [
        detector.update_all(stream[start : start + piece]) for start in range(0, len(stream), piece)
    ]
    assert [event for part in parts for event in part] == whole


@given(streams(), CONFIGS, st.integers(0, 120), st.integers(0, 20))
@settings(max_examples=100, deadline=None)
def test_a_resume_with_repeated_results_changes_nothing(
    stream: list[StreamEvent], config: EventSettings, place: int, num_repeated: int
) -> None:
    before, after = stream[:place], stream[place:]
    sessions = [n for n, e in enumerate(before) if isinstance(e, StreamOpened) and not e.resumed]
    own = before[max(sessions, default=0) :][-num_repeated or len(before) :]
    repeated = [event for event in own if isinstance(event, FrameResult)]
    broken = [*before, opened(resumed=True), *repeated, *after]
    assert a_detector(config).update_all(broken) == a_detector(config).update_all(stream)


@given(streams(), st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_results_out_of_order_are_put_in_order(stream: list[StreamEvent], seed: int) -> None:
    results = list({e.sequence: e for e in stream if isinstance(e, FrameResult)}.values())
    results = [a_result(r.sequence, *r.results) for r in results]  # A steady ten a second.
    jitter = random.Random(seed)
    shuffled = sorted(results, key=lambda r: r.sequence + jitter.uniform(0.0, 5.0))
    config = EventSettings(reorder_s=0.6)
    detectors = a_detector(config), a_detector(config)
    in_order, out_of_order = (
        detector.update_all(given_) + detector.flush()
        for detector, given_ in zip(detectors, (results, shuffled), strict=True)
    )
    assert out_of_order == in_order
    assert in_order == a_detector(EventSettings()).update_all(results)


@given(streams(), CONFIGS)
@settings(max_examples=20, deadline=None)
def test_a_line_of_json_is_the_event(stream: list[StreamEvent], config: EventSettings) -> None:
    for event in a_detector(config).update_all(stream):
        line = event_to_json(event)
        assert "\n" not in line
        assert event_from_json(line) == event


@pytest.mark.parametrize("line", ["", "[]", "{}", "null", '{"id": "a", "kind": "NONE"}', "{"])
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(EventsError, match="no event"):
        event_from_json(line)
