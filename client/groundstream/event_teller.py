"""Makes the events of one stream, each told with the frame that is being looked at."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

from groundstream.event_state import QueryState, SeenFrame, Sighting, Track, trim
from groundstream.scene_events import (
    EventEvidence,
    EventKind,
    GivenAnswer,
    LostReason,
    SceneEvent,
    event_id,
)
from groundstream.zones import Direction

_MAX_FRAMES = 2048
"""Remembered for key frames whose answers come late."""
Shown = Mapping[str, frozenset[int]]
"""By query, the things that the tracker showed in a frame."""


class EventTeller:
    """Knows the frames of late, and keeps events until they are taken."""

    def __init__(self, stream: str) -> None:
        """`stream`: tells this stream's event ids from those of others."""
        self.frame: SeenFrame | None = None
        """The one that is being looked at; None: none has come."""
        self.session = 0
        """Track numbers begin anew with each."""
        self._stream = stream
        self._seen: OrderedDict[int, tuple[int, Shown]] = OrderedDict()
        """Capture time of recent frames, and what was shown in them."""
        self._out: list[SceneEvent] = []

    def look_at(self, frame: SeenFrame, shown: Shown) -> None:
        """Another frame comes."""
        self.frame = frame
        self._seen[frame.sequence] = (frame.capture_time_ns, shown)
        trim(self._seen, _MAX_FRAMES)

    def recall(self, sequence: int, capture_ns: int | None = None) -> tuple[int | None, Shown]:
        """When a frame was captured, and what was shown in it.

        `capture_ns`: what to say of one that is not remembered.
        """
        return self._seen.get(sequence, (capture_ns, {}))

    def end_session(self) -> None:
        """The numbers of things mean others from here on."""
        self._seen = OrderedDict((n, (time_ns, {})) for n, (time_ns, _) in self._seen.items())
        self.session += 1

    def take(self) -> list[SceneEvent]:
        """The events since it was last asked."""
        told, self._out = self._out, []
        return told

    def tell(
        self,
        kind: EventKind,
        query: QueryState,
        began: Sighting | SeenFrame,
        track: Track | None = None,
        *,
        rests_on: Sighting | None = None,
        place: str = "",
        direction: Direction | None = None,
        dwell_s: float | None = None,
        count: int | None = None,
        count_before: int | None = None,
        answer: GivenAnswer | None = None,
        answer_before: GivenAnswer | None = None,
        reason: LostReason | None = None,
    ) -> SceneEvent:
        """Make an event.

        Args:
            kind: what happened.
            query: the query whose things it is about.
            began: when it began.
            track: the thing; None: it is about no single one.
            rests_on: where the thing was seen for this; None: the query's newest answer says so.
            place: name of the zone or line.
            direction, dwell_s, count, count_before, answer, answer_before, reason: see
                `SceneEvent`.
        """
        assert self.frame is not None
        since = began.frame if isinstance(began, Sighting) else began
        number = None if track is None else track.id
        event = SceneEvent(
            id=event_id(
                self._stream, kind, query.name, self.session, number, place, direction,
                since.sequence, since.capture_time_ns, self.frame.sequence,
                count,  # A late answer may change it once more in the same frame.
            ),
            kind=kind,
            query=query.name,
            sequence=self.frame.sequence,
            capture_time_ns=self.frame.capture_time_ns,
            began_sequence=since.sequence,
            began_time_ns=since.capture_time_ns,
            evidence=self._evidence(query, rests_on),
            track_id=number,
            session=self.session,
            box=began.box if isinstance(began, Sighting) else None,
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

    def retract(self, query: QueryState, event: SceneEvent, evidence: EventEvidence) -> None:
        """Take an event back; `evidence`: what showed that it was wrong."""
        assert self.frame is not None  # Something was told, so there was a frame.
        self._out.append(
            SceneEvent(
                id=event_id(self._stream, EventKind.RETRACTED, event.id),
                kind=EventKind.RETRACTED,
                query=query.name,
                sequence=self.frame.sequence,
                capture_time_ns=self.frame.capture_time_ns,
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

    def _evidence(self, query: QueryState, sighting: Sighting | None) -> EventEvidence | None:
        """Of the thing, where it is seen; else of the newest answer to the query."""
        if sighting is not None:
            sequence, age_ms = sighting.evidence_sequence, sighting.evidence_age_ms
        elif query.evidence is not None:
            sequence, age_ms = query.evidence
        else:
            return None
        time_ns, _ = self.recall(sequence)
        return EventEvidence(sequence, time_ns, age_ms)
