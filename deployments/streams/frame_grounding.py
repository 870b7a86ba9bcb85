"""One stream's questions to the model: about a frame, or an earlier one that looks the same.

Key frames end here, whichever mode asked: the follower is told what the model said, or that it said
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from agent.clock import steady_ns
from agent.pipeline import FeaturesUnderWay, Grounder, Grounding, QueriesRefused
from agent.streaming.answers import QueryAnswer
from agent.streaming.feature_reuse import FeatureReuse, Reused
from agent.streaming.follower import Keyframe
from agent.streaming.session import Session, StandingQuery
from agent.urgency import Limits, Urgency
from deployments.observability.metrics import Activity
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking
from groundstream.errors import InvalidQuery


@dataclass(frozen=True)
class Grounded:
    """What the stages did for one frame."""

    grounding: Grounding
    answers: list[QueryAnswer]
    """To those queries that still stood when they came."""
    reused: Reused | None = None
    """Whose features stood in for the frame's."""
    refused: dict[str, str] = field(default_factory=dict)
    """Why a query could not be asked, by its id; only where its client does not know of it yet."""


class FrameGrounding:
    """Asks, counts what was asked, and keeps what may be used again."""

    def __init__(
        self,
        session: Session[ArrivedFrame],
        pipeline: Grounder,
        tracking: FrameTracking,
        *,
        reuse_difference: float,
    ) -> None:
        self.activity = Activity()
        self._session = session
        self._pipeline = pipeline
        self._tracking = tracking
        self._reuse = FeatureReuse(reuse_difference)
        self._told: set[StandingQuery] = set()
        """Queries that could not be asked, as their client knows."""

    def left_s(self, arrived: ArrivedFrame) -> float | None:
        """Seconds until any answer about a frame is too old; None: at no time."""
        max_age_s = self._session.policy.max_age_s
        if max_age_s is None:
            return None
        return max_age_s - (steady_ns() - arrived.received_time_ns) / 1e9

    def limits(self, arrived: ArrivedFrame) -> Limits:
        """Of the work on a frame that begins now."""
        return Limits.starting_now(self.left_s(arrived), Urgency.STANDING)

    async def begin(self, arrived: ArrivedFrame, limits: Limits) -> FeaturesUnderWay | None:
        """Start the encoders; None: whether they are needed is known only after tracking."""
        if self._may_reuse(arrived):
            return None
        frame = await arrived.still()
        return self._pipeline.within(limits).begin(frame, boxes=arrived.boxes)

    async def ground(
        self,
        arrived: ArrivedFrame,
        keyframe: Keyframe,
        limits: Limits,
        begun: FeaturesUnderWay | None = None,
    ) -> Grounded:
        """Ask the key frame's queries; `begun`: what `begin` returned for it.

        Queries that cannot be asked are left out, unless that is all of them.

        Raises:
            Exception: what the stages raised; the key frame is given up.
        """
        tracking = self._tracking
        refused: dict[StandingQuery, str] = {}
        try:
            while True:
                try:
                    grounding, reused = await self._asked(arrived, keyframe, limits, begun)
                    break
                except QueriesRefused as error:
                    asked = keyframe.queries
                    refused |= {asked[number]: reason for number, reason in error.reasons.items()}
                    others = tuple(query for query in asked if query not in refused)
                    if not others:
                        raise InvalidQuery(_named(refused)) from None
                    keyframe = replace(keyframe, queries=others)
        except Exception:
            async with tracking.changing:
                tracking.follower.abandon_keyframe(keyframe)
            raise
        async with tracking.changing:
            standing = self._session.queries
            answers = tracking.follower.finish_keyframe(
                keyframe, grounding, standing, refused=tuple(refused)
            )
        unknown = {q.id: reason for q, reason in refused.items() if q not in self._told}
        self._told = ((self._told - set(keyframe.queries)) | set(refused)) & set(standing)
        return Grounded(grounding, answers, reused, unknown)

    async def _asked(
        self,
        arrived: ArrivedFrame,
        keyframe: Keyframe,
        limits: Limits,
        begun: FeaturesUnderWay | None,
    ) -> tuple[Grounding, Reused | None]:
        found = None
        if begun is None and self._may_reuse(arrived):
            found = self._reuse.find(keyframe.sketch)
        frame = await arrived.still() if found is None else found[0]
        grounding = await self._pipeline.within(limits).ground(
            frame,
            [query.task for query in keyframe.queries],
            boxes=arrived.boxes,
            begun=begun,
            expected=self._tracking.follower.expected(keyframe),
        )
        self._count(grounding, len(keyframe.queries))
        if not grounding.cache_hit and arrived.boxes is None:
            self._tracking.propose_s = grounding.timings.propose_s
        if found is not None:
            return grounding, found[1]
        if arrived.boxes is None:
            self._reuse.keep(frame, keyframe.sketch)
        return grounding, None

    def _count(self, grounding: Grounding, num_queries: int) -> None:
        self.activity.num_keyframes += 1
        self.activity.num_answers += num_queries
        self.activity.num_encoded_frames += not grounding.cache_hit

    def _may_reuse(self, arrived: ArrivedFrame) -> bool:
        """Whether an earlier frame's features may stand in for this one's."""
        return self._session.policy.reuse_features and arrived.boxes is None


def _named(refused: dict[StandingQuery, str]) -> str:
    query, reason = next(iter(refused.items()))
    return f"query {query.id!r}: {reason}"
