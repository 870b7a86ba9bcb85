"""What a stream says about a frame: answers with boxes that know where they come from.

Values only; knows no wire and no tracker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from agent.streaming.session import Outcome, StandingQuery
from groundstream.enums import AnswerStatus
from groundstream.enums import Source as Source

Box = tuple[float, float, float, float]
_NS_PER_S = 1e9


@dataclass(frozen=True)
class Evidence:
    """The key frame an answer is about."""

    sequence: int
    received_ns: int
    """The service's steady clock (`agent.clock`) when it came."""

    def age_s(self, now_ns: int) -> float:
        """Time since the frame came; never negative, whichever replica it came to."""
        return max(0, now_ns - self.received_ns) / _NS_PER_S


@dataclass(frozen=True)
class Claim:
    """What one answer says about one box."""

    query: StandingQuery
    label: str
    confidence: float
    region: int
    """Index of the proposal among those of the frame of the evidence."""
    objectness: float
    proposal: Box
    """The proposal itself, pixels of the frame of the evidence."""
    evidence: Evidence


@dataclass(frozen=True)
class FollowedBox:
    """One thing in one frame."""

    box: Box
    """Pixels of the frame."""
    track_id: int
    claim: Claim
    source: Source

    @property
    def step(self) -> tuple[Box, ...]:
        """How the proposal became the box: nothing, or one (scale_x, scale_y, offset_x, offset_y).

        x' = scale_x x + offset_x, y' alike.
        """
        if self.box == self.claim.proposal:
            return ()
        (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = self.claim.proposal, self.box
        scale_x = (bx2 - bx1) / (ax2 - ax1) if ax2 > ax1 else 1.0
        scale_y = (by2 - by1) / (ay2 - ay1) if ay2 > ay1 else 1.0
        return ((scale_x, scale_y, bx1 - scale_x * ax1, by1 - scale_y * ay1),)


@dataclass(frozen=True)
class QueryAnswer:
    """One standing query's answer about one frame."""

    query: StandingQuery
    status: AnswerStatus
    source: Source
    text: str = ""
    boxes: tuple[FollowedBox, ...] = ()
    evidence: Evidence | None = None
    """None while nothing is known."""
    num_unknown_regions: int = 0
    num_prefix_tokens_reused: int = 0
    num_passes: int = 0
    reply: str = ""
    """The words of `text`; see `Answer.reply`."""
    thought: str = ""
    count: int | None = None

    def unless_older(self, max_age_s: float | None, now_ns: int) -> QueryAnswer:
        """The answer, or EXPIRED without a word when its evidence is too old.

        Boxes whose own evidence is too old are left out of an answer that is not.
        """
        if max_age_s is None or self.evidence is None:
            return self
        if self.evidence.age_s(now_ns) > max_age_s:
            expired = AnswerStatus.EXPIRED
            return QueryAnswer(self.query, expired, self.source, evidence=self.evidence)
        fresh = tuple(box for box in self.boxes if box.claim.evidence.age_s(now_ns) <= max_age_s)
        if len(fresh) == len(self.boxes):
            return self
        status = self.status if fresh else AnswerStatus.UNSURE
        return replace(self, status=status, boxes=fresh)


def outcome_of(answers: Sequence[QueryAnswer], otherwise: Outcome) -> Outcome:
    """How a frame with these answers ended: expired when there is nothing else in them."""
    if answers and all(answer.status is AnswerStatus.EXPIRED for answer in answers):
        return Outcome.EXPIRED
    return otherwise
