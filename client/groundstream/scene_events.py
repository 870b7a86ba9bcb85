"""What happens in front of a camera, as plain dataclasses and as lines of JSON.

`groundstream/events.py` holds what happens on a stream; `groundstream/event_detector.py` makes
these events from its results.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Any

from groundstream.enums import AnswerStatus
from groundstream.errors import EventsError
from groundstream.types import Box
from groundstream.zones import Direction


class EventKind(Enum):
    """What has happened."""

    APPEARED = "APPEARED"
    LEFT = "LEFT"
    """Answers have not shown the thing for long enough."""
    LOST = "LOST"
    """The thing can be followed no further, and nobody knows whether it is still there."""
    LINE_CROSSED = "LINE_CROSSED"
    ZONE_ENTERED = "ZONE_ENTERED"
    """Also of a thing that appears inside."""
    ZONE_LEFT = "ZONE_LEFT"
    """Also of a thing that leaves the scene from inside."""
    DWELT = "DWELT"
    """It has been in a zone for longer than the zone's `dwell_s`; once in a stay."""
    COUNT_CHANGED = "COUNT_CHANGED"
    """How many things of a query are there, in all or in a zone, is another number."""
    ANSWER_CHANGED = "ANSWER_CHANGED"
    """The query is answered differently: it is there or not, or other words, or another number."""
    RETRACTED = "RETRACTED"
    """An event that was told rested on evidence that has been withdrawn."""


class LostReason(Enum):
    """Why a thing can be followed no further."""

    SESSION_ENDED = "SESSION_ENDED"
    """The service has forgotten the stream; its track numbers begin anew."""
    QUESTION_CHANGED = "QUESTION_CHANGED"
    """The query was removed, or its words were replaced."""
    UNSURE = "UNSURE"
    """The service has answered for long that it is not sure, without showing it."""


@dataclass(frozen=True)
class EventEvidence:
    """The key frame an event rests on: the last one the language model spoke about."""

    sequence: int
    capture_time_ns: int | None
    """None: its result was not seen here, or long ago."""
    age_ms: float
    """How old it was when the frame of the event was answered."""


@dataclass(frozen=True)
class GivenAnswer:
    """An answer as it is compared with later ones."""

    status: AnswerStatus
    """OK or NOT_PRESENT."""
    text: str = ""
    """The words of an answer that points at no boxes."""
    count: int | None = None
    """The number it stated."""


@dataclass(frozen=True)
class SceneEvent:
    """One thing that has happened. Times are capture times of the stream, nanoseconds."""

    id: str
    """The same for the same results, and no other event's."""
    kind: EventKind
    query: str
    sequence: int
    """The frame in which it became certain."""
    capture_time_ns: int
    """Of that frame."""
    began_sequence: int
    """The frame in which it began: first seen, last seen (LEFT, LOST), first inside (ZONE_ENTERED,
    DWELT), first outside, first on the far side of the line."""
    began_time_ns: int
    evidence: EventEvidence | None = None
    track_id: int | None = None
    session: int = 0
    """Track numbers are unique within one session; the next one begins when the service has
    forgotten the stream."""
    box: Box | None = None
    """The thing when it began; pixels of that frame."""
    place: str = ""
    """Name of the zone or line."""
    direction: Direction | None = None
    dwell_s: float | None = None
    """How long it has been in the zone (DWELT)."""
    count: int | None = None
    count_before: int | None = None
    answer: GivenAnswer | None = None
    answer_before: GivenAnswer | None = None
    reason: LostReason | None = None
    retracts: str = ""
    """Id of the event that is retracted."""


def event_id(stream: str, kind: EventKind, *parts: object) -> str:
    """A name of 24 hexadecimal digits for what the parts say.

    Args:
        stream: whose events these are.
        kind: what has happened.
        parts: all that tells it from others of its kind.
    """
    words = json.dumps([stream, kind.value, *map(str, parts)])
    return hashlib.blake2b(words.encode(), digest_size=12).hexdigest()


def event_fields(event: SceneEvent) -> dict[str, Any]:
    """As JSON has it; what an event does not have is left out."""
    return {
        name: _plain(value)
        for name, value in vars(event).items()
        if name in _ALWAYS or (value is not None and value != "")
    }


def event_to_json(event: SceneEvent) -> str:
    """Its `event_fields` as one line without a line break."""
    return json.dumps(event_fields(event), ensure_ascii=False, allow_nan=False)


def event_from_json(line: str) -> SceneEvent:
    """The event that `event_to_json` wrote; fields of a later version are passed over.

    Raises:
        EventsError: the line is no event.
    """
    try:
        found: dict[str, Any] = json.loads(line)
        known = {k: v for k, v in found.items() if k in SceneEvent.__dataclass_fields__}
        known["kind"] = EventKind(known["kind"])
        for name, read in _READERS.items():
            if name in known:
                known[name] = read(known[name])
        return SceneEvent(**known)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise EventsError(f"no event: {line[:80]!r} ({error})") from None


def _answer(fields: dict[str, Any]) -> GivenAnswer:
    return GivenAnswer(**{**fields, "status": AnswerStatus(fields["status"])})


def _box(values: list[float]) -> Box:
    x1, y1, x2, y2 = map(float, values)
    return x1, y1, x2, y2


_ALWAYS = frozenset({"id", "query"})
_READERS: dict[str, Callable[[Any], Any]] = {
    "evidence": lambda fields: EventEvidence(**fields),
    "box": _box,
    "direction": Direction,
    "answer": _answer,
    "answer_before": _answer,
    "reason": LostReason,
}


def _plain(value: Any) -> Any:
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, (EventEvidence, GivenAnswer)):
        return {name: _plain(part) for name, part in vars(value).items()}
    return value
