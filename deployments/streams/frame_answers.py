"""How the frames of one stream are answered, by the mode that its client chose.

In FOLLOW mode every frame is answered at once from what is known, and key frames go through the
model one at a time meanwhile (`follow_mode`). In GROUND mode the model answers each frame that is
taken (`ground_mode`).
"""

from __future__ import annotations

import asyncio

from agent.pipeline import Grounder
from agent.settings import FollowSettings
from agent.streaming.follower import Follower
from agent.streaming.policy import AnswerMode
from agent.streaming.session import Session, Work
from agent.streaming.snapshot import SnapshotWriter
from deployments.observability.metrics import Activity
from deployments.streams.follow_mode import FastPath, SlowPath
from deployments.streams.frame_grounding import FrameGrounding
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking
from deployments.streams.ground_mode import GroundMode
from deployments.streams.responses import ResponseWriter, ResultWriter
from deployments.streams.scheduler import StreamScheduler, StreamTurn
from groundstream.errors import InvalidFrame


class FrameAnswers:
    """Answers the frames of one session."""

    def __init__(
        self,
        session: Session[ArrivedFrame],
        pipeline: Grounder,
        settings: FollowSettings,
        responses: ResponseWriter,
        scheduler: StreamScheduler,
    ) -> None:
        self._session = session
        self._snapshots = SnapshotWriter()
        self._results = ResultWriter(session, responses)
        self._turn = turn = StreamTurn(scheduler.keyframes)
        self._tracking = tracking = FrameTracking(pipeline, scheduler, settings)
        self._grounding = FrameGrounding(
            session, pipeline, tracking, reuse_difference=settings.reuse_difference
        )
        self._slow_path = SlowPath(session, tracking, turn, self._grounding, self._results)
        self._fast_path = FastPath(session, tracking, turn, self._slow_path, self._results)
        self._ground_mode = GroundMode(tracking, turn, self._grounding, self._results)

    @property
    def activity(self) -> Activity:
        """What the model was asked so far."""
        return self._grounding.activity

    @property
    def num_tracks(self) -> int:
        """Objects that are followed."""
        return len(self._tracking.follower.tracker.tracks)

    def resume(self, follower: Follower) -> None:
        """Go on with what an earlier stream of the session knew."""
        self._tracking.follower = follower

    async def answer(self, work: Work[ArrivedFrame]) -> None:
        """Answer one frame; in FOLLOW mode its key frame answer may come after this returns."""
        self._slow_path.check()
        try:
            if self._session.policy.mode is not AnswerMode.GROUND:
                await self._fast_path.answer(work)
                return
            if work.queries:
                # A key frame from before a change to GROUND mode ends first.
                await self._slow_path.settle()
            await self._ground_mode.answer(work)
        except InvalidFrame as error:
            await self._results.fail(work.item, error)

    async def settle(self) -> None:
        """Wait until the model has nothing more to do."""
        await self._slow_path.settle()

    async def snapshot(self) -> bytes:
        """The session as it is between two frames."""
        async with self._tracking.changing:
            encode = self._snapshots.take(self._session, self._tracking.follower)
        return await asyncio.to_thread(encode)

    async def cancel(self) -> None:
        """Give up what is under way."""
        await self._slow_path.cancel()
        self._turn.leave()
