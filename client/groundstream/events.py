"""What happens on a stream, as plain dataclasses; see `client/types.py` for what it is made of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from groundstream.types import FrameResult, StreamPolicy


@dataclass(frozen=True)
class QueriesAck:
    """The standing queries have changed; from here on no older answer to a changed one comes."""

    epoch: int
    change_id: int
    query_ids: tuple[str, ...]


@dataclass(frozen=True)
class StreamActivity:
    """What the stream did so far, beside its books."""

    num_answers: int = 0
    """Questions the language model answered."""
    num_encoded_frames: int = 0
    num_keyframes: int = 0
    num_unacknowledged: int = 0
    num_tracks: int = 0
    paused: bool = False


@dataclass(frozen=True)
class StreamStats:
    """The stream's books: received is the sum of the other counts."""

    received: int = 0
    answered: int = 0
    """Seen by the language model."""
    superseded: int = 0
    rejected: int = 0
    failed: int = 0
    in_flight: int = 0
    tracked_only: int = 0
    """Answered by the tracker."""
    expired: int = 0
    activity: StreamActivity = StreamActivity()
    ended: bool = False
    """The last event of a connection that the service ended in good order."""

    @property
    def balanced(self) -> bool:
        """True when no frame was lost or counted twice."""
        return adds_up(self)


def adds_up(books: Any) -> bool:
    """Whether every frame is counted in exactly one place; of `StreamStats` or its message."""
    counted = (
        books.answered
        + books.tracked_only
        + books.superseded
        + books.expired
        + books.rejected
        + books.failed
        + books.in_flight
    )
    return bool(books.received == counted)


@dataclass(frozen=True)
class OpenStreamInfo:
    """A stream that may be looked at."""

    number: int
    """Of this front-end replica."""
    age_s: float
    query_ids: tuple[str, ...]
    stats: StreamStats
    """As its client was told last."""


@dataclass(frozen=True)
class Observed:
    """A picture of somebody's stream and what was said about it."""

    encoded: bytes
    result: FrameResult


@dataclass(frozen=True)
class StreamError:
    """One frame or one change failed; the stream goes on."""

    code: str
    message: str
    sequence: int | None = None
    change_id: int | None = None
    request_id: str = ""
    retry_after_ms: float | None = None
    """Trying again may help, but not before so long."""


@dataclass(frozen=True)
class Drain:
    """The server is going away; open a new stream."""

    reason: str
    grace_s: float


@dataclass(frozen=True)
class PolicyAck:
    """The stream's policy has changed; as it now holds, defaults filled in."""

    policy: StreamPolicy
    change_id: int


@dataclass(frozen=True)
class Gap:
    """Frames that were neither answered nor accounted for when a replica went away."""

    num_frames: int
    first_sequence: int
    last_sequence: int


@dataclass(frozen=True)
class StreamOpened:
    """The stream is open, for the first time or again."""

    resume_token: str = field(repr=False)
    """A secret: whoever has it can take the session over."""
    resumed: bool
    """False when the session is new."""
    epoch: int
    query_ids: tuple[str, ...]
    policy: StreamPolicy
    gap: Gap | None = None


@dataclass(frozen=True)
class KeyframeAnswer:
    """What the language model said about a key frame, as soon as it has."""

    result: FrameResult
    reason: str
    """Why this frame was chosen: FIRST, QUERIES_CHANGED, REQUESTED, SCENE_CHANGED,
    TRACK_UNCERTAIN or REFRESH."""


@dataclass(frozen=True)
class Reconnecting:
    """The stream is broken and about to be opened again; see `Reconnect.on_attempt`."""

    attempt: int
    """From 1, since the last message of the service."""
    broken_s: float
    """Since the first failure after that message."""
    reason: str


StreamEvent = (
    FrameResult
    | KeyframeAnswer
    | QueriesAck
    | PolicyAck
    | StreamStats
    | StreamError
    | StreamOpened
    | Drain
)


# ---- what happens at a source, told by `groundstream.video.sources.open_source` ----


@dataclass(frozen=True)
class SourceOpened:
    """Pictures come, for the first time or again."""

    width: int
    height: int
    attempt: int
    """From 1; how many tries it took since the source was lost, or since the start."""
    lost_s: float
    """How long there was no picture."""


@dataclass(frozen=True)
class SourceLost:
    """A live source ended, stalled or refused."""

    reason: str
    attempt: int
    """From 1, in a row without a connection that held for a while."""
    lost_s: float
    """Since the last picture, or since the start."""
    retry_s: float | None
    """It is opened again after so long; None: it is given up, and reading it raises."""


@dataclass(frozen=True)
class SourceResized:
    """From here on its pictures have another size."""

    width: int
    height: int


@dataclass(frozen=True)
class SourceClockJumped:
    """Its times went back, or far ahead; pictures go on at their pace."""

    jump_s: float


@dataclass(frozen=True)
class SourceEnded:
    """No more pictures come, because it ended or was stopped: its books."""

    num_pictures: int
    """Read, of all its connections."""
    num_skipped: int
    """Of these, how many made room for newer ones because the reader was busy."""
    num_damaged: int
    """Packets that could not be decoded."""
    num_lost: int
    """How often a connection was lost."""


SourceEvent = SourceOpened | SourceLost | SourceResized | SourceClockJumped | SourceEnded
