"""FOLLOW mode: the tracker answers every frame at once, the model key frames behind it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from agent.streaming.follower import Keyframe
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.policy import Priority
from agent.streaming.session import Outcome, Session, Work
from deployments.observability.tracing import answer_span
from deployments.streams.frame_grounding import FrameGrounding
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking, Tracked
from deployments.streams.responses import ResultWriter
from deployments.streams.scheduler import StreamTurn
from deployments.wire.status import cause_of
from groundstream.errors import Overloaded


@dataclass(frozen=True)
class FastPath:
    """The tracker answers one stream's frames, and decides which go to the model as well."""

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


@dataclass(frozen=True)
class _Job:
    """A key frame before the model."""

    work: Work[ArrivedFrame]
    keyframe: Keyframe


class SlowPath:
    """The model's answers: one task that lives while there are key frames; it waits for a turn,
    asks or writes."""

    def __init__(
        self,
        session: Session[ArrivedFrame],
        tracking: FrameTracking,
        turn: StreamTurn,
        grounding: FrameGrounding,
        results: ResultWriter,
    ) -> None:
        self._session = session
        self._tracking = tracking
        self._turn = turn
        self._grounding = grounding
        self._results = results
        self._task: asyncio.Task[None] | None = None
        self._next: _Job | None = None
        """A frame of HIGH priority that came while the model had another."""

    @property
    def is_busy(self) -> bool:
        """Whether its task lives; the stream's turn is this path's then."""
        return self._task is not None and not self._task.done()

    def check(self) -> None:
        """Raise what ended the task: a bug must not leave the stream without key frames."""
        if self._task is not None and self._task.done():
            self._task.result()

    def start(self, work: Work[ArrivedFrame], reason: KeyframeReason) -> None:
        """Answer a key frame; its turn is taken already, but for a requested one."""
        job = self._begin(work, reason)
        self._tracking.follower.start_keyframe()
        self._task = asyncio.create_task(self._run(job))

    def put_next(self, work: Work[ArrivedFrame]) -> None:
        """Answer a requested frame after the one under way; it takes the place of another."""
        if self._next is not None:
            self._tracking.follower.drop_keyframe(self._next.keyframe)
            self._session.finish(Outcome.TRACKED_ONLY)
        self._next = self._begin(work, KeyframeReason.REQUESTED)

    async def settle(self) -> None:
        """Wait until the model has nothing more to do."""
        while self._task is not None and not self._task.done():
            await asyncio.wait([self._task])
        self.check()

    async def cancel(self) -> None:
        """Give up what is under way."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _begin(self, work: Work[ArrivedFrame], reason: KeyframeReason) -> _Job:
        follower = self._tracking.follower
        return _Job(work, follower.begin_keyframe(work.item.evidence, work.queries, reason))

    async def _run(self, job: _Job) -> None:
        """One key frame after the other, until none waits."""
        if job.keyframe.reason is KeyframeReason.REQUESTED:
            await self._turn.take(KeyframeReason.REQUESTED)
        while True:
            try:
                await self._answer(job.work, job.keyframe)
            finally:
                self._turn.give_back()
            if self._next is None:
                return
            await self._turn.take(KeyframeReason.REQUESTED)
            job, self._next = self._next, None
            self._tracking.follower.start_keyframe()

    async def _answer(self, work: Work[ArrivedFrame], keyframe: Keyframe) -> None:
        arrived = work.item
        try:
            with answer_span("keyframe"):
                limits = self._grounding.limits(arrived)
                grounded = await self._grounding.ground(arrived, keyframe, limits)
        except Exception as error:
            overloaded = isinstance(cause_of(error), Overloaded)
            if overloaded and keyframe.reason is not KeyframeReason.REQUESTED:
                # No client asked for this one; the tracker has answered the frame.
                self._session.finish(Outcome.TRACKED_ONLY)
            else:
                await self._results.fail(arrived, error)
            return
        await self._results.tell_refused(arrived, grounded)
        async with self._results.writing:
            await self._results.write_keyframe(work, grounded, keyframe.reason)
