"""How one client wants its stream to be answered. Values only; knows no wire and no session."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum


class DropPolicy(Enum):
    """Which frames go when they come faster than they are answered."""

    LATEST_WINS = "latest_wins"
    OLDEST_WINS = "oldest_wins"
    LOSSLESS = "lossless"


class AnswerMode(Enum):
    """Who answers a frame."""

    FOLLOW = "follow"
    """The tracker, at once; the language model answers key frames behind it."""
    GROUND = "ground"
    """The language model, every frame that is taken."""


class Priority(IntEnum):
    """How much one frame matters."""

    LOW = 0
    """The first to go; never a key frame."""
    NORMAL = 1
    HIGH = 2
    """Must become a key frame; only another HIGH frame may supersede it."""


@dataclass(frozen=True)
class StreamPolicy:
    """What a client may choose for its stream."""

    drop: DropPolicy = DropPolicy.LATEST_WINS
    mode: AnswerMode = AnswerMode.FOLLOW
    window: int = 8
    """Frames that may wait (OLDEST_WINS, LOSSLESS)."""
    max_age_s: float | None = None
    """An answer whose evidence is older is EXPIRED; None: any age will do."""
    ack_window: int | None = None
    """Results under way that the client has not acknowledged, at most; None: no limit."""
    reuse_features: bool = False
    """The features of an earlier frame may stand in for those of one that barely changed."""
