"""A front end's way to the pipelines of the language replicas; the same protocol as one in process.

A frame travels with all its questions in one call, to the replica that its key leads to; what comes
back are answers, boxes and a summary of how the frame was seen, never its features. Boxes alone,
for the tracker and for scouting, are asked of the proposal stage itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import Any

from ray.serve.handle import DeploymentHandle

from agent.detections import FloatArray, Proposals, validate_boxes
from agent.features import StageTimings
from agent.frame import Frame
from agent.pipeline import FeaturesUnderWay, Grounding
from agent.prompts import Task
from agent.started_tasks import started
from agent.urgency import Limits
from deployments.observability.metrics import ServiceMetrics
from deployments.observability.request_context import request_id
from deployments.observability.stage_meter import Served, StageMeter, WorkDone
from deployments.observability.tracing import stage_spans
from deployments.stages.calls import StageCalls
from deployments.stages.patience import each_in_time, in_time
from deployments.stages.requests import FrameCall, FrameReply, Wanted

_NUMBERS_BYTES = 4096
"""Questions and boxes of a call, about."""


class RemotePipeline:
    """Implements `agent.pipeline.Grounder` over deployment handles and adds up what was done."""

    def __init__(
        self,
        language: DeploymentHandle[Any],
        proposal: DeploymentHandle[Any],
        *,
        metrics: ServiceMetrics,
        timeout_s: float,
        model: str,
    ) -> None:
        """Prepare to call.

        Args:
            language, proposal: the deployments.
            metrics: is told what the stages did.
            timeout_s: see `StageMeter.silence_s`.
            model: revision of the one that replicas are to have; others refuse.
        """
        self._language = StageCalls(language, by_value=True)
        self._proposal = StageCalls(proposal, by_value=True)
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._model = model
        self._tenant = ""
        self._limits = Limits()

    def within(self, limits: Limits) -> RemotePipeline:
        """The same for one call, with its deadline and urgency."""
        bound = copy.copy(self)
        bound._limits = limits
        return bound

    def for_tenant(self, tenant: str) -> RemotePipeline:
        """The same under keys of the tenant's own."""
        bound = copy.copy(self)
        bound._tenant = tenant
        return bound

    def begin(self, frame: Frame, *, boxes: FloatArray | None = None) -> FeaturesUnderWay:
        """Send a frame ahead of its questions; they follow without its bytes."""
        timings, started_s = StageTimings(), time.perf_counter()
        call = self._call(frame, (), boxes)
        return FeaturesUnderWay(started(self._replied("prepare", call)), timings, started_s)

    async def ground(
        self,
        frame: Frame,
        tasks: list[Task],
        *,
        boxes: FloatArray | None = None,
        begun: FeaturesUnderWay | None = None,
        expected: Sequence[FloatArray | None] | None = None,
    ) -> Grounding:
        """See `Pipeline.ground`; raises the same."""
        if boxes is not None:
            validate_boxes(boxes, width=frame.width, height=frame.height)
        started_s = time.perf_counter() if begun is None else begun.started_s
        call = self._call(frame, tasks, boxes, expected)
        if begun is None:
            grounding = _grounding(await self._replied("ground", call))
        else:
            grounding = await self._ground_begun(call, begun)
        total_s = time.perf_counter() - started_s
        timings = dataclasses.replace(grounding.timings, total_s=total_s)
        return dataclasses.replace(grounding, timings=timings)

    async def _ground_begun(self, call: FrameCall, begun: FeaturesUnderWay) -> Grounding:
        without = dataclasses.replace(call.frame, encoded=b"")
        reply = await self._replied("ground", dataclasses.replace(call, frame=without))
        if reply.is_frame_needed:
            # The frame and its questions went to different replicas: one of them is new or gone.
            return _grounding(await self._replied("ground", call))
        grounding = _grounding(reply)
        first: FrameReply = await begun.result
        assert first.timings is not None
        timings = dataclasses.replace(first.timings, language_s=grounding.timings.language_s)
        return dataclasses.replace(grounding, timings=timings, cache_hit=first.cache_hit)

    async def ask(
        self, frame: Frame, task: Task, *, boxes: FloatArray | None = None
    ) -> AsyncIterator[str | Grounding]:
        """See `Pipeline.ask`."""
        started_s, meter = time.perf_counter(), self._metrics.meters.language
        call, began_ns = self._call(frame, (task,), boxes), time.time_ns()
        pieces = self._language.stream(
            "ask", call, session=self._session(call), num_bytes=_size(call)
        )
        limits, timeout_s = self._limits, self._timeout_s
        async with contextlib.aclosing(pieces):  # type: ignore[type-var]
            with in_time(meter, limits, timeout_s):
                async for piece in each_in_time(pieces, meter, limits, timeout_s):
                    if isinstance(piece, str):
                        yield piece
                        continue
                    self._book(piece, began_ns)
                    grounding = _grounding(piece)
                    timings = dataclasses.replace(
                        grounding.timings, total_s=time.perf_counter() - started_s
                    )
                    yield dataclasses.replace(grounding, timings=timings)

    async def propose(self, frame: Frame) -> Proposals:
        """The boxes of a frame and nothing else; raises as `Pipeline.propose`."""
        meter, limits, began_s = self._metrics.meters.proposal, self._limits, time.monotonic()
        meter.check(limits)
        call = self._proposal.call(
            "propose", frame, self._wanted(), num_bytes=len(frame.encoded),
            attempt_s=meter.attempt_s(),
        )  # fmt: skip
        served: Served[Any] = await self._in_time(meter, meter, call)
        took_s, done = time.monotonic() - began_s, dataclasses.replace(served, value=None)
        self._metrics.note((WorkDone(meter.name, "propose", took_s=took_s, served=done),))
        proposals: Proposals = served.value
        return proposals

    def _call(
        self,
        frame: Frame,
        tasks: Sequence[Task],
        boxes: FloatArray | None,
        expected: Sequence[FloatArray | None] | None = None,
    ) -> FrameCall:
        return FrameCall(
            frame=frame,
            wanted=self._wanted(),
            tasks=tuple(tasks),
            boxes=boxes,
            expected=expected,
            request_id=request_id(),
        )

    def _wanted(self) -> Wanted:
        return Wanted.within(self._limits, self._model, self._tenant)

    def _session(self, call: FrameCall) -> str:
        """Questions about one picture share its prefix and its features."""
        return f"{call.wanted.tenant}/{call.frame.digest}"

    async def _replied(self, method: str, call: FrameCall) -> FrameReply:
        began_ns, meter = time.time_ns(), self._metrics.frames
        with meter.call() as served:
            sent = self._language.call(
                method,
                call,
                session=self._session(call),
                num_bytes=_size(call),
                attempt_s=meter.attempt_s(),
            )
            began_s = time.monotonic()
            language = self._metrics.meters.language
            reply: FrameReply = await self._in_time(language, meter, sent)
            served(Served(None, compute_s=time.monotonic() - began_s))
        self._book(reply, began_ns)
        if reply.error is not None:
            raise reply.error
        return reply

    async def _in_time(self, meter: StageMeter, measured: StageMeter, call: Awaitable[Any]) -> Any:
        """What a call of a stage returns; `measured` knows how long calls like it take."""
        with in_time(meter, self._limits, self._timeout_s, measured=measured) as silence_s:
            async with asyncio.timeout(silence_s):
                return await call

    def _book(self, reply: FrameReply, began_ns: int) -> None:
        self._metrics.note(reply.work)
        self._metrics.cache += reply.cache
        stage_spans(reply.work, began_ns)


def _grounding(reply: FrameReply) -> Grounding:
    if reply.error is not None:
        raise reply.error
    assert reply.grounding is not None
    return reply.grounding


def _size(call: FrameCall) -> int:
    boxes = 0 if call.boxes is None else call.boxes.nbytes
    return len(call.frame.encoded) + boxes + _NUMBERS_BYTES
