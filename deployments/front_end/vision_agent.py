"""The RPCs: single calls, streams, and what the service says of itself.

Knows no server, no Ray, and of the stages only `agent.pipeline.Grounder`.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any, NoReturn

from agent.clock import steady_ns
from agent.pipeline import Grounder
from agent.quotas import Quotas
from agent.settings import ServiceSettings
from agent.streaming.session import Outcome, StandingQuery
from agent.streaming.session_store import SessionStore
from agent.urgency import Limits
from agent.zoom import RegionZoom
from deployments.front_end.access import current_tenant
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.tracing import Tracing, answer_span
from deployments.streams.observers import ObservableStreams
from deployments.streams.scheduler import StreamScheduler
from deployments.streams.video_decoding import DecodingThreads
from deployments.streams.watch_stream import WatchStream
from deployments.wire import messages, zoom_messages
from deployments.wire.frame_reading import receive_frame
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import Failure, end_with_status, failure_of
from groundstream.errors import InvalidQuery
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc


class VisionAgent(pb_grpc.VisionAgentServicer):  # type: ignore[misc]
    """The RPCs of `protos/vision_agent.proto`; everything they need is handed in."""

    def __init__(
        self,
        pipeline: Grounder,
        settings: ServiceSettings,
        metrics: ServiceMetrics,
        capabilities: pb.Capabilities,
        store: SessionStore,
        quotas: Quotas,
        tracing: Tracing,
    ) -> None:
        self.draining = asyncio.Event()
        """Set it and every open stream tells its client to go elsewhere."""
        self._pipeline = pipeline
        self._settings = settings
        self._metrics = metrics
        self._capabilities = capabilities
        self._store = store
        self._quotas = quotas
        self._tracing = tracing
        self.scheduler = StreamScheduler(settings.stream.sharing)
        self.decoding = DecodingThreads(settings.stream.video, settings.frame)
        self._observable = ObservableStreams(allowed=settings.server.observe)

    async def Ground(self, request: pb.GroundRequest, context: Any) -> pb.GroundResponse:
        """One picture, some questions."""
        async with self._one_off(context, "ground"):
            result = await self._ground(request, context.time_remaining())
        return pb.GroundResponse(result=result)

    async def GroundAnytime(self, request: pb.GroundAnytimeRequest, context: Any) -> None:
        """The same, at once and then better."""
        async with self._one_off(context, "ground"):
            async for result in self._revisions(request, context.time_remaining()):
                await context.write(pb.GroundAnytimeResponse(result=result))

    async def Ask(self, request: pb.AskRequest, context: Any) -> None:
        """One picture, one question, its answer as it is written."""
        async with self._one_off(context, "ask"):
            async for response in self._ask(request, context.time_remaining()):
                await context.write(response)

    @contextlib.asynccontextmanager
    async def _one_off(self, context: Any, name: str) -> AsyncIterator[None]:
        """Streams step back while a one-off call is under way; its answer is one span.

        Counts the call, and ends it with a status where it fails.
        """
        turns = self.scheduler.keyframes
        try:
            turns.num_one_offs += 1
            try:
                with self._tracing.call(context.invocation_metadata() or ()), answer_span(name):
                    yield
            finally:
                turns.num_one_offs -= 1
        except Exception as error:
            await self._end_call(context, error)
        self._metrics.count_call(Outcome.ANSWERED)

    async def _end_call(self, context: Any, error: Exception) -> NoReturn:
        failure = failure_of(error)
        fault = failure.is_clients_fault
        self._metrics.count_call(Outcome.REJECTED if fault else Outcome.FAILED)
        await self._end(context, failure)

    async def _end(self, context: Any, failure: Failure) -> NoReturn:
        self._metrics.failures[failure.code] += 1
        await end_with_status(context, failure)

    async def Watch(self, _requests: Any, context: Any) -> None:
        """A stream of pictures against standing queries."""
        tenant = current_tenant()
        quota = self._quotas.of(tenant)
        with contextlib.ExitStack() as open_stream:
            stream = WatchStream(
                open_stream.enter_context(self._observable.watching(context, tenant)),
                self._pipeline.for_tenant(tenant),
                self._settings,
                self.draining,
                self._store.for_tenant(tenant),
                self.scheduler,
                self.decoding.for_tenant(tenant),
                quota,
                self._metrics.failures,
            )
            open_stream.enter_context(self._metrics.stream(lambda: stream.session.own_books))
            context.works_while(lambda: stream.session.is_answering)
            try:
                with self._tracing.call(context.invocation_metadata() or ()):
                    async with quota.stream():
                        await stream.run()
            except Exception as error:
                # A bug of ours, or a client that went away in the middle of a message.
                await self._end(context, failure_of(error))

    async def GetCapabilities(
        self, _request: pb.GetCapabilitiesRequest, _context: Any
    ) -> pb.Capabilities:
        """What this service can do."""
        return self._capabilities

    async def GetStats(self, _request: pb.GetStatsRequest, _context: Any) -> pb.ServiceStats:
        """What this replica has done."""
        return messages.stats_to_message(
            self._metrics.totals(),
            self._metrics.stage_calls,
            self._metrics.cache,
            self._metrics.meters,
        )

    async def ListStreams(
        self, _request: pb.ListStreamsRequest, context: Any
    ) -> pb.ListStreamsResponse:
        """The streams that the caller may look on at."""
        try:
            calls = self._observable.of_tenant(current_tenant())
        except Exception as error:
            await self._end(context, failure_of(error))
        return pb.ListStreamsResponse(streams=[call.description() for call in calls])

    async def Observe(self, request: pb.ObserveRequest, context: Any) -> None:
        """One of them, as its client sees it."""
        try:
            call = self._observable.find(current_tenant(), request.number)
            context.works_while(lambda: False)  # It waits for others to do something.
            async with contextlib.aclosing(call.responses()) as responses:
                async for response in responses:
                    await context.write(response)
        except Exception as error:
            await self._end(context, failure_of(error))

    async def _ground(self, request: pb.GroundRequest, left_s: float | None) -> pb.FrameResult:
        """The revision that stands when time is up, or when nothing is left to look at."""
        async for result in self._revisions(request, left_s):
            standing = result
        return standing

    async def _revisions(
        self, request: pb.GroundRequest | pb.GroundAnytimeRequest, left_s: float | None
    ) -> AsyncIterator[pb.FrameResult]:
        limits = self._settings.stream
        if not request.queries:
            raise InvalidQuery("the call asks nothing; send at least one query")
        if len(request.queries) > limits.max_queries:
            raise InvalidQuery(
                f"{len(request.queries)} queries, the limit is {limits.max_queries} per call"
            )
        zoom = zoom_messages.zoom_from_message(request.zoom)
        received, queries = await self._read(request.frame, request.queries)
        zoomer, answer_id = self._zoomer(left_s), _answer_id()
        tasks = [query.task for query in queries]
        async for revision in zoomer.look(
            received.frame.still(), tasks, zoom, boxes=received.boxes
        ):
            yield zoom_messages.revision_to_message(
                received, queries, revision, answer_id=answer_id, answered_time_ns=steady_ns()
            )

    async def _ask(
        self, request: pb.AskRequest, left_s: float | None
    ) -> AsyncIterator[pb.AskResponse]:
        zoom = zoom_messages.zoom_from_message(request.zoom)
        received, queries = await self._read(request.frame, [request.query])
        zoomer, answer_id = self._zoomer(left_s), _answer_id()
        async for piece in zoomer.ask(
            received.frame.still(), queries[0].task, zoom, boxes=received.boxes
        ):
            if isinstance(piece, str):
                yield pb.AskResponse(text_delta=piece)
                continue
            result = zoom_messages.revision_to_message(
                received, queries, piece, answer_id=answer_id, answered_time_ns=steady_ns()
            )
            yield pb.AskResponse(result=result)

    def _zoomer(self, left_s: float | None) -> RegionZoom:
        limits = Limits.starting_now(left_s)
        return RegionZoom(
            self._pipeline.for_tenant(current_tenant()).within(limits),
            self._settings.stream.zoom,
            deadline_s=limits.deadline_s,
        )

    async def _read(
        self, frame: pb.Frame, queries: Sequence[pb.Query]
    ) -> tuple[ReceivedFrame, list[StandingQuery]]:
        limit, quota = self._settings.stream.max_new_tokens, self._quotas.of(current_tenant())
        named = messages.tasks_from_messages(queries, max_new_tokens=limit)
        received = await receive_frame(frame, limits=self._settings.frame, quota=quota)
        num_boxes = 0 if received.boxes is None else len(received.boxes)
        await quota.spend_questions(len(named), num_boxes)
        return received, [StandingQuery(name, task, epoch=0) for name, task in named]


def _answer_id() -> str:
    """Names all revisions of one call."""
    return secrets.token_hex(8)
