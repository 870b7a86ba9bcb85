"""The front end: our own gRPC server inside a Serve replica, in front of the stages.

Starts what its RPCs need, warms the stages up, and drains; runs no model. Several replicas of one
node share the port. What the RPCs do is in `deployments/front_end/vision_agent.py`.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import logging
import secrets
import sys
from dataclasses import replace
from typing import Any

import cv2
import numpy as np
from grpc_health.v1 import health, health_pb2
from ray.serve.handle import DeploymentHandle

from agent.frame import frame_from_rgb
from agent.model_directory import find_model, has_auxiliary_encoder, has_proposal_network
from agent.prompts import Task
from agent.quotas import open_quotas
from agent.settings import ServiceSettings
from agent.streaming.session_store import open_session_store
from agent.urgency import Limits
from deployments.autoscaling import OPEN_STREAMS
from deployments.fair_queue import FairQueue
from deployments.front_end.access import Access, open_access
from deployments.front_end.fair_share import FairGrounder
from deployments.front_end.server import LIVE, SERVICE_NAME, drain_server, open_server
from deployments.front_end.vision_agent import VisionAgent
from deployments.observability.logs import configure_logs
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.metrics_page import MetricsPage, Sources
from deployments.observability.stage_meter import StageMeters
from deployments.observability.tracing import open_tracing
from deployments.process_resources import MemoryTrimmer, freeze_startup_objects, unmap_large_blocks
from deployments.stages.remote_pipeline import RemotePipeline
from deployments.stages.requests import revision_of
from deployments.wire import messages
from deployments.wire.message_bounds import Counts

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


def _version() -> str:
    """The installed version; a checkout on PYTHONPATH has none."""
    try:
        return importlib.metadata.version("groundstream")
    except importlib.metadata.PackageNotFoundError:
        return "unreleased"
