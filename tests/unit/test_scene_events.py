"""Events of things and answers: what is told, when, and what takes it back."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import pytest

from groundstream.enums import AnswerStatus, Source
from groundstream.errors import EventsError
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.events import QueriesAck, StreamEvent
from groundstream.scene_events import EventKind, LostReason
from groundstream.types import QueryResult
from tests.told_events import (
    ABSENT,
    AT_ONCE,
    FPS,
    LEFT_HALF,
    OK,
    QUIET,
    UPWARDS,
    Places,
    a_result,
    an_answer,
    frames,
    kinds,
    opened,
    spoken,
)

# ---- appearing and leaving ----


def test_a_thing_appears_and_leaves_when_that_has_held() -> None:
    seen, gone = [{1: (50.0, 50.0)}] * 10, [ABSENT] * 30
    told = EventDetector(settings=QUIET).update_all(frames([*seen, *gone]))
    appeared, left = [e for e in told if e.kind in (EventKind.APPEARED, EventKind.LEFT)]
    assert (appeared.kind, appeared.began_sequence, appeared.sequence) == (EventKind.APPEARED, 0, 5)
    assert (left.kind, left.began_sequence, left.sequence) == (EventKind.LEFT, 9, 30)
    assert left.evidence is not None
    assert left.evidence.age_ms == 40.0


def test_flickers_are_not_told() -> None:
    seen: Places = {1: (50.0, 50.0)}
    assert EventDetector(settings=QUIET).update_all(frames([seen, {}] * 40)) == []
    told = EventDetector(settings=QUIET).update_all(frames([*[seen] * 10, *[{}, {}, seen] * 30]))
    assert "LEFT" not in kinds(told)


@pytest.mark.parametrize("status", [AnswerStatus.EXPIRED, AnswerStatus.PENDING])
def test_unknown_is_not_absence(status: AnswerStatus) -> None:
    seen: Places = {1: (50.0, 50.0)}
    told = EventDetector(settings=QUIET).update_all(frames([*[seen] * 10, *[status] * 600, seen]))
    assert kinds(told) == ["APPEARED"]


def test_pauses_without_results_are_not_absence() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(frames([{1: (50.0, 50.0)}] * 10))
    assert detector.update(a_result(10, an_answer({}), time_s=1.0)) == []
    assert detector.update(a_result(11, an_answer({}), time_s=60.0)) == []  # One second counts.
    told = [a_result(n, an_answer({}), time_s=60.0 + (n - 11) / FPS) for n in range(12, 30)]
    assert kinds(detector.update_all(told)) == ["LEFT"]


def test_what_is_unsure_for_long_is_lost_and_not_left() -> None:
    seen: Places = {1: (50.0, 50.0)}
    entries = [*[seen] * 10, *[AnswerStatus.UNSURE] * 120]
    told = EventDetector(settings=QUIET).update_all(frames(entries))
    assert kinds(told) == ["APPEARED", "LOST"]
    assert told[-1].reason is LostReason.UNSURE
    for_ever = dataclasses.replace(QUIET, unsure_leave_s=None)
    assert kinds(EventDetector(settings=for_ever).update_all(frames(entries))) == ["APPEARED"]


def test_things_without_a_number_are_not_told() -> None:
    answer = an_answer({1: (50.0, 50.0)})
    nameless = dataclasses.replace(
        answer, detections=(dataclasses.replace(answer.detections[0], track_id=None),)
    )
    detector = EventDetector(settings=AT_ONCE)
    assert detector.update_all([a_result(n, nameless) for n in range(30)]) == []


def test_frames_without_capture_times_are_refused() -> None:
    detector = EventDetector()
    blind = [dataclasses.replace(a_result(n), capture_time_ns=0) for n in range(2)]
    detector.update(blind[0])
    with pytest.raises(EventsError, match="capture times"):
        detector.update(blind[1])


# ---- answers ----


def test_a_changed_answer_is_told_and_other_region_names_are_not() -> None:
    def said(text: str, status: AnswerStatus = OK) -> QueryResult:
        return an_answer({}, status=status, text=text, query="what?")

    answers = [
        *[said("a red car")] * 12, *[said("a  red car")] * 12, said("a blue car"),
        *[said("a red car")] * 12, *[said("", AnswerStatus.UNSURE)] * 30, *[said("a van")] * 12,
    ]  # fmt: skip
    told = EventDetector().update_all([a_result(n, a) for n, a in enumerate(answers)])
    (change,) = told
    assert change.kind is EventKind.ANSWER_CHANGED
    assert change.began_sequence == 67
    assert change.answer_before is not None
    assert change.answer_before.text == "a red car"
    assert change.answer is not None
    assert change.answer.text == "a van"
    regions = [said(f"<ground>car</ground><objects><region{n}></objects>") for n in range(40)]
    assert EventDetector().update_all([a_result(n, a) for n, a in enumerate(regions)]) == []


def test_an_answer_that_is_replaced_takes_its_change_back() -> None:
    detector = EventDetector(settings=AT_ONCE)
    for n in range(3):
        detector.update(a_result(n, an_answer({}, evidence=n, source=Source.GROUNDED)))
    seen: Places = {1: (50.0, 50.0)}
    told = detector.update(a_result(3, an_answer(seen, evidence=3, source=Source.GROUNDED)))
    assert kinds(told) == ["APPEARED", "ANSWER_CHANGED"]
    taken = detector.update(a_result(3, an_answer({}, evidence=3, source=Source.GROUNDED)))
    assert kinds(taken) == ["RETRACTED", "RETRACTED"]
    assert {event.retracts for event in taken} == {event.id for event in told}


# ---- retraction ----


def followed(sequences: Iterable[int], evidence: int) -> list[StreamEvent]:
    """A thing that the tracker shows in these frames, resting on one key frame."""
    return [a_result(n, an_answer({7: (50.0, 50.0)}, evidence=evidence)) for n in sequences]


def test_what_the_model_denies_twice_was_never_there() -> None:
    detector = EventDetector([LEFT_HALF], settings=EventSettings())
    detector.update(a_result(0, an_answer({}, status=AnswerStatus.PENDING)))
    detector.update(spoken(0, {7: (50.0, 50.0)}))
    told = detector.update_all(followed(range(1, 20), evidence=0))
    of_track = [event for event in told if event.track_id == 7]
    assert kinds(of_track) == ["APPEARED", "ZONE_ENTERED"]
    assert detector.update(spoken(10, {})) == []
    taken = detector.update(spoken(15, {}))
    assert [e.retracts for e in taken if e.kind is EventKind.RETRACTED] == [
        event.id for event in reversed(of_track)
    ]
    assert [e.count for e in taken if e.kind is EventKind.COUNT_CHANGED] == [0, 0]
    assert taken[0].evidence is not None
    assert taken[0].evidence.sequence == 15
    # The tracker may go on showing it for a while; that is no news. A later key frame is.
    again = detector.update_all(followed(range(20, 40), evidence=0))
    assert [event for event in again if event.track_id == 7] == []
    later = detector.update_all(followed(range(40, 60), evidence=38))
    assert "APPEARED" in kinds(later)


def test_a_retraction_comes_also_when_the_thing_has_left() -> None:
    detector = EventDetector(settings=QUIET)
    told = detector.update_all(followed(range(10), evidence=0))
    told += detector.update_all(frames([ABSENT] * 30, first=10))
    of_track = [event for event in told if event.track_id == 7]
    assert kinds(of_track) == ["APPEARED", "LEFT"]
    taken = detector.update_all([spoken(5, {}), spoken(8, {})])
    assert [event.retracts for event in taken] == [event.id for event in reversed(of_track)]
    assert detector.update_all([spoken(9, {})]) == []


def test_what_two_key_frames_named_is_not_denied_away() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(followed(range(10), evidence=0))
    detector.update(spoken(9, {7: (50.0, 50.0)}))
    detector.update_all(followed(range(10, 40), evidence=9))
    assert detector.update_all([spoken(n, {}) for n in (15, 20, 25, 30)]) == []


def test_a_key_frame_that_names_it_again_counts_at_once() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(followed(range(20), evidence=0))
    assert detector.update(spoken(5, {7: (50.0, 50.0)})) == []
    assert detector.update_all([spoken(n, {}) for n in (8, 11, 14)]) == []


def test_an_unsure_answer_denies_nothing() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(followed(range(40), evidence=0))
    late = [spoken(n, {}, AnswerStatus.UNSURE) for n in (10, 15, 20, 25)]
    assert detector.update_all(late) == []


# ---- sessions ----


def test_after_a_resume_nothing_is_told_twice() -> None:
    whole = [{1: (float(x), 50.0)} for x in range(60, 140, 2)]
    unbroken = EventDetector([LEFT_HALF], [UPWARDS]).update_all(frames(whole))
    detector = EventDetector([LEFT_HALF], [UPWARDS])
    told = detector.update_all(frames(whole[:20]))
    told += detector.update(opened(resumed=True))
    told += detector.update_all(frames(whole[15:20], first=15))  # Delivered once more.
    told += detector.update_all(frames(whole[20:], first=20))
    assert told == unbroken
    assert "LINE_CROSSED" in kinds(told)


def test_a_new_session_loses_what_was_there_and_says_so() -> None:
    detector = EventDetector(settings=EventSettings())
    detector.update(opened(resumed=False))
    detector.update_all(frames([{1: (50.0, 50.0)}] * 10))
    told = detector.update(opened(resumed=False))
    assert kinds(told) == ["LOST", "COUNT_CHANGED"]
    assert told[0].reason is LostReason.SESSION_ENDED
    assert told[1].count == 0
    again = detector.update_all(frames([{1: (150.0, 50.0)}] * 10, first=10))
    assert [(e.kind.value, e.session) for e in again if e.track_id] == [("APPEARED", 1)]


def test_a_query_that_is_removed_leaves_nothing_behind() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(frames([{1: (50.0, 50.0)}] * 10))
    told = detector.update(QueriesAck(2, 2, ("car",)))
    assert [(e.kind, e.reason) for e in told] == [(EventKind.LOST, LostReason.QUESTION_CHANGED)]


def test_a_query_that_is_asked_anew_keeps_its_things() -> None:
    detector = EventDetector(settings=QUIET)
    detector.update_all(frames([{1: (50.0, 50.0)}] * 10))
    anew = [a_result(n, an_answer({1: (50.0, 50.0)}, epoch=2)) for n in range(10, 30)]
    assert detector.update_all(anew) == []
    detector = EventDetector(settings=QUIET)
    detector.update_all(frames([{1: (50.0, 50.0)}] * 10))
    gone = [a_result(n, an_answer({}, epoch=2)) for n in range(10, 40)]
    told = [event for event in detector.update_all(gone) if event.track_id]
    assert [event.reason for event in told] == [LostReason.QUESTION_CHANGED]
