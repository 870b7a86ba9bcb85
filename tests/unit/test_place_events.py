"""Events of zones and lines: who enters, stays, leaves and crosses, and which places are none."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pytest

from groundstream.errors import EventsError
from groundstream.event_detector import EventDetector, EventSettings
from groundstream.scene_events import EventKind
from groundstream.zones import Anchor, Direction, Line, Unit, Zone, line_from_text, zone_from_text
from tests.told_events import (
    ABSENT,
    AT_ONCE,
    HEIGHT,
    LEFT_HALF,
    QUIET,
    UPWARDS,
    WIDTH,
    a_result,
    an_answer,
    frames,
    kinds,
)


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
