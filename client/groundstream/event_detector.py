"""Events from the results of a stream: who came and went, over which line, into which zone.

One object per stream, owned by its caller: no I/O, no threads and no clock but the stream's own
capture times, so that the same results give the same events, in one go or piece by piece. What the
events mean is in `docs/events.md`.
"""

from __future__ import annotations

import heapq
import math
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from groundstream.enums import AnswerStatus, Source
from groundstream.errors import EventsError
from groundstream.events import KeyframeAnswer, QueriesAck, StreamEvent, StreamOpened
from groundstream.scene_events import (
    EventEvidence,
    EventKind,
    GivenAnswer,
    LostReason,
    SceneEvent,
    event_id,
)
from groundstream.types import Box, Detection, FrameResult, QueryResult
from groundstream.zones import (
    Anchor,
    Crossing,
    Direction,
    Line,
    Point,
    Zone,
    distance_to_zone,
    is_inside,
)

_KNOWN = (AnswerStatus.OK, AnswerStatus.NOT_PRESENT)
"""What these do not show is not there; any other answer leaves it open."""
_UNSURE = (AnswerStatus.UNSURE, AnswerStatus.TRUNCATED)
_MAX_FRAMES = 2048
_MAX_SPOKEN = 512
_MAX_DEPARTED = 512
_MAX_WITHDRAWN = 1024
"""What is remembered per stream and per query, so that a stream may go on for ever."""
_SURE = 8
"""A thing that more key frames than this have named is not withdrawn any more."""
_MARKUP = re.compile(r"<[^<>]*>")
_NS = 1_000_000_000
V = TypeVar("V")


@dataclass(frozen=True)
class EventSettings:
    """How long something must hold before it is told, and what counts as being somewhere.

    Raises:
        EventsError: a time, the margin or a number is impossible.
    """

    appear_s: float = 0.5
    """A thing has appeared when all answers have shown it for so long."""
    leave_s: float = 2.0
    """It has left when answers that know have not shown it for so long."""
    settle_s: float = 0.3
    """It is in or out of a zone, or over a line, when it has been seen there for so long."""
    answer_s: float = 1.0
    """An answer has changed when the new one has been given for so long."""
    unsure_leave_s: float | None = 10.0
    """A thing that answers which are not sure have not shown for so long is LOST; None: never."""
    max_gap_s: float = 1.0
    """Of a pause between two answers, at most so much counts as time of not being there."""
    margin: float = 0.005
    """How far past a line, or outside the border of a zone that it was in, a thing must be: share
    of the picture's longer side."""
    anchor: Anchor = Anchor.BOTTOM_CENTRE
    """The point of a box that says where the thing is."""
    max_denials: int | None = 2
    """So many key frames in a row that do not name a thing which the tracker still showed in them
    withdraw it, if only one key frame ever named it; None: never."""
    reorder_s: float = 0.0
    """Hold results so long, in capture time, to put them in the order of their frames."""
    counts: bool = True
    """Tell how many things a query has, in all."""
    zone_counts: bool = True
    """And in each zone."""

    def __post_init__(self) -> None:
        times = {
            "appear_s": self.appear_s, "leave_s": self.leave_s, "settle_s": self.settle_s,
            "answer_s": self.answer_s, "unsure_leave_s": self.unsure_leave_s or 0.0,
            "max_gap_s": self.max_gap_s, "reorder_s": self.reorder_s, "margin": self.margin,
        }  # fmt: skip
        for name, value in times.items():
            if not (math.isfinite(value) and value >= 0.0):
                raise EventsError(f"{name} is {value} and must be at least 0")
        if self.margin >= 0.5:
            raise EventsError(f"margin is {self.margin} and must be less than half the picture")
        if self.max_denials is not None and self.max_denials < 1:
            raise EventsError(f"max_denials is {self.max_denials} and must be at least 1")


@dataclass(frozen=True)
class _Frame:
    """The frame that is being looked at."""

    sequence: int
    capture_time_ns: int
    clock_ns: int
    """Capture time that has passed since the first frame; never goes back."""
    width: int
    height: int


@dataclass(frozen=True)
class _Sighting:
    """A thing in a frame."""

    frame: _Frame
    box: Box
    evidence_sequence: int
    evidence_age_ms: float


@dataclass
class _Stay:
    """One thing and one zone."""

    is_inside: bool = False
    is_told: bool = False
    has_dwelt: bool = False
    since: _Sighting | None = None
    """First of this side."""
    turning: _Sighting | None = None
    """First of the other side, while it has not been there for long enough."""


@dataclass
class _Way:
    """One thing and one line."""

    crossing: Crossing = field(default_factory=Crossing)
    pending: list[tuple[Direction, _Sighting]] = field(default_factory=list)


@dataclass
class _Track:
    """One thing as the answer to one query."""

    id: int
    first: _Sighting
    last: _Sighting
    has_appeared: bool = False
    is_absent: bool = False
    """The last answer was one that knows, and did not show it."""
    absent_ns: int = 0
    unsure_ns: int = 0
    is_of_old_question: bool = False
    """Seen before the query was asked anew, and not since."""
    named: dict[int, None] = field(default_factory=dict)
    """Key frames that named it."""
    denials: int = 0
    stays: dict[str, _Stay] = field(default_factory=dict)
    ways: dict[str, _Way] = field(default_factory=dict)
    told: list[SceneEvent] = field(default_factory=list)
    """What falls if the thing was never there."""

    @property
    def is_sure(self) -> bool:
        return len(self.named) > _SURE

    def name(self, sequence: int) -> None:
        if not self.is_sure:
            self.named[sequence] = None
        if self.is_sure:
            self.told.clear()


@dataclass(frozen=True)
class _Spoken:
    """What the language model said about a key frame."""

    named: frozenset[int]
    answer: GivenAnswer


@dataclass
class _Query:
    """One query."""

    name: str
    epoch: int
    tracks: dict[int, _Track] = field(default_factory=dict)
    departed: OrderedDict[int, _Track] = field(default_factory=OrderedDict)
    withdrawn: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Things that were never there, and the key frame that said so; only later ones count."""
    spoken: OrderedDict[int, _Spoken] = field(default_factory=OrderedDict)
    counts: dict[str, int] = field(default_factory=dict)
    """As told, by zone; "" is the whole picture."""
    evidence: tuple[int, float] | None = None
    """Key frame and age in milliseconds of the newest answer."""
    clock_ns: int = 0
    """Of the newest answer."""
    answer: GivenAnswer | None = None
    turning: tuple[GivenAnswer, _Frame] | None = None
    """Another answer, while it has not been given for long enough, and its first frame."""
    change: SceneEvent | None = None
    """The newest change of the answer that was told and not retracted."""


class EventDetector:
    """Makes events from what a stream says; give it everything, in the order in which it comes.

    Raises:
        EventsError: two zones, or two lines, have one name.
    """

    def __init__(
        self,
        zones: Sequence[Zone] = (),
        lines: Sequence[Line] = (),
        *,
        settings: EventSettings | None = None,
        stream: str = "",
    ) -> None:
        """Nothing has been seen.

        Args:
            zones: parts of the picture.
            lines: what may be crossed.
            settings: how long things must hold.
            stream: a name that tells this stream's event ids from those of others.
        """
        _check_names(zones, lines)
        self.settings = settings or EventSettings()
        self._zones = tuple(zones)
        self._lines = tuple(lines)
        self._stream = stream
        self._session = 0
        self._queries: dict[str, _Query] = {}
        self._frame: _Frame | None = None
        self._seen: OrderedDict[int, tuple[int, dict[str, frozenset[int]]]] = OrderedDict()
        """Capture time of recent frames, and what the tracker showed in them by query."""
        self._size: tuple[int, int] | None = None
        self._corners: dict[str, tuple[Point, ...]] = {}
        self._ends: dict[str, tuple[Point, Point]] = {}
        self._held: list[tuple[int, int, int, FrameResult | KeyframeAnswer]] = []
        self._num_held = 0
        self._newest_ns: int | None = None
        self._out: list[SceneEvent] = []

    def update(self, event: StreamEvent) -> list[SceneEvent]:
        """What has become certain with this; in the order of the frames.

        Args:
            event: a result, or anything else that the stream says; most of it changes nothing.

        Raises:
            EventsError: frames were sent without capture times, or a zone or line in pixels does
                not lie in frames of this size.
        """
        match event:
            case FrameResult():
                self._hold(event.sequence, 0, event.capture_time_ns, event)
            case KeyframeAnswer(result=result):
                self._hold(result.sequence, 1, result.capture_time_ns, event)
            case StreamOpened():
                self._release(None)
                if not event.resumed:
                    self._end_session()
            case QueriesAck():
                self._release(None)
                for name in [n for n in self._queries if n not in event.query_ids]:
                    self._end_query(self._queries.pop(name))
        return self._told()

    def update_all(self, events: Iterable[StreamEvent]) -> list[SceneEvent]:
        """`update` of each."""
        return [told for event in events for told in self.update(event)]

    def flush(self) -> list[SceneEvent]:
        """What the results still held for their order say; the end of a stream itself says
        nothing about what is in front of the camera.

        Raises:
            EventsError: as `update`.
        """
        self._release(None)
        return self._told()

    def change_places(self, zones: Sequence[Zone], lines: Sequence[Line]) -> None:
        """Go on with other zones and lines; what is followed stays followed, and appears no second
        time.

        Things that are inside a new zone enter it. A zone that is gone, or has the same name and
        other points, ends its stays without `ZONE_LEFT`.

        Args:
            zones: all that count from here on.
            lines: all that count from here on.

        Raises:
            EventsError: two zones, or two lines, have one name; nothing has changed then.
        """
        _check_names(zones, lines)
        stayed = {place.name for place in self._zones if place in zones}
        crossed = {place.name for place in self._lines if place in lines}
        self._zones, self._lines, self._size = tuple(zones), tuple(lines), None
        for query in self._queries.values():
            for track in (*query.tracks.values(), *query.departed.values()):
                track.stays = {name: stay for name, stay in track.stays.items() if name in stayed}
                track.ways = {name: way for name, way in track.ways.items() if name in crossed}
            query.counts = {
                place: count
                for place, count in query.counts.items()
                if not place or place in stayed
            }

    # ---- order ----

    def _hold(
        self, sequence: int, rank: int, capture_ns: int, item: FrameResult | KeyframeAnswer
    ) -> None:
        self._num_held += 1
        heapq.heappush(self._held, (sequence, rank, self._num_held, item))
        newest_ns = capture_ns if self._newest_ns is None else max(self._newest_ns, capture_ns)
        self._newest_ns = newest_ns
        self._release(newest_ns - round(self.settings.reorder_s * _NS))

    def _release(self, until_ns: int | None) -> None:
        """Look at what is held and old enough; None: at everything."""
        while self._held:
            item = self._held[0][3]
            result = item.result if isinstance(item, KeyframeAnswer) else item
            if until_ns is not None and result.capture_time_ns > until_ns:
                return
            heapq.heappop(self._held)
            if isinstance(item, KeyframeAnswer):
                self._hear(result)
            elif self._frame is not None and item.sequence <= self._frame.sequence:
                # Told of already, or too late for its place; what the model said still counts.
                self._hear(result)
            else:
                self._look(result)

    def _told(self) -> list[SceneEvent]:
        told, self._out = self._out, []
        return told

    # ---- frames in their order ----

    def _look(self, result: FrameResult) -> None:
        before = self._frame
        if before is not None and before.capture_time_ns == result.capture_time_ns == 0:
            raise EventsError(
                "the frames carry no capture times, in which events are counted: set "
                "OutgoingFrame.capture_time_ns"
            )
        clock_ns = 0
        if before is not None:
            clock_ns = before.clock_ns + max(0, result.capture_time_ns - before.capture_time_ns)
        frame = _Frame(
            result.sequence, result.capture_time_ns, clock_ns, result.width, result.height
        )
        self._fit(frame)
        self._frame = frame
        self._seen[frame.sequence] = (
            frame.capture_time_ns,
            {
                answer.query_id: frozenset(
                    number
                    for number, found in _numbered(answer).items()
                    if found.source is Source.TRACKED
                )
                for answer in result.results
            },
        )
        _trim(self._seen, _MAX_FRAMES)
        for answer in result.results:
            query = self._query_of(answer)
            query.evidence = (answer.evidence_sequence, answer.evidence_age_ms)
            if answer.source is Source.GROUNDED:
                self._hear_answer(query, answer, frame.sequence)
            self._observe(query, answer, frame)
            query.clock_ns = frame.clock_ns

    def _fit(self, frame: _Frame) -> None:
        """Bring zones and lines to the size of the frame."""
        size = (frame.width, frame.height)
        if size == self._size or min(size) <= 0:
            return
        self._corners = {zone.name: zone.in_pixels(*size) for zone in self._zones}
        self._ends = {line.name: line.in_pixels(*size) for line in self._lines}
        self._size = size

    def _query_of(self, answer: QueryResult) -> _Query:
        query = self._queries.get(answer.query_id)
        if query is None:
            query = self._queries[answer.query_id] = _Query(answer.query_id, answer.epoch)
        elif query.epoch != answer.epoch:
            # Asked anew: with the same words after some resumes, with others if its user wished.
            query.epoch = answer.epoch
            for track in query.tracks.values():
                track.is_of_old_question = True
        return query

    def _observe(self, query: _Query, answer: QueryResult, frame: _Frame) -> None:
        found = {
            number: _Sighting(frame, seen.box, seen.evidence_sequence, seen.evidence_age_ms)
            for number, seen in _numbered(answer).items()
            if query.withdrawn.get(number, -1) < seen.evidence_sequence
        }
        for number in sorted(found):
            self._see(query, number, found[number])
        step_ns = frame.clock_ns - query.clock_ns
        for number in sorted(set(query.tracks) - set(found)):
            self._miss(query, query.tracks[number], answer.status, step_ns)
        self._compare_answer(query, answer, frame)
        self._tell_counts(query)

    def _see(self, query: _Query, number: int, sighting: _Sighting) -> None:
        track = query.tracks.get(number)
        if track is None:
            track = query.tracks[number] = _Track(number, sighting, sighting)
            if (departed := query.departed.pop(number, None)) is not None:
                track.named, track.told = departed.named, departed.told
                track.denials = departed.denials
        track.last = sighting
        track.is_absent = track.is_of_old_question = False
        track.absent_ns = track.unsure_ns = 0
        spoken = query.spoken.get(sighting.evidence_sequence)
        if spoken is None or number in spoken.named:
            track.name(sighting.evidence_sequence)
        clock_ns = sighting.frame.clock_ns
        if not track.has_appeared and self._has_held(track.first, clock_ns, self.settings.appear_s):
            track.has_appeared = True
            self._tell(EventKind.APPEARED, query, track.first, track, rests_on=sighting)
        if min(sighting.frame.width, sighting.frame.height) > 0:
            for zone in self._zones:
                if not zone.queries or query.name in zone.queries:
                    self._place(query, track, zone, sighting)
            for line in self._lines:
                if not line.queries or query.name in line.queries:
                    self._cross(query, track, line, sighting)

    def _place(self, query: _Query, track: _Track, zone: Zone, now: _Sighting) -> None:
        stay = track.stays.setdefault(zone.name, _Stay())
        corners, point = self._corners[zone.name], self.settings.anchor.of(now.box)
        # Once inside, it must be clear of the border to be outside: boxes tremble.
        inside = is_inside(corners, point) or (
            stay.is_inside and distance_to_zone(corners, point) <= self._margin_px(now.frame)
        )
        if inside is stay.is_inside:
            stay.turning = None
        else:
            stay.turning = stay.turning or now
            if self._has_held(stay.turning, now.frame.clock_ns, self.settings.settle_s):
                stay.is_inside, stay.since, stay.turning = inside, stay.turning, None
                stay.has_dwelt = False
        if not track.has_appeared or stay.since is None:
            return
        if stay.is_inside is not stay.is_told:
            stay.is_told = stay.is_inside
            kind = EventKind.ZONE_ENTERED if stay.is_inside else EventKind.ZONE_LEFT
            self._tell(kind, query, stay.since, track, place=zone.name, rests_on=now)
        if (
            zone.dwell_s is not None
            and stay.is_told
            and inside
            and not stay.has_dwelt
            and self._has_held(stay.since, now.frame.clock_ns, zone.dwell_s)
        ):
            stay.has_dwelt = True
            dwelt_s = (now.frame.clock_ns - stay.since.frame.clock_ns) / _NS
            self._tell(
                EventKind.DWELT, query, stay.since, track,
                place=zone.name, rests_on=now, dwell_s=dwelt_s,
            )  # fmt: skip

    def _cross(self, query: _Query, track: _Track, line: Line, now: _Sighting) -> None:
        way = track.ways.setdefault(line.name, _Way())
        direction = way.crossing.step(
            self._ends[line.name],
            self.settings.anchor.of(now.box),
            width=now.frame.width,
            height=now.frame.height,
            margin_px=self._margin_px(now.frame),
        )
        if direction is not None:
            if way.pending and way.pending[-1][0] is direction.opposite:
                way.pending.pop()  # There and back before anybody was told.
            else:
                way.pending.append((direction, now))
        while (
            way.pending
            and track.has_appeared
            and way.crossing.is_clear
            and self._has_held(way.pending[0][1], now.frame.clock_ns, self.settings.settle_s)
        ):
            crossed, since = way.pending.pop(0)
            self._tell(
                EventKind.LINE_CROSSED, query, since, track,
                place=line.name, direction=crossed, rests_on=now,
            )  # fmt: skip

    def _miss(self, query: _Query, track: _Track, status: AnswerStatus, step_ns: int) -> None:
        """An answer that does not show it."""
        counted_ns = min(step_ns, round(self.settings.max_gap_s * _NS))
        if status in _KNOWN:
            if not track.has_appeared:
                del query.tracks[track.id]  # Seen for a moment.
                if track.told:
                    self._remember(query, track)
                return
            if track.is_absent:
                track.absent_ns += counted_ns
            track.is_absent = True
            if track.absent_ns >= round(self.settings.leave_s * _NS):
                reason = LostReason.QUESTION_CHANGED if track.is_of_old_question else None
                self._depart(query, track, reason)
            return
        track.is_absent = False
        limit_s = self.settings.unsure_leave_s
        if status in _UNSURE and limit_s is not None:
            track.unsure_ns += counted_ns
            if track.unsure_ns >= round(limit_s * _NS):
                self._depart(query, track, LostReason.UNSURE)

    def _depart(self, query: _Query, track: _Track, reason: LostReason | None) -> None:
        """It has left, or is lost for a reason."""
        del query.tracks[track.id]
        if not track.has_appeared:
            return
        if reason is None:
            for name, stay in track.stays.items():
                if stay.is_told:
                    stay.is_told = False
                    self._tell(EventKind.ZONE_LEFT, query, track.last, track, place=name)
            self._tell(EventKind.LEFT, query, track.last, track)
        else:
            self._tell(EventKind.LOST, query, track.last, track, reason=reason)
        self._remember(query, track)

    def _remember(self, query: _Query, track: _Track) -> None:
        """For an answer that comes late."""
        query.departed[track.id] = track
        _trim(query.departed, _MAX_DEPARTED)

    def _compare_answer(self, query: _Query, answer: QueryResult, frame: _Frame) -> None:
        if answer.status not in _KNOWN:
            return
        given = _given(answer)
        if given == query.answer:
            query.turning = None
            return
        if query.turning is None or query.turning[0] != given:
            query.turning = (given, frame)
        since = query.turning[1]
        if frame.clock_ns - since.clock_ns < round(self.settings.answer_s * _NS):
            return
        before, query.answer, query.turning = query.answer, given, None
        if before is not None:
            query.change = self._tell(
                EventKind.ANSWER_CHANGED, query, since, answer=given, answer_before=before
            )

    def _tell_counts(self, query: _Query) -> None:
        present = [track for track in query.tracks.values() if track.has_appeared]
        places: list[tuple[str, int]] = []
        if self.settings.counts:
            places.append(("", len(present)))
        if self.settings.zone_counts:
            for zone in self._zones:
                stays = [track.stays.get(zone.name) for track in present]
                places.append((zone.name, sum(stay is not None and stay.is_told for stay in stays)))
        for place, count in places:
            before = query.counts.get(place, 0)
            if count != before and self._frame is not None:
                query.counts[place] = count
                self._tell(
                    EventKind.COUNT_CHANGED, query, self._frame,
                    place=place, count=count, count_before=before,
                )  # fmt: skip

    # ---- what the model said, whenever it comes ----

    def _hear(self, result: FrameResult) -> None:
        for answer in result.results:
            query = self._queries.get(answer.query_id)
            is_grounded = answer.source is Source.GROUNDED
            if query is not None and query.epoch == answer.epoch and is_grounded:
                self._hear_answer(query, answer, result.sequence, result.capture_time_ns)
                self._tell_counts(query)

    def _hear_answer(
        self, query: _Query, answer: QueryResult, sequence: int, capture_ns: int | None = None
    ) -> None:
        """Note what the model said about a key frame, and withdraw what it denies."""
        if answer.status not in _KNOWN:
            return
        spoken = _Spoken(frozenset(_numbered(answer)), _given(answer))
        before = query.spoken.get(sequence)
        query.spoken[sequence] = spoken
        _trim(query.spoken, _MAX_SPOKEN)
        known_ns, shown = self._seen.get(sequence, (capture_ns, {}))
        evidence = EventEvidence(sequence, known_ns, answer.evidence_age_ms)
        for number in spoken.named:
            if (track := query.tracks.get(number)) is not None:
                track.name(sequence)
                track.denials = 0
        if before is not None:
            for number in sorted(before.named - spoken.named):
                self._unname(query, number, evidence)
            if before.answer != spoken.answer:
                self._retract_change(query, evidence)
            return
        for number in sorted(shown.get(query.name, frozenset()) - spoken.named):
            self._deny(query, number, evidence)

    def _unname(self, query: _Query, number: int, evidence: EventEvidence) -> None:
        """An answer that named it has been replaced by one that does not."""
        track = query.tracks.get(number) or query.departed.get(number)
        if track is None or track.is_sure or evidence.sequence not in track.named:
            return
        del track.named[evidence.sequence]
        if not track.named:
            self._withdraw(query, track, evidence)

    def _deny(self, query: _Query, number: int, evidence: EventEvidence) -> None:
        """The tracker showed it in a key frame, and the model did not name it there."""
        track = query.tracks.get(number) or query.departed.get(number)
        if track is None or evidence.sequence <= max(track.named, default=-1):
            return
        track.denials += 1
        limit = self.settings.max_denials
        if limit is not None and len(track.named) <= 1 and track.denials >= limit:
            self._withdraw(query, track, evidence)

    def _withdraw(self, query: _Query, track: _Track, evidence: EventEvidence) -> None:
        """It was never there: take back what was told of it, the last first."""
        query.tracks.pop(track.id, None)
        query.departed.pop(track.id, None)
        query.withdrawn[track.id] = evidence.sequence
        _trim(query.withdrawn, _MAX_WITHDRAWN)
        for event in reversed(track.told):
            self._retract(query, event, evidence)

    def _retract_change(self, query: _Query, evidence: EventEvidence) -> None:
        change = query.change
        if change is None or change.evidence is None:
            return
        if change.evidence.sequence == evidence.sequence:
            query.answer, query.change, query.turning = change.answer_before, None, None
            self._retract(query, change, evidence)

    def _retract(self, query: _Query, event: SceneEvent, evidence: EventEvidence) -> None:
        assert self._frame is not None  # Something was told, so there was a frame.
        self._out.append(
            SceneEvent(
                id=event_id(self._stream, EventKind.RETRACTED, event.id),
                kind=EventKind.RETRACTED,
                query=query.name,
                sequence=self._frame.sequence,
                capture_time_ns=self._frame.capture_time_ns,
                began_sequence=event.began_sequence,
                began_time_ns=event.began_time_ns,
                evidence=evidence,
                track_id=event.track_id,
                session=event.session,
                box=event.box,
                place=event.place,
                retracts=event.id,
            )
        )

    # ---- sessions and questions end ----

    def _end_session(self) -> None:
        """Track numbers begin anew: nothing that comes is known to be what was there."""
        if self._frame is None:
            return
        for query in self._queries.values():
            self._lose_all(query, LostReason.SESSION_ENDED)
            query.departed.clear()
            query.withdrawn.clear()
            query.spoken.clear()
        self._seen = OrderedDict((n, (time_ns, {})) for n, (time_ns, _) in self._seen.items())
        self._session += 1

    def _end_query(self, query: _Query) -> None:
        self._lose_all(query, LostReason.QUESTION_CHANGED)

    def _lose_all(self, query: _Query, reason: LostReason) -> None:
        for number in sorted(query.tracks):
            self._depart(query, query.tracks[number], reason)
        self._tell_counts(query)

    # ---- telling ----

    def _has_held(self, since: _Sighting, clock_ns: int, time_s: float) -> bool:
        return clock_ns - since.frame.clock_ns >= round(time_s * _NS)

    def _margin_px(self, frame: _Frame) -> float:
        return self.settings.margin * max(frame.width, frame.height)

    def _tell(
        self,
        kind: EventKind,
        query: _Query,
        began: _Sighting | _Frame,
        track: _Track | None = None,
        *,
        rests_on: _Sighting | None = None,
        place: str = "",
        direction: Direction | None = None,
        dwell_s: float | None = None,
        count: int | None = None,
        count_before: int | None = None,
        answer: GivenAnswer | None = None,
        answer_before: GivenAnswer | None = None,
        reason: LostReason | None = None,
    ) -> SceneEvent:
        assert self._frame is not None
        since = began.frame if isinstance(began, _Sighting) else began
        number = None if track is None else track.id
        event = SceneEvent(
            id=event_id(
                self._stream, kind, query.name, self._session, number, place, direction,
                since.sequence, since.capture_time_ns, self._frame.sequence,
                count,  # A late answer may change it once more in the same frame.
            ),
            kind=kind,
            query=query.name,
            sequence=self._frame.sequence,
            capture_time_ns=self._frame.capture_time_ns,
            began_sequence=since.sequence,
            began_time_ns=since.capture_time_ns,
            evidence=self._evidence(query, rests_on),
            track_id=number,
            session=self._session,
            box=began.box if isinstance(began, _Sighting) else None,
            place=place,
            direction=direction,
            dwell_s=dwell_s,
            count=count,
            count_before=count_before,
            answer=answer,
            answer_before=answer_before,
            reason=reason,
        )  # fmt: skip
        self._out.append(event)
        if track is not None and not track.is_sure:
            track.told.append(event)
        return event

    def _evidence(self, query: _Query, sighting: _Sighting | None) -> EventEvidence | None:
        """Of the thing, where it is seen; else of the newest answer to the query."""
        if sighting is not None:
            sequence, age_ms = sighting.evidence_sequence, sighting.evidence_age_ms
        elif query.evidence is not None:
            sequence, age_ms = query.evidence
        else:
            return None
        known = self._seen.get(sequence)
        return EventEvidence(sequence, None if known is None else known[0], age_ms)


def _check_names(zones: Sequence[Zone], lines: Sequence[Line]) -> None:
    for places in (zones, lines):
        names = [place.name for place in places]
        if len(set(names)) < len(names):
            raise EventsError(f"two of {', '.join(names)} have one name")


def _numbered(answer: QueryResult) -> dict[int, Detection]:
    """The things with a track number, each once: what has none cannot be told from others."""
    found: dict[int, Detection] = {}
    for seen in answer.detections:
        if seen.track_id is None:
            continue
        known = found.get(seen.track_id)
        if known is None or seen.confidence > known.confidence:
            found[seen.track_id] = seen
    return found


def _given(answer: QueryResult) -> GivenAnswer:
    """What is compared: names of regions differ from key frame to key frame, words do not."""
    text = ""
    if not answer.detections and "<region" not in answer.text:
        text = " ".join((answer.reply or _MARKUP.sub(" ", answer.text)).split())
    return GivenAnswer(answer.status, text, answer.count)


def _trim(kept: OrderedDict[int, V], most: int) -> None:
    while len(kept) > most:
        kept.popitem(last=False)
