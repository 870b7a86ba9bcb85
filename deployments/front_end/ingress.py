"""The front end: our own gRPC server inside a Serve replica, in front of the stages.

Holds streams and their sessions, runs no model. Several replicas of one node share the port.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import logging
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from typing import Any, NoReturn

import cv2
import numpy as np
from grpc_health.v1 import health, health_pb2
from ray.serve.handle import DeploymentHandle

from agent.clock import steady_ns
from agent.frame import frame_from_rgb
from agent.model_directory import find_model, has_auxiliary_encoder, has_proposal_network
from agent.pipeline import Grounder
from agent.prompts import Task
from agent.quotas import Quotas, open_quotas
from agent.settings import ServiceSettings
from agent.streaming.session import Outcome, StandingQuery
from agent.streaming.session_store import SessionStore, open_session_store
from agent.urgency import Limits
from agent.zoom import RegionZoom
from deployments.autoscaling import OPEN_STREAMS
from deployments.fair_queue import FairQueue
from deployments.front_end.access import Access, current_tenant, open_access
from deployments.front_end.fair_share import FairGrounder
from deployments.front_end.server import LIVE, SERVICE_NAME, drain_server, open_server
from deployments.observability.logs import configure_logs
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.metrics_page import MetricsPage, Sources
from deployments.observability.stage_meter import StageMeters
from deployments.observability.tracing import Tracing, answer_span, open_tracing
from deployments.process_resources import MemoryTrimmer, freeze_startup_objects, unmap_large_blocks
from deployments.stages.remote_pipeline import RemotePipeline
from deployments.stages.requests import revision_of
from deployments.streams.observers import ObservableStreams
from deployments.streams.scheduler import StreamScheduler
from deployments.streams.video_decoding import DecodingThreads
from deployments.streams.watch_stream import WatchStream
from deployments.wire import messages, zoom_messages
from deployments.wire.frame_reading import receive_frame
from deployments.wire.message_bounds import Counts
from deployments.wire.messages import ReceivedFrame
from deployments.wire.status import Failure, end_with_status, failure_of
from groundstream.errors import InvalidQuery
from groundstream.protos import vision_agent_pb2 as pb
from groundstream.protos import vision_agent_pb2_grpc as pb_grpc

_logger = logging.getLogger(__name__)
_WARM_UP_PAUSE_S = 1.0
_WARM_UP_SIZE = 64
_WARM_UP_BOXES = np.array([[8, 8, 56, 56]], dtype=np.float32)
"""For models without a proposal network, whose clients send boxes too."""
_WARM_UP = Limits()
"""As long as it takes: on a slow machine a pass through a large model takes minutes."""
_WARM_UP_QUESTION = replace(Task.detect("object"), max_new_tokens=1)
"""The longest answer costs a model that never ends it hundreds of passes; one shows as much."""
_REPLY_S = 1.0
_SWITCH_INTERVAL_S = 0.0005


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


class Ingress:
    """One front-end replica: server, health and the way down."""

    async def __init__(  # type: ignore[misc]
        self,
        settings: ServiceSettings,
        language: DeploymentHandle[Any],
        proposal: DeploymentHandle[Any],
    ) -> None:
        configure_logs(settings.observe.log_format)
        _share_processors_kindly()
        self._is_ready = False
        unmap_large_blocks()
        self._trimmer = MemoryTrimmer()
        self._settings = settings
        self._handles = language, proposal
        has_auxiliary = has_auxiliary_encoder(settings.model)
        self._metrics = ServiceMetrics(
            meters=StageMeters() if has_auxiliary else StageMeters(auxiliary_encoder=None)
        )
        model = find_model(
            settings.model,
            proposal_network=settings.proposal_network,
            as_published=settings.as_published,
        )
        capabilities = messages.capabilities_to_message(settings, model, service_version=_version())
        self._store = open_session_store(settings.cache, ttl_s=settings.stream.session.ttl_s)
        self._quotas = open_quotas(settings.access, settings.cache)
        self._tracing = open_tracing(settings.observe, version=_version())
        prompts = FairQueue(settings.stream.sharing.prompts_at_once)
        self._agent = VisionAgent(
            FairGrounder(self._pipeline(self._metrics), prompts),
            settings,
            self._metrics,
            capabilities,
            self._store,
            self._quotas,
            self._tracing,
        )
        self._health = health.aio.HealthServicer()
        self._health_names = ("", SERVICE_NAME, model.name)
        access = open_access(settings)
        counts = Counts(settings.stream.max_queries, settings.frame.max_boxes)
        self._server, _ = open_server(
            settings.server,
            access,
            self._agent,
            self._health,
            counts,
            unread_s=settings.stream.idle_s,
        )
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        # Alive is who answers at all; the other names wait for the stages.
        await self._health.set(LIVE, health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._start_failure = ""
        self._warm_up = asyncio.create_task(self._serve_when_warm())
        observe = settings.observe
        self._page = MetricsPage(
            self._observed(model.name, access),
            host=observe.metrics_host,
            port=observe.metrics_port,
        )

    async def wait_until_serving(self) -> None:
        """Return once a frame has gone all the way."""
        await asyncio.shield(self._warm_up)

    async def start_failure(self) -> str:
        """Why the newest try to send a frame all the way failed; empty: none has failed."""
        return self._start_failure

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve does not see our streams; this is how it learns of them."""
        return {OPEN_STREAMS: float(self._metrics.num_open_streams)}

    async def drain(self) -> None:
        """Take nothing new, warn the clients, and return when their streams have ended."""
        self._warm_up.cancel()
        await self._set_health(health_pb2.HealthCheckResponse.NOT_SERVING)
        await asyncio.gather(
            drain_server(self._server, self._agent.draining, self._settings.server.drain_grace_s),
            # The front end that comes after this one listens at the same port.
            self._page.close(),
        )

    async def __del__(self) -> None:
        """Called by Serve before the replica goes."""
        await self.drain()
        self._trimmer.close()
        self._agent.scheduler.close()
        self._agent.decoding.close()
        await self._store.close()
        await self._quotas.close()
        # It may wait for a collector that does not answer.
        await asyncio.to_thread(self._tracing.close)

    def _observed(self, model: str, access: Access) -> Sources:
        return Sources(
            metrics=self._metrics,
            strain=lambda: self._agent.scheduler.keyframes.strain,
            num_unauthenticated=lambda: access.num_refused,
            is_ready=lambda: self._is_ready,
            is_draining=self._agent.draining.is_set,
            version=_version(),
            model=model,
        )

    def _pipeline(self, metrics: ServiceMetrics) -> RemotePipeline:
        language, proposal = self._handles
        return RemotePipeline(
            language,
            proposal,
            metrics=metrics,
            # Vision and language, each of which the replica itself gives so long.
            timeout_s=2 * self._settings.stream.stage_timeout_s + _REPLY_S,
            model=revision_of(self._settings),
        )

    async def _serve_when_warm(self) -> None:
        """Report health only once a frame has gone all the way; its calls are not counted."""
        grey = np.full((_WARM_UP_SIZE, _WARM_UP_SIZE, 3), 128, dtype=np.uint8)
        frame = frame_from_rgb(grey)
        settings = self._settings
        boxes = None
        if not has_proposal_network(settings.model, settings.proposal_network):
            boxes = _WARM_UP_BOXES
        while True:
            # Of a tenant of its own, so that its features are not known from another start.
            tenant = f"warm-up {secrets.token_hex(8)}"
            pipeline = self._pipeline(ServiceMetrics()).for_tenant(tenant)
            try:
                await pipeline.within(_WARM_UP).ground(frame, [_WARM_UP_QUESTION], boxes=boxes)
                break
            except Exception as error:
                self._start_failure = str(error) or type(error).__name__
                # Not ready, perhaps never: health stays NOT_SERVING and the log says why.
                _logger.exception("warm-up failed; trying again in %.0f s", _WARM_UP_PAUSE_S)
                await asyncio.sleep(_WARM_UP_PAUSE_S)
        freeze_startup_objects()
        self._is_ready = True
        await self._set_health(health_pb2.HealthCheckResponse.SERVING)

    async def _set_health(self, status: int) -> None:
        for name in self._health_names:
            await self._health.set(name, status)


def _share_processors_kindly() -> None:
    """Keep the event loop ahead of the threads that look at pictures."""
    # A thread that computes hands the interpreter over at once, not after 5 ms.
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # Several pictures are looked at side by side; each takes one thread.
    cv2.setNumThreads(1)


def _answer_id() -> str:
    """Names all revisions of one call."""
    return secrets.token_hex(8)


def _version() -> str:
    """The installed version; a checkout on PYTHONPATH has none."""
    try:
        return importlib.metadata.version("groundstream")
    except importlib.metadata.PackageNotFoundError:
        return "unreleased"
