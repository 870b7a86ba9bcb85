"""The vision stages' deployments, and what every stage replica has: a queue and a model's part.

The event loop stays free while a model computes, and forward passes of one replica never
overlap. Plain classes: `deployments/app.py` turns them into deployments. Errors that are meant for
the caller travel as values (`Refused`), so that Serve does not log each as a failure of ours.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import importlib
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar, TypeVar

from ray.exceptions import RayError

from agent.batching import batch_limit
from agent.detections import FloatArray, Proposals
from agent.frame import Frame
from agent.settings import ServiceSettings
from deployments.observability.logs import configure_logs
from deployments.observability.stage_meter import Served
from deployments.process_resources import (
    MemoryReader,
    MemoryTrimmer,
    bound_kernel_caches,
    freeze_startup_objects,
    out_of_memory_as_overloaded,
)
from deployments.stages.queue import StageQueue
from deployments.stages.requests import Refused, Wanted, revision_of
from groundstream.errors import AgentError, SettingsError, StageUnavailable

T = TypeVar("T")
Method = Callable[..., Awaitable[Any]]


def refusing(method: Method) -> Method:
    """The method, returning as `Refused` what it raises for its caller."""

    @functools.wraps(method)
    async def returning(*arguments: object, **named: object) -> Any:
        try:
            return await method(*arguments, **named)
        except AgentError as error:
            return Refused(error)

    return returning


def load_factory(path: str) -> Any:
    """The class named by `module:Class`.

    Raises:
        SettingsError: there is no such module or class.
    """
    module_name, _, class_name = path.partition(":")
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise SettingsError(f"stage class {path!r} cannot be loaded: {error}") from error


class StageReplica:
    """Holds the stage and the queue before it."""

    stage_name: ClassVar[str]
    """What the settings call the stage."""

    def __init__(self, settings: ServiceSettings, **options: object) -> None:
        """Load the stage; `options`: more for its `from_pretrained`."""
        configure_logs(settings.observe.log_format)
        bound_kernel_caches()
        self.stage: Any = load_factory(getattr(settings.stages, self.stage_name)).from_pretrained(
            settings.model,
            device=settings.device,
            num_threads=getattr(settings.num_threads, self.stage_name),
            **options,
        )
        self.max_batch_frames = batch_limit(settings.device, settings.max_batch_frames)
        self.queue = StageQueue()
        self._memory = MemoryReader()
        self._trimmer = MemoryTrimmer()
        self._model_revision = revision_of(settings)
        self._hang_s = settings.stream.stage_hang_s
        freeze_startup_objects()

    def check_health(self) -> None:
        """Serve asks now and then, and starts another replica in place of one that raises.

        Raises:
            StageUnavailable: it computes, and no layer has come to its end for too long.
        """
        # A language stage computes in its engine's thread, not in the queue's.
        inside = getattr(self.stage, "stalled_s", None)
        stalled_s = max(self.queue.stalled_s(), 0.0 if inside is None else inside())
        if stalled_s > self._hang_s:
            raise StageUnavailable(f"no layer has come to its end for {stalled_s:.0f} s")

    def check_model(self, wanted: str) -> None:
        """Let a call pass, unless its caller is of another revision; see `requests.revision_of`.

        While an update goes on, replicas of before and after reach each other. What they would make
        of each other's features is no answer, and would be cached as one; of calls with other
        fields they would make an error of ours.

        Raises:
            StageUnavailable: until the update is over.
        """
        if wanted != self._model_revision:
            raise StageUnavailable("the service is being updated; try again in a few seconds")

    def signed(self, served: Served[T]) -> Served[T]:
        """A result with what the replica holds; the front end's metrics page shows it."""
        return dataclasses.replace(served, memory=self._memory.read())


class Proposal(StageReplica):
    """One `agent.proposer.Proposer`: where might objects be, and what might they be?"""

    stage_name = "proposal"

    @refusing
    async def propose(self, frame: Frame, wanted: Wanted) -> Served[Proposals]:
        """Class-agnostic boxes of one frame, best first.

        Raises (as `Refused`):
            Overloaded: the caller would have waited longer than it wants to.
            StageUnavailable: this replica has another model.
        """
        self.check_model(wanted.model)
        with out_of_memory_as_overloaded():
            served = await self.queue.run_together(
                self.queue.ticket(wanted.limits, wanted.tenant),
                self.stage.propose,
                frame,
                limit=self.max_batch_frames,
            )
        return self.signed(served)

    @refusing
    async def describe(self, frame: Frame, wanted: Wanted, boxes: FloatArray) -> Served[FloatArray]:
        """Class evidence for boxes that others found: (num_boxes, num_classes); as `propose`."""
        self.check_model(wanted.model)
        with out_of_memory_as_overloaded():
            ticket = self.queue.ticket(wanted.limits, wanted.tenant)
            return self.signed(await self.queue.run(ticket, self.stage.describe, frame, boxes))


class _Encoder(StageReplica):
    """An encoder computes its maps at once and pools them when the boxes arrive."""

    @refusing
    async def encode(
        self, frame: Frame, wanted: Wanted, boxes: Proposals | list[Any]
    ) -> Served[Any]:
        """Features of every box.

        Args:
            frame: the picture.
            wanted: see `Wanted`.
            boxes: known ones, or a reference to what the proposal stage will return.

        Raises (as `Refused`):
            Overloaded: the caller would have waited longer than it wants to.
            StageUnavailable: this replica has another model, or the boxes did not come.
        """
        self.check_model(wanted.model)
        ticket = self.queue.ticket(wanted.limits, wanted.tenant)
        started = self.queue.run_together(
            ticket, self.stage.start, frame, limit=self.max_batch_frames
        )
        with out_of_memory_as_overloaded():
            maps, proposals = await asyncio.gather(started, _arrived(boxes))
            pool = self.stage.pool
            pooled: Served[Any] = await self.queue.run(ticket, pool, maps.value, proposals)
        return self.signed(
            Served(
                pooled.value,
                queue_s=maps.queue_s + pooled.queue_s,
                compute_s=maps.compute_s + pooled.compute_s,
                num_together=maps.num_together,
            )
        )


class PrimaryEncoder(_Encoder):
    """One `agent.encoders.PrimaryEncoderStage`; `encode` returns `PrimaryFeatures`."""

    stage_name = "primary_encoder"


class AuxiliaryEncoder(_Encoder):
    """One `agent.encoders.AuxiliaryEncoderStage`; `encode` returns `AuxiliaryFeatures`."""

    stage_name = "auxiliary_encoder"


async def _arrived(boxes: Proposals | list[Any]) -> Proposals:
    if isinstance(boxes, Proposals):
        return boxes
    try:
        # In a list, so that Serve does not wait for it before it sends the call.
        served: Served[Proposals] | Refused = await boxes[0]
    except RayError as error:
        raise StageUnavailable("the boxes did not come") from error
    if isinstance(served, Refused):
        raise served.error
    return served.value
