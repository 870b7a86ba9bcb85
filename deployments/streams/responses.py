"""The way out of one stream: one message at a time, built at the moment it is sent."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from agent.clock import steady_ns
from agent.streaming.answers import QueryAnswer, outcome_of
from agent.streaming.keyframe import KeyframeReason
from agent.streaming.session import Outcome, Session, Work
from deployments.streams.frame_grounding import Grounded
from deployments.streams.frame_tracking import ArrivedFrame, Tracked
from deployments.wire import messages, stream_messages
from deployments.wire.status import Failure, failure_of
from groundstream.errors import InvalidQuery


class ResponseWriter:
    """Writes to an open call; several tasks share it."""

    def __init__(self, rpc: Any, failures: Counter[str]) -> None:
        """An open call's.

        Args:
            rpc: the call; its writes have a limit of time.
            failures: where errors are counted by the name of their code.
        """
        self._rpc = rpc
        self._failures = failures
        self.writing = asyncio.Lock()
        """Held by the task that decides what goes out next, which may then call `write`."""

    async def write(self, message: Any) -> None:
        """Send a message; the caller holds `writing`.

        Raises:
            StreamIdle: the client has read nothing for too long.
        """
        assert self.writing.locked()
        await self._rpc.write(message)

    async def send(self, build: Callable[[], Any]) -> None:
        """Send what `build` returns once it is its turn, so that books are those of that moment."""
        async with self.writing:
            await self.write(build())

    async def send_failure(self, failure: Failure, **about: int) -> None:
        """Report an error about one item; the stream goes on."""
        self._failures[failure.code] += 1
        await self.send(lambda: stream_messages.failure_response(failure, **about))


class ResultWriter:
    """Closes the books of frames and writes their results; one stream's."""

    def __init__(self, session: Session[ArrivedFrame], responses: ResponseWriter) -> None:
        self._session = session
        self._responses = responses

    @property
    def writing(self) -> asyncio.Lock:
        """Hold it to decide on a result and write it: after an ack no older answer goes out."""
        return self._responses.writing

    async def write_tracked(
        self,
        arrived: ArrivedFrame,
        answers: Sequence[QueryAnswer],
        tracked: Tracked,
        *,
        is_keyframe: bool,
    ) -> None:
        """The tracker's result of a frame; the caller holds `writing`.

        `is_keyframe`: the model has the frame too, and its books are closed then.
        """
        now_ns = steady_ns()
        answers = self._young(answers, now_ns)
        if not is_keyframe:
            self._session.finish(outcome_of(answers, Outcome.TRACKED_ONLY))
        result = messages.result_to_message(
            arrived,
            [stream_messages.followed_to_message(a, answered_ns=now_ns) for a in answers],
            None,
            epoch=self._session.epoch,
            answered_time_ns=now_ns,
            queue_s=_queue_s(arrived, tracked.took_s),
            follow_s=tracked.took_s,
        )
        await self._deliver(result)

    async def write_grounded(
        self,
        work: Work[ArrivedFrame],
        answers: Sequence[QueryAnswer],
        grounded: Grounded | None = None,
        *,
        worked_s: float = 0.0,
        follow_s: float = 0.0,
    ) -> None:
        """The model's result, in the order of frames; the caller holds `writing`.

        Args:
            work: the frame.
            answers: of all queries that were asked.
            grounded: what the stages did for it; None: nothing.
            worked_s: how long it took, without waiting.
            follow_s: how long tracking took of it.
        """
        result = self._model_result(work, answers, grounded, worked_s, follow_s)
        if result is not None:
            await self._deliver(result)

    async def write_keyframe(
        self,
        work: Work[ArrivedFrame],
        grounded: Grounded,
        reason: KeyframeReason,
    ) -> None:
        """The model's later word about a frame that the tracker answered; as `write_grounded`."""
        worked_s = grounded.grounding.timings.total_s
        result = self._model_result(work, grounded.answers, grounded, worked_s, 0.0)
        if result is not None:
            await self._responses.write(stream_messages.keyframe_response(result, reason))

    async def tell_refused(self, arrived: ArrivedFrame, grounded: Grounded) -> None:
        """Tell of queries that could not be asked about a frame; its others are answered.

        The error has no sequence number, for the frame has not failed.
        """
        for name, reason in grounded.refused.items():
            error = InvalidQuery(f"frame {arrived.frame.index}, query {name!r}: {reason}")
            await self._responses.send_failure(failure_of(error))

    async def fail(self, arrived: ArrivedFrame, error: Exception) -> None:
        """Close a frame's books with an error and tell the client."""
        failure = failure_of(error)
        self._session.finish(Outcome.REJECTED if failure.is_clients_fault else Outcome.FAILED)
        await self._responses.send_failure(failure, sequence=arrived.frame.index)

    async def _deliver(self, result: Any) -> None:
        self._session.deliver(result.sequence)
        await self._responses.write(stream_messages.result_response(result))

    def _model_result(
        self,
        work: Work[ArrivedFrame],
        answers: Sequence[QueryAnswer],
        grounded: Grounded | None,
        worked_s: float,
        follow_s: float,
    ) -> Any:
        """Close the frame's books; None: its queries stand no more."""
        now_ns = steady_ns()
        # The queries may have changed once more since the follower took the answers.
        answers = self._young([a for a in answers if self._session.stands(a.query)], now_ns)
        if work.queries and not answers:
            self._session.finish(Outcome.SUPERSEDED)
            return None
        otherwise = Outcome.ANSWERED if work.queries else Outcome.TRACKED_ONLY
        self._session.finish(outcome_of(answers, otherwise))
        return messages.result_to_message(
            work.item,
            [stream_messages.followed_to_message(a, answered_ns=now_ns) for a in answers],
            None if grounded is None else grounded.grounding,
            epoch=work.epoch,
            answered_time_ns=now_ns,
            queue_s=_queue_s(work.item, worked_s),
            follow_s=follow_s,
            reused=None if grounded is None else grounded.reused,
        )

    def _young(self, answers: Sequence[QueryAnswer], now_ns: int) -> list[QueryAnswer]:
        """Answers that are too old for the client become EXPIRED."""
        max_age_s = self._session.policy.max_age_s
        return [answer.unless_older(max_age_s, now_ns) for answer in answers]


def _queue_s(arrived: ArrivedFrame, worked_s: float) -> float:
    """Time a frame spent waiting: all of it but the work."""
    return max(0.0, time.perf_counter() - arrived.arrived_s - worked_s)
