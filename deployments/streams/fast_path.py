"""The fast path of FOLLOW mode: the tracker answers every frame at once from what is known.

Decides with the follower which frames go to the model as well (`deployments/streams/slow_path.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.streaming.keyframe import KeyframeReason
from agent.streaming.policy import Priority
from agent.streaming.session import Session, Work
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking, Tracked
from deployments.streams.responses import ResultWriter
from deployments.streams.scheduler import StreamTurn
from deployments.streams.slow_path import SlowPath


@dataclass(frozen=True)
class FastPath:
    """Answers one stream's frames, one after the other."""

    session: Session[ArrivedFrame]
    tracking: FrameTracking
    turn: StreamTurn
    slow_path: SlowPath
    results: ResultWriter

    async def answer(self, work: Work[ArrivedFrame]) -> None:
        """Track a frame, perhaps send it to the model, and write what the tracker knows.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        try:
            tracked = await self._track(work)
            # Only what was tracked can be compared with later frames.
            is_keyframe = tracked.ahead_s is None and self._send_to_model(work)
        finally:
            # A turn that was taken for a frame of which no key frame came.
            if not self.slow_path.is_busy:
                self.turn.give_back()
        async with self.results.writing:
            answers = self.tracking.follower.answers(
                self.session.queries, ahead_s=tracked.ahead_s or 0.0
            )
            await self.results.write_tracked(work.item, answers, tracked, is_keyframe=is_keyframe)

    async def _track(self, work: Work[ArrivedFrame]) -> Tracked:
        """Move all tracks to this frame, if there is something to move and time for it."""
        if not work.queries:
            return Tracked()  # Nothing is asked, so nothing needs to be followed.
        arrived, follower = work.item, self.tracking.follower
        must = arrived.priority is Priority.HIGH
        if not (must or follower.last or follower.selector.busy):
            # While nothing is known there is nothing to follow, only a first key frame to wait
            # for; its turn is taken before the frame is tracked, and used in `_send_to_model`.
            ahead_s = self.tracking.ahead_s(arrived)
            reason = follower.keyframe_reason(
                work.queries, priority=arrived.priority, ahead_s=ahead_s
            )
            if reason is None or not self._may_start(reason):
                return Tracked(ahead_s=ahead_s)
            must = True
        return await self.tracking.track(arrived, must=must)

    def _send_to_model(self, work: Work[ArrivedFrame]) -> bool:
        """Whether the model answers this frame as well; the frame stays in flight then."""
        priority = work.item.priority
        reason = self.tracking.follower.keyframe_reason(
            work.queries, priority=priority, max_age_s=self.session.policy.max_age_s
        )
        if reason is not None and self._may_start(reason):
            self.slow_path.start(work, reason)
            return True
        if priority is Priority.HIGH and work.queries:
            self.slow_path.put_next(work)
            return True
        return False

    def _may_start(self, reason: KeyframeReason) -> bool:
        """Whether it is this stream's turn; the slow path waits for that of a requested frame."""
        # The selector is free again before the slow path is: that may still wait to have a turn
        # for the next frame, and a second key frame would take both away from it.
        if self.slow_path.is_busy:
            return False
        return reason is KeyframeReason.REQUESTED or self.turn.try_take(reason)
