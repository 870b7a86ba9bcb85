"""Events from results: what is told, when, once, and what takes it back."""

from __future__ import annotations

import dataclasses
import math
import random
from collections import Counter
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from groundstream.enums import AnswerStatus, Source
from groundstream.errors import EventsError
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.events import KeyframeAnswer, QueriesAck, StreamEvent, StreamOpened
from groundstream.scene_events import (
    EventKind,
    LostReason,
    SceneEvent,
    event_from_json,
    event_to_json,
)
from groundstream.types import Detection, FrameResult, QueryResult, StageTimings, StreamPolicy
from groundstream.zones import (
    Anchor,
    Direction,
    Line,
    Unit,
    Zone,
    line_from_text,
    zone_from_text,
)

OK, ABSENT = AnswerStatus.OK, AnswerStatus.NOT_PRESENT
WIDTH, HEIGHT, FPS = 200, 100, 10
START_NS = 1_700_000_000_000_000_000
LEFT_HALF = Zone("left", ((0.0, 0.0), (0.5, 0.0), (0.5, 1.0), (0.0, 1.0)))
UPWARDS = Line("middle", ((0.5, 1.0), (0.5, 0.0)))
AT_ONCE = EventSettings(
    appear_s=0.0, leave_s=0.0, settle_s=0.0, answer_s=0.0, margin=0.0, counts=False,
    zone_counts=False,
)  # fmt: skip
QUIET = EventSettings(counts=False, zone_counts=False)

Places = dict[int, tuple[float, float]]
"""Where the bottom centre of each track is, pixels."""


def an_answer(
    places: Places,
    *,
    status: AnswerStatus | None = None,
    evidence: int = 0,
    source: Source = Source.TRACKED,
    query: str = "person",
    epoch: int = 1,
    text: str = "",
) -> QueryResult:
    """One answer, whose boxes are 10 px wide and 20 px high."""
    detections = tuple(
        Detection(
            box=(x - 5, y - 20, x + 5, y), label=query, confidence=0.9, region_index=0,
            objectness=0.9, track_id=number, source=source, evidence_sequence=evidence,
            evidence_age_ms=40.0,
        )
        for number, (x, y) in places.items()
    )  # fmt: skip
    return QueryResult(
        query_id=query,
        epoch=epoch,
        status=status or (OK if places else ABSENT),
        text=text,
        detections=detections,
        source=source,
        evidence_sequence=evidence,
        evidence_age_ms=40.0,
    )


def a_result(
    sequence: int,
    *answers: QueryResult,
    time_s: float | None = None,
    size: tuple[int, int] | None = None,
) -> FrameResult:
    """A frame; ten are a second unless a time is given."""
    capture_ns = START_NS + round((sequence / FPS if time_s is None else time_s) * 1e9)
    width, height = size or (WIDTH, HEIGHT)
    return FrameResult(
        sequence=sequence, epoch=1, capture_time_ns=capture_ns, received_time_ns=0,
        answered_time_ns=0, width=width, height=height, results=answers, cache_hit=False,
        num_proposals=0, timings=StageTimings(),
    )  # fmt: skip


def frames(tracks: Iterable[Places | AnswerStatus], first: int = 0) -> list[StreamEvent]:
    """One result per entry; a status stands for an answer that shows nothing."""
    return [
        a_result(
            first + index,
            an_answer({}, status=entry) if isinstance(entry, AnswerStatus) else an_answer(entry),
        )
        for index, entry in enumerate(tracks)
    ]


def spoken(sequence: int, places: Places, status: AnswerStatus | None = None) -> KeyframeAnswer:
    """What the model says about a key frame."""
    answer = an_answer(places, status=status, evidence=sequence, source=Source.GROUNDED)
    return KeyframeAnswer(a_result(sequence, answer), "REFRESH")


def opened(*, resumed: bool) -> StreamOpened:
    return StreamOpened("secret", resumed, 1, ("person",), StreamPolicy())


def kinds(events: Iterable[SceneEvent]) -> list[str]:
    return [event.kind.value for event in events]


def crossings(xs: Sequence[float], config: EventSettings = AT_ONCE) -> list[Direction | None]:
    """What a thing tells that stands at these x, half-way down the picture, over UPWARDS."""
    detector = EventDetector(lines=[UPWARDS], settings=config)
    told = detector.update_all(frames({1: (x, 50.0)} for x in xs))
    return [event.direction for event in told if event.kind is EventKind.LINE_CROSSED]


# ---- zones and lines ----


@pytest.mark.parametrize(
    ("points", "message"),
    [
        (((0, 0), (1, 0)), "needs at least 3"),
        (((0, 0), (1, 0), (math.nan, 1)), "not finite"),
        (((0, 0), (1, 0), (math.inf, 1)), "not finite"),
        (((0, 0), (1, 1), (1, 0), (0, 1)), "crosses itself"),
        (((0, 0), (1, 0), (0.5, 0)), "runs back on itself"),
        (((0, 0), (1e-6, 0), (0, 1e-6)), "no area"),
        (((0, 0), (1, 0), (0.5, 0), (0.5, 1)), "runs back on itself"),
        (((0, 0), (0, 0), (1, 1), (0, 1)), "same point twice"),
        (((0, 0), (300, 0), (300, 200)), "outside the picture; pixels are written px:"),
        (((0, 0), (1.2, 0), (1, 1)), "outside the picture"),
    ],
)
def test_a_zone_that_is_none_is_refused(
    points: tuple[tuple[float, float], ...], message: str
) -> None:
    with pytest.raises(EventsError, match=message):
        Zone("a", points)


def test_a_line_needs_two_different_points_and_a_name() -> None:
    with pytest.raises(EventsError, match="begins where it ends"):
        Line("a", ((0.1, 0.1), (0.1, 0.1)))
    with pytest.raises(EventsError, match="no name"):
        Line("", ((0.1, 0.1), (0.2, 0.1)))
    with pytest.raises(EventsError, match="have one name"):
        EventDetector(lines=[UPWARDS, UPWARDS])


def test_pixels_must_lie_in_the_frames_that_come() -> None:
    zone = Zone("a", ((0, 0), (300, 0), (300, 90)), Unit.PIXELS)
    detector = EventDetector([zone])
    with pytest.raises(EventsError, match="outside a picture of 200x100"):
        detector.update_all(frames([{}]))
    assert zone.in_pixels(320, 90) == zone.points


def test_zones_and_lines_are_read_from_text() -> None:
    assert zone_from_text("left=0,0;0.5,0;0.5,1;0,1") == LEFT_HALF
    assert line_from_text("door=px:10,20;30,40") == Line("door", ((10, 20), (30, 40)), Unit.PIXELS)
    for text in ("door", "door=", "door=1,2,3;4,5", "door=a,b;c,d", "door=0,0"):
        with pytest.raises(EventsError):
            line_from_text(text)
    with pytest.raises(EventsError, match="needs at least 3"):
        zone_from_text("door=0,0;1,1")


@pytest.mark.parametrize("field", ["appear_s", "leave_s", "settle_s", "margin", "unsure_leave_s"])
def test_impossible_times_are_refused(field: str) -> None:
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(EventsError, match=field):
            EventSettings(**{field: value})


# ---- lines ----


def test_the_direction_is_seen_from_the_first_point() -> None:
    assert crossings([80, 120]) == [Direction.TO_RIGHT]
    assert crossings([120, 80]) == [Direction.TO_LEFT]
    assert crossings([80, 120, 80]) == [Direction.TO_RIGHT, Direction.TO_LEFT]


def test_touching_a_line_and_going_back_is_no_crossing() -> None:
    assert crossings([80, 100, 80]) == []
    assert crossings([80, *[100] * 50, 80, 60]) == []
    assert crossings([120, 100, 120]) == []
    assert crossings([80, 100, 120]) == [Direction.TO_RIGHT]


def test_past_the_end_of_a_line_nothing_is_crossed() -> None:
    short = Line("short", ((0.5, 0.4), (0.5, 0.0)))  # Things at half the height pass below it.
    detector = EventDetector(lines=[short], settings=AT_ONCE)
    way = [(80, 50), (120, 50), (120, 20), (80, 20)]
    told = detector.update_all(frames({1: place} for place in way))
    assert [e.direction for e in told if e.kind is EventKind.LINE_CROSSED] == [Direction.TO_LEFT]


def test_a_box_that_trembles_at_the_line_tells_nothing() -> None:
    flicker = [80, 99, 101] * 20
    assert crossings(flicker, dataclasses.replace(QUIET, appear_s=0.0)) == []
    assert crossings([80, 120] * 20, dataclasses.replace(QUIET, appear_s=0.0)) == []
    # Over, back onto the line for as long as you like, and home again.
    onto = [80, 120, *[100] * 20, 80, 80]
    assert crossings(onto, dataclasses.replace(AT_ONCE, settle_s=0.3)) == []
    # Trembling as slow as you like, but within the margin of one pixel.
    slow = [80, *[99.5] * 30, *[100.5] * 30, *[99.5] * 30]
    assert crossings(slow, dataclasses.replace(AT_ONCE, settle_s=0.3, margin=0.005)) == []


def test_a_crossing_is_told_when_it_has_held_with_the_time_it_began() -> None:
    detector = EventDetector(lines=[UPWARDS], settings=dataclasses.replace(QUIET, appear_s=0.0))
    told = detector.update_all(frames({1: (x, 50.0)} for x in [80, 120, 120, 120, 120]))
    (crossed,) = [event for event in told if event.kind is EventKind.LINE_CROSSED]
    assert (crossed.began_sequence, crossed.sequence) == (1, 4)
    assert crossed.capture_time_ns - crossed.began_time_ns == 300_000_000
    assert crossed.box == (115, 30, 125, 50)
    assert crossed.place == "middle"


def test_the_centre_of_a_box_may_count_instead() -> None:
    level = Line("level", ((0.0, 0.5), (1.0, 0.5)))
    way = [{1: (50.0, 55.0)}, {1: (50.0, 65.0)}]  # Its feet are below all the time.
    for anchor, number in ((Anchor.BOTTOM_CENTRE, 0), (Anchor.CENTRE, 1)):
        config = dataclasses.replace(AT_ONCE, anchor=anchor)
        told = EventDetector(lines=[level], settings=config).update_all(frames(way))
        assert kinds(told).count("LINE_CROSSED") == number


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


# ---- zones ----


def test_a_stay_in_a_zone_is_told_from_end_to_end() -> None:
    zone = dataclasses.replace(LEFT_HALF, dwell_s=2.0)
    detector = EventDetector([zone], settings=QUIET)
    way = [*[150.0] * 10, *[50.0] * 30, *[150.0] * 10]
    told = detector.update_all(frames({1: (x, 50.0)} for x in way))
    assert kinds(told) == ["APPEARED", "ZONE_ENTERED", "DWELT", "ZONE_LEFT"]
    entered, dwelt, left = told[1:]
    assert (entered.began_sequence, entered.sequence) == (10, 13)
    assert (dwelt.began_sequence, dwelt.sequence, dwelt.dwell_s) == (10, 30, 2.0)
    assert (left.began_sequence, left.sequence) == (40, 43)


def test_who_appears_inside_enters_and_who_leaves_from_inside_leaves_the_zone() -> None:
    detector = EventDetector([LEFT_HALF], settings=EventSettings())
    told = detector.update_all(frames([*[{1: (50.0, 50.0)}] * 10, *[ABSENT] * 30]))
    counted = [(e.kind.value, e.place, e.count) for e in told if e.count is not None]
    assert kinds(e for e in told if e.count is None and e.answer is None) == [
        "APPEARED", "ZONE_ENTERED", "ZONE_LEFT", "LEFT"
    ]  # fmt: skip
    assert counted == [
        ("COUNT_CHANGED", "", 1), ("COUNT_CHANGED", "left", 1),
        ("COUNT_CHANGED", "", 0), ("COUNT_CHANGED", "left", 0),
    ]  # fmt: skip


def test_a_zone_that_comes_later_is_entered_by_what_is_there() -> None:
    detector = EventDetector(settings=AT_ONCE)
    stream = frames([{1: (50.0, 50.0)}] * 10)
    assert kinds(detector.update_all(stream[:4])) == ["APPEARED"]
    detector.change_places([LEFT_HALF], [])
    assert kinds(detector.update_all(stream[4:7])) == ["ZONE_ENTERED"]
    detector.change_places([LEFT_HALF], [UPWARDS])  # The zone is the same: its stays go on.
    assert kinds(detector.update_all(stream[7:8])) == []
    moved = Zone("left", ((0.6, 0.0), (1.0, 0.0), (1.0, 1.0), (0.6, 1.0)))
    detector.change_places([moved], [UPWARDS])
    assert kinds(detector.update_all(stream[8:])) == []
    later = frames([{1: (80.0, 50.0)}, {1: (150.0, 50.0)}, {}, {}], first=10)
    assert kinds(detector.update_all(later)) == [
        "ZONE_ENTERED", "LINE_CROSSED", "ZONE_LEFT", "LEFT", "ANSWER_CHANGED",
    ]  # fmt: skip


def test_a_zone_that_is_gone_is_counted_no_more() -> None:
    detector = EventDetector([LEFT_HALF], settings=dataclasses.replace(AT_ONCE, zone_counts=True))
    stream = frames([{1: (50.0, 50.0)}] * 6)
    told = detector.update_all(stream[:3])
    assert [(event.place, event.count) for event in told if event.count] == [("left", 1)]
    detector.change_places([], [])
    assert detector.update_all(stream[3:5]) == []
    detector.change_places([LEFT_HALF], [])
    told = detector.update_all(stream[5:])
    assert [(event.count_before, event.count) for event in told if event.count] == [(0, 1)]
    with pytest.raises(EventsError, match="one name"):
        detector.change_places([LEFT_HALF, LEFT_HALF], [])


def test_a_thing_cut_off_by_the_picture_is_inside_a_zone_that_reaches_its_border() -> None:
    detector = EventDetector([LEFT_HALF], settings=AT_ONCE)
    assert kinds(detector.update_all(frames([{1: (50.0, HEIGHT)}]))) == ["APPEARED", "ZONE_ENTERED"]


def test_shares_hold_when_the_frames_change_their_size() -> None:
    detector = EventDetector([LEFT_HALF], [UPWARDS], settings=AT_ONCE)
    detector.update(a_result(0, an_answer({1: (80.0, 50.0)})))
    twice = (2 * WIDTH, 2 * HEIGHT)
    assert detector.update(a_result(1, an_answer({1: (160.0, 100.0)}), size=twice)) == []
    told = detector.update(a_result(2, an_answer({1: (240.0, 100.0)}), size=twice))
    assert kinds(told) == ["ZONE_LEFT", "LINE_CROSSED"]


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


# ---- any stream ----


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
