"""How the frames of one stream are answered: at once by the tracker, behind it by the model.

In FOLLOW mode every frame is answered from what is known, and key frames go through the language
model one at a time meanwhile. In GROUND mode the language model answers each frame that is taken.
Moves things between session, follower, pipeline and responses; decides nothing they could decide.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from agent.clock import steady_ns
from agent.errors import InvalidFrame, Overloaded
from agent.parsing import AnswerStatus
from agent.pipeline import FeaturesUnderWay, Grounder, Grounding
from agent.settings import StreamSettings
from agent.streaming.answers import Evidence, QueryAnswer, Source, outcome_of
from agent.streaming.feature_reuse import FeatureReuse, Reused
from agent.streaming.follower import Follower, Keyframe
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.policy import AnswerMode, Priority
from agent.streaming.session import Outcome, Session, Work
from agent.streaming.snapshot import SnapshotWriter
from agent.urgency import Limits, Urgency
from deployments.observability.metrics import Activity
from deployments.observability.tracing import answer_span
from deployments.streams.frame_tracking import Arrival, FrameTracking, Look, ahead_s
from deployments.streams.response_writer import ResponseWriter
from deployments.streams.scheduler import StreamScheduler
from deployments.wire import messages, stream_messages
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import cause_of, failure_of

_HEAD_START_S = 0.004
"""The look waits so long for the frame to be on its way to the stages: it would take the processor
that sends and receives it, and is done long before the features all the same."""


@dataclass(frozen=True)
class _Waiting:
    """A frame of HIGH priority that waits until the language model is free."""

    work: Work[Arrival]
    keyframe: Keyframe


class FrameAnswers:
    """Answers the frames of one session."""

    def __init__(
        self,
        session: Session[Arrival],
        pipeline: Grounder,
        settings: StreamSettings,
        responses: ResponseWriter,
        scheduler: StreamScheduler,
    ) -> None:
        self.follower = Follower(settings.follow)
        """What is known about the scene; replaced when a session is resumed."""
        self.activity = Activity()
        self._snapshots = SnapshotWriter()
        self._session = session
        self._pipeline = pipeline
        self._responses = responses
        self._scheduler = scheduler
        self._looks = FrameTracking(
            pipeline, scheduler, proposal_budget_s=settings.follow.proposal_budget_s
        )
        self._reuse = FeatureReuse(settings.follow.reuse_difference)
        self._holds_turn = False
        """A turn before the model was taken for a frame that has yet to be looked at."""
        self._slow: asyncio.Task[None] | None = None
        self._waiting: _Waiting | None = None

    async def answer(self, work: Work[Arrival]) -> None:
        """Answer one frame; in FOLLOW mode its key frame answer may come after this returns."""
        if self._slow is not None and not self._is_grounding:
            self._slow.result()  # A bug there must not leave the stream without key frames.
        try:
            if self._session.policy.mode is AnswerMode.GROUND:
                await self._answer_in_turn(work)
            else:
                await self._answer_by_tracker(work, await self._look_at(work))
        except InvalidFrame as error:
            self._drop_turn()
            await self._fail(work, error)

    async def settle(self) -> None:
        """Wait until the language model has nothing more to do."""
        while self._slow is not None and self._is_grounding:
            await asyncio.wait([self._slow])
        if self._slow is not None:
            self._slow.result()

    async def snapshot(self) -> bytes:
        """The session as it is between two frames."""
        async with self._looks.changing:
            encode = self._snapshots.take(self._session, self.follower)
        return await asyncio.to_thread(encode)

    async def cancel(self) -> None:
        """Give up what is under way."""
        if self._slow is not None:
            self._slow.cancel()
            await asyncio.gather(self._slow, return_exceptions=True)
        self._scheduler.keyframes.leave(self)

    # ---- the fast path ----

    async def _look_at(self, work: Work[Arrival]) -> Look:
        """Move all tracks to this frame, if there is something to move and time for it.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        if not work.queries:
            return Look()  # Nothing is asked, so nothing needs to be looked at.
        later_s = ahead_s(self.follower, work.item.received)
        if not self._is_worth_a_look(work, later_s):
            return Look(ahead_s=later_s)
        must = self._holds_turn or work.item.received.priority is Priority.HIGH
        return await self._looks.look(self.follower, work.item, must=must)

    def _is_worth_a_look(self, work: Work[Arrival], later_s: float) -> bool:
        """While nothing is known there is nothing to follow, only a first key frame to wait for."""
        priority = work.item.received.priority
        if self.follower.last or self.follower.selector.busy or priority is Priority.HIGH:
            return True
        reason = self.follower.keyframe_reason(work.queries, priority=priority, ahead_s=later_s)
        self._holds_turn = reason is not None and self._may_start(reason)
        return self._holds_turn

    async def _answer_by_tracker(self, work: Work[Arrival], look: Look) -> None:
        received = work.item.received
        # Only what was looked at can be compared with later frames.
        keyframe = self._choose(work) if look.ahead_s is None else None
        self._drop_turn()
        async with self._responses.writing:
            # Decided while nobody else can write: after an ack no older answer goes out.
            queries, now_ns = self._session.queries, steady_ns()
            followed = self.follower.answers(queries, ahead_s=look.ahead_s or 0.0)
            answers = self._fresh(followed, now_ns)
            if keyframe is None:
                self._session.finish(outcome_of(answers, Outcome.TRACKED_ONLY))
            result = messages.result_to_message(
                received,
                [stream_messages.followed_to_message(a, answered_ns=now_ns) for a in answers],
                None,
                epoch=self._session.epoch,
                answered_time_ns=now_ns,
                queue_s=self._queue_s(work, look.took_s),
                follow_s=look.took_s,
            )
            await self._deliver(result)

    def _choose(self, work: Work[Arrival]) -> Keyframe | None:
        """Send this frame to the language model, if it should go there; it stays in flight then."""
        priority = work.item.received.priority
        reason = self.follower.keyframe_reason(
            work.queries, priority=priority, max_age_s=self._session.policy.max_age_s
        )
        if reason is not None and self._may_start(reason):
            keyframe = self._begin(work, reason)
            self.follower.start_keyframe()
            self._slow = asyncio.create_task(self._ground_behind(work, keyframe))
            return keyframe
        if priority is not Priority.HIGH or not work.queries:
            return None
        if self._waiting is not None:
            self.follower.drop_keyframe(self._waiting.keyframe)
            self._session.finish(Outcome.TRACKED_ONLY)
        self._waiting = _Waiting(work, self._begin(work, KeyframeReason.REQUESTED))
        return self._waiting.keyframe

    @property
    def _is_grounding(self) -> bool:
        """Whether the one task behind the stream lives: it looks, waits for its turn or writes."""
        return self._slow is not None and not self._slow.done()

    def _may_start(self, reason: KeyframeReason) -> bool:
        """Whether it is this stream's turn; a frame that must be seen waits for it instead."""
        # The selector is free again before that task is: it may still wait for the frame in
        # `_waiting` to have its turn, and a second task would take both away from it.
        if self._is_grounding:
            return False
        if reason is KeyframeReason.REQUESTED or self._holds_turn:
            self._holds_turn = False
            return True
        return self._scheduler.keyframes.try_take(self, rank=_rank(reason))

    def _drop_turn(self) -> None:
        """Give back a turn that no key frame came of."""
        if self._holds_turn:
            self._holds_turn = False
            self._scheduler.keyframes.give_back(self)

    def _begin(self, work: Work[Arrival], reason: KeyframeReason) -> Keyframe:
        received = work.item.received
        evidence = Evidence(received.frame.index, received.received_time_ns)
        return self.follower.begin_keyframe(evidence, work.queries, reason)

    # ---- the slow path ----

    async def _ground_behind(self, work: Work[Arrival], keyframe: Keyframe) -> None:
        """One key frame after the other, until none waits."""
        turns = self._scheduler.keyframes
        if keyframe.reason is KeyframeReason.REQUESTED:
            await turns.take(self, rank=_rank(keyframe.reason))
        while True:
            try:
                await self._ground_keyframe(work, keyframe)
            finally:
                turns.give_back(self)
            if self._waiting is None:
                return
            await turns.take(self, rank=_rank(KeyframeReason.REQUESTED))
            work, keyframe = self._waiting.work, self._waiting.keyframe
            self._waiting = None
            self.follower.start_keyframe()

    async def _ground_keyframe(self, work: Work[Arrival], keyframe: Keyframe) -> None:
        received = work.item.received
        try:
            with answer_span("keyframe"):
                grounding, reused = await self._ground(received, keyframe, self._limits(received))
        except Exception as error:
            async with self._looks.changing:
                self.follower.abandon_keyframe(keyframe)
            overloaded = isinstance(cause_of(error), Overloaded)
            if overloaded and keyframe.reason is not KeyframeReason.REQUESTED:
                # Nobody asked for this one; the tracker has answered the frame.
                self._session.finish(Outcome.TRACKED_ONLY)
            else:
                await self._fail(work, error)
            return
        async with self._looks.changing:
            answers = self.follower.finish_keyframe(keyframe, grounding, self._session.queries)
        async with self._responses.writing:
            worked_s = grounding.timings.total_s
            result = self._model_result(work, answers, grounding, reused, worked_s)
            if result is not None:
                await self._responses.write(
                    stream_messages.keyframe_response(result, keyframe.reason)
                )

    async def _answer_in_turn(self, work: Work[Arrival]) -> None:
        """By the model, when it is this stream's turn; while it waits, newer frames may come."""
        if not work.queries:
            await self._answer_without_stages(work, [])
            return
        # Turns are by stream: a key frame from before a change to GROUND mode ends first.
        await self.settle()
        turns = self._scheduler.keyframes
        await turns.take(self)
        try:
            if self._is_too_old(work):
                await self._expire(work)
            else:
                await self._answer_by_model(work)
        finally:
            turns.give_back(self)

    async def _answer_by_model(self, work: Work[Arrival]) -> None:
        """The encoders begin at once and the tracks are moved meanwhile.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        received, started_s = work.item.received, time.perf_counter()
        limits, begun = self._limits(received), None
        with answer_span("keyframe"):
            # Whether an earlier frame's features will do is known only after the look.
            if not self._may_reuse(received):
                pipeline = self._pipeline.within(limits)
                begun = pipeline.begin(received.frame, boxes=received.boxes)
            try:
                if begun is not None:
                    await asyncio.wait([begun.result], timeout=_HEAD_START_S)
                look = await self._looks.look(
                    self.follower, work.item, must=True, with_proposals=False
                )
                grounded = await self._ground_or_fail(work, limits, begun)
            finally:
                if begun is not None:
                    begun.result.cancel()
        if grounded is None:
            return
        keyframe, grounding, reused = grounded
        async with self._responses.writing:
            answers = self.follower.finish_keyframe(keyframe, grounding, self._session.queries)
            worked_s = time.perf_counter() - started_s
            result = self._model_result(work, answers, grounding, reused, worked_s, look.took_s)
            if result is not None:
                await self._deliver(result)

    async def _ground_or_fail(
        self, work: Work[Arrival], limits: Limits, begun: FeaturesUnderWay | None
    ) -> tuple[Keyframe, Grounding, Reused | None] | None:
        """None: it could not be answered, and the client was told."""
        keyframe = self._begin(work, KeyframeReason.REFRESH)
        self.follower.start_keyframe()
        try:
            grounding, reused = await self._ground(work.item.received, keyframe, limits, begun)
        except Exception as error:
            self.follower.abandon_keyframe(keyframe)
            await self._fail(work, error)
            return None
        return keyframe, grounding, reused

    def _is_too_old(self, work: Work[Arrival]) -> bool:
        """Whether no answer about this frame could be young enough any more."""
        left_s = self._left_s(work.item.received)
        return left_s is not None and left_s < 0.0

    def _left_s(self, received: ReceivedFrame) -> float | None:
        """Seconds until any answer about a frame is too old; None: at no time."""
        max_age_s = self._session.policy.max_age_s
        if max_age_s is None:
            return None
        return max_age_s - (steady_ns() - received.received_time_ns) / 1e9

    def _limits(self, received: ReceivedFrame) -> Limits:
        return Limits.starting_now(self._left_s(received), Urgency.STANDING)

    async def _expire(self, work: Work[Arrival]) -> None:
        received = work.item.received
        evidence = Evidence(received.frame.index, received.received_time_ns)
        answers = [
            QueryAnswer(query, AnswerStatus.EXPIRED, Source.GROUNDED, evidence=evidence)
            for query in work.queries
        ]
        await self._answer_without_stages(work, answers)

    async def _answer_without_stages(
        self, work: Work[Arrival], answers: Sequence[QueryAnswer]
    ) -> None:
        async with self._responses.writing:
            result = self._model_result(work, answers, None, None)
            if result is not None:
                await self._deliver(result)

    async def _deliver(self, result: Any) -> None:
        """A frame's result, in the order of frames; the caller holds `writing`."""
        self._session.deliver(result.sequence)
        await self._responses.write(stream_messages.result_response(result))

    def _model_result(
        self,
        work: Work[Arrival],
        answers: Sequence[QueryAnswer],
        grounding: Grounding | None,
        reused: Reused | None,
        worked_s: float = 0.0,
        follow_s: float = 0.0,
    ) -> Any:
        """Close the frame's books; returns its result, or None when nobody asks any more.

        `worked_s`: how long it took, without waiting; `follow_s`: how long the look took of it.
        """
        now_ns = steady_ns()
        # The queries may have changed once more since the follower took the answers.
        answers = self._fresh([a for a in answers if self._session.stands(a.query)], now_ns)
        if work.queries and not answers:
            self._session.finish(Outcome.SUPERSEDED)
            return None
        otherwise = Outcome.ANSWERED if work.queries else Outcome.TRACKED_ONLY
        self._session.finish(outcome_of(answers, otherwise))
        return messages.result_to_message(
            work.item.received,
            [stream_messages.followed_to_message(a, answered_ns=now_ns) for a in answers],
            grounding,
            epoch=work.epoch,
            answered_time_ns=now_ns,
            queue_s=self._queue_s(work, worked_s),
            follow_s=follow_s,
            reused=reused,
        )

    async def _ground(
        self,
        received: ReceivedFrame,
        keyframe: Keyframe,
        limits: Limits,
        begun: FeaturesUnderWay | None = None,
    ) -> tuple[Grounding, Reused | None]:
        queries, found = keyframe.queries, None
        if begun is None and self._may_reuse(received):
            found = self._reuse.find(keyframe.sketch)
        grounding = await self._pipeline.within(limits).ground(
            received.frame if found is None else found[0],
            [query.task for query in queries],
            boxes=received.boxes,
            begun=begun,
            expected=self.follower.expected(keyframe),
        )
        self.activity.num_keyframes += 1
        self.activity.num_answers += len(queries)
        self.activity.num_encoded_frames += not grounding.cache_hit
        if not grounding.cache_hit and received.boxes is None:
            self._looks.propose_s = grounding.timings.propose_s
        if found is not None:
            return grounding, found[1]
        if received.boxes is None:
            self._reuse.keep(received.frame, keyframe.sketch)
        return grounding, None

    def _may_reuse(self, received: ReceivedFrame) -> bool:
        """Whether an earlier frame's features may stand in for this one's."""
        return self._session.policy.reuse_features and received.boxes is None

    async def _fail(self, work: Work[Arrival], error: Exception) -> None:
        failure = failure_of(error)
        self._session.finish(Outcome.REJECTED if failure.is_clients_fault else Outcome.FAILED)
        await self._responses.send_failure(failure, sequence=work.item.received.frame.index)

    def _fresh(self, answers: Sequence[QueryAnswer], now_ns: int) -> list[QueryAnswer]:
        max_age_s = self._session.policy.max_age_s
        return [answer.unless_older(max_age_s, now_ns) for answer in answers]

    def _queue_s(self, work: Work[Arrival], worked_s: float) -> float:
        """Time a frame spent waiting: all of it but the work."""
        return max(0.0, time.perf_counter() - work.item.arrived_s - worked_s)


def _rank(reason: KeyframeReason) -> int:
    """Streams that know nothing yet, or were told to look, come before those that know less."""
    urgent = (KeyframeReason.FIRST, KeyframeReason.QUERIES_CHANGED, KeyframeReason.REQUESTED)
    return 0 if reason in urgent else 1
