"""Events from the results of a stream: who came and went, over which line, into which zone.

One object per stream, owned by its caller: no I/O, no threads and no clock but the stream's own
capture times, so that the same results give the same events, in one go or piece by piece. What the
events mean is in `docs/events.md`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from groundstream.enums import AnswerStatus, Source
from groundstream.errors import EventsError
from groundstream.event_settings import EventSettings as EventSettings
from groundstream.event_state import (
    KNOWN,
    NS,
    QueryState,
    SeenFrame,
    Sighting,
    Spoken,
    Track,
    given_answer,
    numbered,
    trim,
)
from groundstream.event_teller import EventTeller
from groundstream.events import KeyframeAnswer, QueriesAck, StreamEvent, StreamOpened
from groundstream.place_events import PlaceEvents
from groundstream.scene_events import EventEvidence, EventKind, LostReason, SceneEvent
from groundstream.types import FrameResult, QueryResult
from groundstream.zones import Line, Zone

_UNSURE = (AnswerStatus.UNSURE, AnswerStatus.TRUNCATED)
_MAX_SPOKEN = 512
_MAX_DEPARTED = 512
_MAX_WITHDRAWN = 1024
"""Remembered of each query."""


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
        self.settings = settings or EventSettings()
        self._teller = EventTeller(stream)
        self._places = PlaceEvents(zones, lines, self.settings, self._teller)
        self._queries: dict[str, QueryState] = {}
        self._held: list[tuple[int, int, int, FrameResult | KeyframeAnswer]] = []
        self._num_held = 0
        self._newest_ns: int | None = None

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
        return self._teller.take()

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
        return self._teller.take()

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
        self._places.change(zones, lines, self._queries.values())

    # ---- order ----

    def _hold(
        self, sequence: int, rank: int, capture_ns: int, item: FrameResult | KeyframeAnswer
    ) -> None:
        self._num_held += 1
        heapq.heappush(self._held, (sequence, rank, self._num_held, item))
        newest_ns = capture_ns if self._newest_ns is None else max(self._newest_ns, capture_ns)
        self._newest_ns = newest_ns
        self._release(newest_ns - round(self.settings.reorder_s * NS))

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
            elif self._teller.frame is not None and item.sequence <= self._teller.frame.sequence:
                # Told of already, or too late for its place; what the model said still counts.
                self._hear(result)
            else:
                self._look(result)

    # ---- frames in their order ----

    def _look(self, result: FrameResult) -> None:
        before = self._teller.frame
        if before is not None and before.capture_time_ns == result.capture_time_ns == 0:
            raise EventsError(
                "the frames carry no capture times, in which events are counted: set "
                "OutgoingFrame.capture_time_ns"
            )
        clock_ns = 0
        if before is not None:
            clock_ns = before.clock_ns + max(0, result.capture_time_ns - before.capture_time_ns)
        frame = SeenFrame(
            result.sequence, result.capture_time_ns, clock_ns, result.width, result.height
        )
        self._places.fit(frame)
        tracked = {
            answer.query_id: frozenset(
                number
                for number, found in numbered(answer).items()
                if found.source is Source.TRACKED
            )
            for answer in result.results
        }
        self._teller.look_at(frame, tracked)
        for answer in result.results:
            query = self._query_of(answer)
            query.evidence = (answer.evidence_sequence, answer.evidence_age_ms)
            if answer.source is Source.GROUNDED:
                self._hear_answer(query, answer, frame.sequence)
            self._observe(query, answer, frame)
            query.clock_ns = frame.clock_ns

    def _query_of(self, answer: QueryResult) -> QueryState:
        query = self._queries.get(answer.query_id)
        if query is None:
            query = self._queries[answer.query_id] = QueryState(answer.query_id, answer.epoch)
        elif query.epoch != answer.epoch:
            # Asked anew: with the same words after some resumes, with others if its user wished.
            query.epoch = answer.epoch
            for track in query.tracks.values():
                track.is_of_old_question = True
        return query

    def _observe(self, query: QueryState, answer: QueryResult, frame: SeenFrame) -> None:
        found = {
            number: Sighting(frame, seen.box, seen.evidence_sequence, seen.evidence_age_ms)
            for number, seen in numbered(answer).items()
            if query.withdrawn.get(number, -1) < seen.evidence_sequence
        }
        for number in sorted(found):
            self._see(query, number, found[number])
        step_ns = frame.clock_ns - query.clock_ns
        for number in sorted(set(query.tracks) - set(found)):
            self._miss(query, query.tracks[number], answer.status, step_ns)
        self._compare_answer(query, answer, frame)
        self._tell_counts(query)

    def _see(self, query: QueryState, number: int, sighting: Sighting) -> None:
        track = query.tracks.get(number)
        if track is None:
            track = query.tracks[number] = Track(number, sighting, sighting)
            if (departed := query.departed.pop(number, None)) is not None:
                track.named, track.told = departed.named, departed.told
                track.denials = departed.denials
        track.last = sighting
        track.is_absent = track.is_of_old_question = False
        track.absent_ns = track.unsure_ns = 0
        spoken = query.spoken.get(sighting.evidence_sequence)
        if spoken is None or number in spoken.named:
            track.name(sighting.evidence_sequence)
        has_held = sighting.frame.has_held(track.first.frame, self.settings.appear_s)
        if not track.has_appeared and has_held:
            track.has_appeared = True
            self._teller.tell(EventKind.APPEARED, query, track.first, track, rests_on=sighting)
        self._places.see(query, track, sighting)

    def _miss(self, query: QueryState, track: Track, status: AnswerStatus, step_ns: int) -> None:
        """An answer that does not show it."""
        counted_ns = min(step_ns, round(self.settings.max_gap_s * NS))
        if status in KNOWN:
            if not track.has_appeared:
                del query.tracks[track.id]  # Seen for a moment.
                if track.told:
                    self._remember(query, track)
                return
            if track.is_absent:
                track.absent_ns += counted_ns
            track.is_absent = True
            if track.absent_ns >= round(self.settings.leave_s * NS):
                reason = LostReason.QUESTION_CHANGED if track.is_of_old_question else None
                self._depart(query, track, reason)
            return
        track.is_absent = False
        limit_s = self.settings.unsure_leave_s
        if status in _UNSURE and limit_s is not None:
            track.unsure_ns += counted_ns
            if track.unsure_ns >= round(limit_s * NS):
                self._depart(query, track, LostReason.UNSURE)

    def _depart(self, query: QueryState, track: Track, reason: LostReason | None) -> None:
        """It has left, or is lost for a reason."""
        del query.tracks[track.id]
        if not track.has_appeared:
            return
        if reason is None:
            self._places.leave(query, track)
            self._teller.tell(EventKind.LEFT, query, track.last, track)
        else:
            self._teller.tell(EventKind.LOST, query, track.last, track, reason=reason)
        self._remember(query, track)

    def _remember(self, query: QueryState, track: Track) -> None:
        """For an answer that comes late."""
        query.departed[track.id] = track
        trim(query.departed, _MAX_DEPARTED)

    def _compare_answer(self, query: QueryState, answer: QueryResult, frame: SeenFrame) -> None:
        if answer.status not in KNOWN:
            return
        given = given_answer(answer)
        if given == query.answer:
            query.turning = None
            return
        if query.turning is None or query.turning[0] != given:
            query.turning = (given, frame)
        since = query.turning[1]
        if not frame.has_held(since, self.settings.answer_s):
            return
        before, query.answer, query.turning = query.answer, given, None
        if before is not None:
            query.change = self._teller.tell(
                EventKind.ANSWER_CHANGED, query, since, answer=given, answer_before=before
            )

    def _tell_counts(self, query: QueryState) -> None:
        present = [track for track in query.tracks.values() if track.has_appeared]
        places: list[tuple[str, int]] = []
        if self.settings.counts:
            places.append(("", len(present)))
        if self.settings.zone_counts:
            places += self._places.counts(present)
        for place, count in places:
            before = query.counts.get(place, 0)
            if count != before and self._teller.frame is not None:
                query.counts[place] = count
                self._teller.tell(
                    EventKind.COUNT_CHANGED, query, self._teller.frame,
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
        self, query: QueryState, answer: QueryResult, sequence: int, capture_ns: int | None = None
    ) -> None:
        """Note what the model said about a key frame, and withdraw what it denies."""
        if answer.status not in KNOWN:
            return
        spoken = Spoken(frozenset(numbered(answer)), given_answer(answer))
        before = query.spoken.get(sequence)
        query.spoken[sequence] = spoken
        trim(query.spoken, _MAX_SPOKEN)
        known_ns, shown = self._teller.recall(sequence, capture_ns)
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

    def _unname(self, query: QueryState, number: int, evidence: EventEvidence) -> None:
        """An answer that named it has been replaced by one that does not."""
        track = query.tracks.get(number) or query.departed.get(number)
        if track is None or track.is_sure or evidence.sequence not in track.named:
            return
        del track.named[evidence.sequence]
        if not track.named:
            self._withdraw(query, track, evidence)

    def _deny(self, query: QueryState, number: int, evidence: EventEvidence) -> None:
        """The tracker showed it in a key frame, and the model did not name it there."""
        track = query.tracks.get(number) or query.departed.get(number)
        if track is None or evidence.sequence <= max(track.named, default=-1):
            return
        track.denials += 1
        limit = self.settings.max_denials
        if limit is not None and len(track.named) <= 1 and track.denials >= limit:
            self._withdraw(query, track, evidence)

    def _withdraw(self, query: QueryState, track: Track, evidence: EventEvidence) -> None:
        """It was never there: take back what was told of it, the last first."""
        query.tracks.pop(track.id, None)
        query.departed.pop(track.id, None)
        query.withdrawn[track.id] = evidence.sequence
        trim(query.withdrawn, _MAX_WITHDRAWN)
        for event in reversed(track.told):
            self._teller.retract(query, event, evidence)

    def _retract_change(self, query: QueryState, evidence: EventEvidence) -> None:
        change = query.change
        if change is None or change.evidence is None:
            return
        if change.evidence.sequence == evidence.sequence:
            query.answer, query.change, query.turning = change.answer_before, None, None
            self._teller.retract(query, change, evidence)

    # ---- sessions and questions end ----

    def _end_session(self) -> None:
        """Track numbers begin anew: nothing that comes is known to be what was there."""
        if self._teller.frame is None:
            return
        for query in self._queries.values():
            self._lose_all(query, LostReason.SESSION_ENDED)
            query.departed.clear()
            query.withdrawn.clear()
            query.spoken.clear()
        self._teller.end_session()

    def _end_query(self, query: QueryState) -> None:
        self._lose_all(query, LostReason.QUESTION_CHANGED)

    def _lose_all(self, query: QueryState, reason: LostReason) -> None:
        for number in sorted(query.tracks):
            self._depart(query, query.tracks[number], reason)
        self._tell_counts(query)
