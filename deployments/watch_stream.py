"""One stream: frames and changes of its queries in, results and the books out.

One task reads, one answers the newest frame, one reports; only one writes at a time. Knows the
wire only through `deployments/messages.py`; knows no Ray and no server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import grpc.aio

from agent.detections import Proposals
from agent.errors import AgentError, InvalidFrame, InvalidQuery, InvalidRequest
from agent.pipeline import Grounding, Pipeline
from agent.settings import ServiceSettings
from agent.streaming.session import Outcome, Session, StandingQuery, Work
from deployments import messages
from deployments.messages import ReceivedFrame
from deployments.status import Failure, failure_of


@dataclass(frozen=True)
class _Arrival:
    """A readable frame and when it entered the inbox."""

    received: ReceivedFrame
    arrived_s: float


class WatchStream:
    """Answers one client's frames until it ends, goes away, or the replica drains."""

    def __init__(
        self, rpc: Any, pipeline: Pipeline, settings: ServiceSettings, draining: asyncio.Event
    ) -> None:
        self._rpc = rpc
        self._pipeline = pipeline
        self._settings = settings
        self._draining = draining
        self._writing = asyncio.Lock()
        self.session: Session[_Arrival] = Session(max_queries=settings.stream.max_queries)

    async def run(self) -> None:
        """Serve the stream to its end; a cancelled stream leaves no task behind."""
        background = [
            asyncio.create_task(work)
            for work in (self._read_all(), self._report_books(), self._announce_drain())
        ]
        try:
            while (work := await self.session.take()) is not None:
                await self._answer(work)
            # Holding the lock, no message under way is cut in two.
            async with self._writing:
                _cancel(background)
        finally:
            _cancel(background)
            ended = await asyncio.gather(*background, return_exceptions=True)
        for error in ended:
            if isinstance(error, Exception):
                raise error
        await self._write(lambda: messages.books_response(self.session.books))

    # ---- reading ----

    async def _read_all(self) -> None:
        try:
            while not self.session.ended:
                message = await self._rpc.read()
                # A half-closed stream says nothing more than one that sent End.
                if message is grpc.aio.EOF or messages.request_kind(message) == "end":
                    break
                await self._accept(message)
        finally:
            self.session.end()

    async def _accept(self, message: Any) -> None:
        match messages.request_kind(message):
            case "frame":
                await self._accept_frame(message.frame)
            case "set_queries" | "put_query" | "remove_query" as kind:
                await self._change_queries(kind, getattr(message, kind))
            case _:
                error = InvalidRequest("the message is empty or of a kind this service lacks")
                await self._send_failure(failure_of(error))

    async def _accept_frame(self, message: Any) -> None:
        try:
            received = messages.frame_from_message(
                message, limits=self._settings.frame, received_time_ns=time.time_ns()
            )
        except InvalidFrame as error:
            self.session.reject()
            await self._send_failure(failure_of(error), sequence=message.sequence)
        else:
            self.session.offer(_Arrival(received, time.perf_counter()))

    async def _change_queries(self, kind: str, message: Any) -> None:
        try:
            epoch = self._apply(kind, message)
        except AgentError as error:
            await self._send_failure(failure_of(error), change_id=message.change_id)
        else:
            ids = self.session.query_ids
            await self._write(lambda: messages.ack_response(epoch, message.change_id, ids))

    def _apply(self, kind: str, message: Any) -> int:
        limit = self._settings.stream.max_new_tokens
        if kind == "set_queries":
            tasks = messages.tasks_from_messages(message.queries, max_new_tokens=limit)
            return self.session.set_queries(tasks)
        if kind == "put_query":
            name = message.query.id
            if not name:
                raise InvalidQuery("PutQuery needs a query id, so that it can be replaced")
            task = messages.named_task_from_message(name, message.query, max_new_tokens=limit)
            return self.session.put_query(name, task)
        return self.session.remove_query(message.query_id)

    # ---- answering ----

    async def _answer(self, work: Work[_Arrival]) -> None:
        received = work.item.received
        queue_s = time.perf_counter() - work.item.arrived_s
        try:
            grounding = await self._ground(received, work.queries)
        except Exception as error:
            failure = failure_of(error)
            outcome = Outcome.REJECTED if failure.is_clients_fault else Outcome.FAILED
            self.session.finish(outcome)
            await self._send_failure(failure, sequence=received.frame.index)
            return
        async with self._writing:
            # Decided while nobody else can write: after an ack no older answer goes out.
            answered = [
                (query, answer)
                for query, answer in zip(work.queries, grounding.answers, strict=True)
                if self.session.stands(query)
            ]
            if work.queries and not answered:
                self.session.finish(Outcome.SUPERSEDED)
                return
            self.session.finish(Outcome.ANSWERED)
            result = messages.result_to_message(
                received,
                answered,
                grounding,
                epoch=work.epoch,
                answered_time_ns=time.time_ns(),
                queue_s=queue_s,
            )
            await self._rpc.write(messages.result_response(result))

    async def _ground(
        self, received: ReceivedFrame, queries: tuple[StandingQuery, ...]
    ) -> Grounding:
        if not queries:
            # Nothing is asked, so nothing needs to be computed.
            return Grounding(answers=(), proposals=Proposals(), cache_hit=False)
        tasks = [query.task for query in queries]
        return await self._pipeline.ground(received.frame, tasks, boxes=received.boxes)

    # ---- writing ----

    async def _write(self, message: Callable[[], Any]) -> None:
        async with self._writing:
            # Built inside the lock, so that books are those of this moment.
            await self._rpc.write(message())

    async def _send_failure(self, failure: Failure, **about: int) -> None:
        await self._write(lambda: messages.failure_response(failure, **about))

    async def _report_books(self) -> None:
        while True:
            await asyncio.sleep(self._settings.stream.stats_interval_s)
            await self._write(lambda: messages.books_response(self.session.books))

    async def _announce_drain(self) -> None:
        await self._draining.wait()
        grace_s = self._settings.server.drain_grace_s
        await self._write(lambda: messages.drain_response("the replica is going away", grace_s))
        # The client may end first; otherwise the stream is ended in good order, not cut.
        await asyncio.sleep(grace_s)
        self.session.end()


def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
