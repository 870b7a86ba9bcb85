"""How one client wants its stream to be answered. Values only; knows no wire and no session."""

from __future__ import annotations

from dataclasses import dataclass

from groundstream.enums import AnswerMode as AnswerMode
from groundstream.enums import DropPolicy as DropPolicy
from groundstream.enums import Priority as Priority


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
