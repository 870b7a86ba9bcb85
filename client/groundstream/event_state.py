"""What an event detector remembers of a stream: its queries, their things, and what was told."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

from groundstream.enums import AnswerStatus
from groundstream.scene_events import GivenAnswer, SceneEvent
from groundstream.types import Box, Detection, QueryResult
from groundstream.zones import Crossing, Direction

KNOWN = (AnswerStatus.OK, AnswerStatus.NOT_PRESENT)
"""What these do not show is not there; any other answer leaves it open."""
_SURE = 8
"""A thing that more key frames than this have named is not withdrawn any more."""
_MARKUP = re.compile(r"<[^<>]*>")
NS = 1_000_000_000
V = TypeVar("V")


@dataclass(frozen=True)
class SeenFrame:
    """The frame that is being looked at."""

    sequence: int
    capture_time_ns: int
    clock_ns: int
    """Capture time that has passed since the first frame; never goes back."""
    width: int
    height: int

    def has_held(self, first: SeenFrame, time_s: float) -> bool:
        """Whether what began in an earlier frame has gone on for so long by now."""
        return self.clock_ns - first.clock_ns >= round(time_s * NS)


@dataclass(frozen=True)
class Sighting:
    """A thing in a frame."""

    frame: SeenFrame
    box: Box
    evidence_sequence: int
    evidence_age_ms: float


@dataclass
class Stay:
    """One thing and one zone."""

    is_inside: bool = False
    is_told: bool = False
    has_dwelt: bool = False
    since: Sighting | None = None
    """First of this side."""
    turning: Sighting | None = None
    """First of the other side, while it has not been there for long enough."""


@dataclass
class Way:
    """One thing and one line."""

    crossing: Crossing = field(default_factory=Crossing)
    pending: list[tuple[Direction, Sighting]] = field(default_factory=list)


@dataclass
class Track:
    """One thing as the answer to one query."""

    id: int
    first: Sighting
    last: Sighting
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
    stays: dict[str, Stay] = field(default_factory=dict)
    ways: dict[str, Way] = field(default_factory=dict)
    told: list[SceneEvent] = field(default_factory=list)
    """What falls if the thing was never there."""

    @property
    def is_sure(self) -> bool:
        """Whether so many key frames named it that it is never withdrawn."""
        return len(self.named) > _SURE

    def name(self, sequence: int) -> None:
        """A key frame named it."""
        if not self.is_sure:
            self.named[sequence] = None
        if self.is_sure:
            self.told.clear()


@dataclass(frozen=True)
class Spoken:
    """What the language model said about a key frame."""

    named: frozenset[int]
    answer: GivenAnswer


@dataclass
class QueryState:
    """One query."""

    name: str
    epoch: int
    tracks: dict[int, Track] = field(default_factory=dict)
    departed: OrderedDict[int, Track] = field(default_factory=OrderedDict)
    withdrawn: OrderedDict[int, int] = field(default_factory=OrderedDict)
    """Things that were never there, and the key frame that said so; only later ones count."""
    spoken: OrderedDict[int, Spoken] = field(default_factory=OrderedDict)
    counts: dict[str, int] = field(default_factory=dict)
    """As told, by zone; "" is the whole picture."""
    evidence: tuple[int, float] | None = None
    """Key frame and age in milliseconds of the newest answer."""
    clock_ns: int = 0
    """Of the newest answer."""
    answer: GivenAnswer | None = None
    turning: tuple[GivenAnswer, SeenFrame] | None = None
    """Another answer, while it has not been given for long enough, and its first frame."""
    change: SceneEvent | None = None
    """The newest change of the answer that was told and not retracted."""


def numbered(answer: QueryResult) -> dict[int, Detection]:
    """The things with a track number, each once: what has none cannot be told from others."""
    found: dict[int, Detection] = {}
    for seen in answer.detections:
        if seen.track_id is None:
            continue
        known = found.get(seen.track_id)
        if known is None or seen.confidence > known.confidence:
            found[seen.track_id] = seen
    return found


def given_answer(answer: QueryResult) -> GivenAnswer:
    """What is compared: names of regions differ from key frame to key frame, words do not."""
    text = ""
    if not answer.detections and "<region" not in answer.text:
        text = " ".join((answer.reply or _MARKUP.sub(" ", answer.text)).split())
    return GivenAnswer(answer.status, text, answer.count)


def trim(kept: OrderedDict[int, V], most: int) -> None:
    """Forget the oldest beyond so many, so that a stream may go on for ever."""
    while len(kept) > most:
        kept.popitem(last=False)
