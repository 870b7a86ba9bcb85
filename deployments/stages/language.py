"""The language deployment: a frame and its questions in, answers and boxes out.

A frame's key leads its calls to one replica, which owns the rest of its way: a prefix that is known
needs nothing; else there are its features, in memory or in the cache; else the vision stages are
called. The order is `agent.pipeline`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

from ray.serve.handle import DeploymentHandle

from agent.features import FrameFeatures, Generation, StageTimings
from agent.model_directory import find_model
from agent.pipeline import FrameNotHere, Pipeline
from agent.prompts import Task
from agent.region_cache import CacheStats, open_cache
from agent.settings import ServiceSettings
from agent.urgency import Limits
from agent.written_text import written_in_thread
from deployments.observability.request_context import REQUEST_ID_HEADER, serving_request
from deployments.observability.stage_meter import Served, StageMeters
from deployments.process_resources import out_of_memory_as_overloaded
from deployments.stages.calls import StageCalls
from deployments.stages.remote_stages import RemoteStages, VisionCalls, WorkList
from deployments.stages.requests import FrameCall, FrameReply, revision_of
from deployments.stages.vision import StageReplica
from groundstream.errors import AgentError


class Language(StageReplica):
    """One `agent.generation.LanguageStage`, whose engine answers concurrent calls together."""

    stage_name = "language"

    def __init__(
        self,
        settings: ServiceSettings,
        proposal: DeploymentHandle[Any],
        primary_encoder: DeploymentHandle[Any],
        auxiliary_encoder: DeploymentHandle[Any] | None,
        **options: Any,
    ) -> None:
        super().__init__(settings, **options)
        auxiliary = None if auxiliary_encoder is None else StageCalls(auxiliary_encoder)
        self.meters = StageMeters()
        if auxiliary is None:
            self.meters = StageMeters(auxiliary_encoder=None)
        self._stages = RemoteStages(
            VisionCalls(
                # Encoders that begin early get a reference to its result.
                StageCalls(proposal, by_value=not settings.stream.overlap_stages),
                StageCalls(primary_encoder),
                auxiliary,
            ),
            self,
            meters=self.meters,
            timeout_s=settings.stream.stage_timeout_s,
            overlap=settings.stream.overlap_stages,
            model=revision_of(settings),
        )
        model = find_model(
            settings.model,
            proposal_network=settings.proposal_network,
            as_published=settings.as_published,
        )
        self._cache = open_cache(settings.cache)
        self._told = CacheStats()
        self._pipeline = Pipeline(
            self._stages, self._cache, model_digest=model.digest, rules=model.rules
        )
        self._num_under_way = 0

    async def __del__(self) -> None:
        """Called by Serve before the replica goes."""
        if cache := getattr(self, "_cache", None):
            await cache.close()

    async def prepare(self, call: FrameCall) -> FrameReply:
        """Have a frame's features here when its questions come."""

        async def features(pipeline: Pipeline) -> FrameReply:
            timings = StageTimings()
            _, hit = await pipeline.features(call.frame, boxes=call.boxes, timings=timings)
            return FrameReply(timings=timings, cache_hit=hit)

        return await self._replied(call, features)

    async def ground(self, call: FrameCall) -> FrameReply:
        """The answers to all its questions."""

        async def answers(pipeline: Pipeline) -> FrameReply:
            grounding = await pipeline.ground(
                call.frame,
                list(call.tasks),
                boxes=call.boxes,
                expected=call.expected,
                continued=not call.frame.encoded,
            )
            return FrameReply(dataclasses.replace(grounding, proposals=grounding.proposals.plain()))

        return await self._replied(call, answers)

    async def ask(self, call: FrameCall) -> AsyncIterator[str | FrameReply]:
        """The text of one answer as it is written, then the whole."""
        work = WorkList()
        (task,) = call.tasks
        try:
            with _request(call):
                pipeline = self._pipeline_for(call, work)
                pieces = pipeline.ask(call.frame, task, boxes=call.boxes)
                async with contextlib.aclosing(pieces):  # type: ignore[type-var]
                    async for piece in pieces:
                        if isinstance(piece, str):
                            yield piece
                        else:
                            plain = piece.proposals.plain()
                            grounding = dataclasses.replace(piece, proposals=plain)
                            yield self._with_books(FrameReply(grounding), work)
        except AgentError as error:
            yield self._with_books(FrameReply(error=error), work)

    async def write(self, features: FrameFeatures | None, task: Task) -> Served[Generation]:
        """See `remote_stages.Writer`; how long the caller waits is in the task's `patience_s`."""
        with self._under_way() as served:
            return served(await self._written(features, task))

    async def write_aloud(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Served[Generation]]:
        """The same, its text as it is written."""
        written = written_in_thread(lambda on_text: self._written(features, task, on_text))
        with self._under_way() as served:
            async for piece in written:
                yield piece if isinstance(piece, str) else served(piece)

    async def _replied(
        self, call: FrameCall, work_on: Callable[[Pipeline], Awaitable[FrameReply]]
    ) -> FrameReply:
        work = WorkList()
        with _request(call):
            try:
                reply = await work_on(self._pipeline_for(call, work))
            except FrameNotHere:
                reply = FrameReply(is_frame_needed=True)
            except AgentError as error:
                reply = FrameReply(error=error)
        return self._with_books(reply, work)

    def _pipeline_for(self, call: FrameCall, work: WorkList) -> Pipeline:
        """The pipeline for one call, which notes what the stages do.

        Raises:
            StageUnavailable: this replica has another model.
        """
        self.check_model(call.wanted.model)
        tenant = call.wanted.tenant
        stages = self._stages.noting(work, tenant)
        return self._pipeline.over(stages).for_tenant(tenant).within(call.wanted.limits)

    def _with_books(self, reply: FrameReply, work: WorkList) -> FrameReply:
        stats, told = self._cache.stats, self._told
        self._told = dataclasses.replace(stats)
        return dataclasses.replace(reply, work=tuple(work.done), cache=stats.since(told))

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[Callable[[Generation], Served[Generation]]]:
        """Counts the answers that the engine writes together; signs one with what it took."""
        started_s = time.monotonic()
        self._num_under_way += 1
        num_together = self._num_under_way
        try:
            yield lambda generation: self.signed(
                Served(
                    generation,
                    compute_s=time.monotonic() - started_s,
                    num_together=num_together,
                )
            )
        finally:
            self._num_under_way -= 1

    async def _written(self, *arguments: object) -> Generation:
        """Begun in the stage's own thread, whose priority the engine's thread inherits."""
        begun = await self.queue.run(self.queue.ticket(Limits()), self.stage.start, *arguments)
        with out_of_memory_as_overloaded():
            generation: Generation = await asyncio.wrap_future(begun.value)
            return generation


def _request(call: FrameCall) -> contextlib.AbstractContextManager[str]:
    """The log's lines have the id that the client knows."""
    return serving_request(((REQUEST_ID_HEADER, call.request_id),))
