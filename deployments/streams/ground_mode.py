"""GROUND mode: the model answers every frame in order, and tracks are moved meanwhile."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from agent.parsing import AnswerStatus
from agent.pipeline import FeaturesUnderWay
from agent.streaming.answers import QueryAnswer, Source
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.session import Work
from agent.urgency import Limits
from deployments.observability.tracing import answer_span
from deployments.streams.frame_grounding import FrameGrounding, Grounded
from deployments.streams.frame_tracking import ArrivedFrame, FrameTracking
from deployments.streams.responses import ResultWriter
from deployments.streams.scheduler import StreamTurn

_HEAD_START_S = 0.004
"""Tracking waits so long for the frame to be on its way to the stages: it would take the processor
that sends and receives it, and is done long before the features all the same."""


@dataclass(frozen=True)
class GroundMode:
    """Answers one stream's frames, one after the other."""

    tracking: FrameTracking
    turn: StreamTurn
    grounding: FrameGrounding
    results: ResultWriter

    async def answer(self, work: Work[ArrivedFrame]) -> None:
        """By the model, when it is this stream's turn; while it waits, newer frames may come.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        if not work.queries:
            async with self.results.writing:
                await self.results.write_grounded(work, [])
            return
        await self.turn.take(KeyframeReason.REFRESH)
        try:
            left_s = self.grounding.left_s(work.item)
            # No answer about this frame could be young enough any more.
            if left_s is not None and left_s < 0.0:
                await self._expire(work)
            else:
                await self._answer_by_model(work)
        finally:
            self.turn.give_back()

    async def _answer_by_model(self, work: Work[ArrivedFrame]) -> None:
        """The encoders begin at once and the tracks are moved meanwhile."""
        started_s = time.perf_counter()
        limits = self.grounding.limits(work.item)
        with answer_span("keyframe"):
            begun = await self.grounding.begin(work.item, limits)
            try:
                if begun is not None:
                    await asyncio.wait([begun.result], timeout=_HEAD_START_S)
                tracked = await self.tracking.track(work.item, must=True, with_proposals=False)
                grounded = await self._grounded_or_fail(work, limits, begun)
            finally:
                if begun is not None:
                    begun.result.cancel()
        if grounded is None:
            return
        await self.results.tell_refused(work.item, grounded)
        async with self.results.writing:
            worked_s = time.perf_counter() - started_s
            await self.results.write_grounded(
                work, grounded.answers, grounded, worked_s=worked_s, follow_s=tracked.took_s
            )

    async def _grounded_or_fail(
        self, work: Work[ArrivedFrame], limits: Limits, begun: FeaturesUnderWay | None
    ) -> Grounded | None:
        """None: the model could not answer, and the client was told."""
        arrived, follower = work.item, self.tracking.follower
        keyframe = follower.begin_keyframe(arrived.evidence, work.queries, KeyframeReason.REFRESH)
        follower.start_keyframe()
        try:
            return await self.grounding.ground(arrived, keyframe, limits, begun)
        except Exception as error:
            await self.results.fail(arrived, error)
            return None

    async def _expire(self, work: Work[ArrivedFrame]) -> None:
        evidence = work.item.evidence
        answers = [
            QueryAnswer(query, AnswerStatus.EXPIRED, Source.GROUNDED, evidence=evidence)
            for query in work.queries
        ]
        async with self.results.writing:
            await self.results.write_grounded(work, answers)
