"""What every stage replica has: a door for calls, a line, and one agent object behind it.

The event loop stays free while a model computes, and forward passes of one replica never
overlap. Plain classes: `deployments/app.py` turns them into deployments.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Awaitable, Mapping
from typing import Any, TypeVar

import ray

from agent.batching import batch_limit
from agent.detections import Proposals
from agent.errors import SettingsError, StageUnavailable
from agent.frame import Frame
from agent.settings import from_mapping
from agent.stage_settings import StageLimits
from agent.urgency import Limits, Urgency
from deployments.autoscaling import CALLS_UNDER_WAY
from deployments.freed_memory import FreedMemory
from deployments.logs import configure_logs
from deployments.out_of_memory import memory_errors_typed
from deployments.process_memory import MemoryReader
from deployments.settled_objects import settle_objects
from deployments.stage_door import StageDoor
from deployments.stage_queue import Served, StageQueue

T = TypeVar("T")

_DRAIN_S = 60.0
"""For calls under way when a replica goes; Serve itself ends it `graceful_shutdown_timeout_s` after
it told it to go."""


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
    """Holds the stage, the line before it and the door through which calls come in."""

    def __init__(
        self,
        factory: str,
        model: str,
        device: str,
        num_threads: int,
        max_batch_frames: int | None = None,
        model_revision: str = "",
        hang_s: float = 120.0,
        log_format: str = "text",
        **options: object,
    ) -> None:
        configure_logs(log_format)
        self.stage: Any = load_factory(factory).from_pretrained(
            model, device=device, num_threads=num_threads, **options
        )
        self.max_batch_frames = batch_limit(device, max_batch_frames)
        self.line = StageQueue()
        self._memory = MemoryReader()
        self._freed = FreedMemory()
        self._model_revision = model_revision
        self._hang_s = hang_s
        self._door = StageDoor(self)

    async def record_replica_metadata(self) -> dict[str, str]:
        """Open for calls; Serve tells the front ends how to get in."""
        settle_objects()
        return await self._door.open(ray.util.get_node_ip_address())

    def reconfigure(self, user_config: Mapping[str, Any]) -> None:
        """Serve hands over `user_config` at the start, and when it changes.

        Raises:
            SettingsError: it holds something else than `max_calls`.
        """
        self._door.max_calls = from_mapping(StageLimits, user_config, "user_config").max_calls

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Serve does not see the calls that come in by our own door; so it learns of them."""
        return {CALLS_UNDER_WAY: self._door.load.take_mean()}

    def __del__(self) -> Awaitable[None] | None:
        """Called by Serve before the replica goes, when nobody is sent here any more."""
        door = getattr(self, "_door", None)
        return door.close(_DRAIN_S) if door is not None and door.is_open else None

    def check_health(self) -> None:
        """Serve asks now and then, and starts another replica in place of one that raises.

        Raises:
            StageUnavailable: one forward pass has not come to its end for too long.
        """
        # A language stage computes in its engine's thread, not in the line's.
        inside = getattr(self.stage, "stalled_s", None)
        stalled_s = max(self.line.stalled_s(), 0.0 if inside is None else inside())
        if stalled_s > self._hang_s:
            raise StageUnavailable(f"one forward pass has taken {stalled_s:.0f} s and goes on")

    def check_model(self, wanted: str) -> None:
        """Let a call pass, unless its front end, and the other stages it uses, have another model.

        While an update goes on, front ends and stages of before and after reach each other. What
        they would make of each other's features is no answer, and would be cached as one.

        Raises:
            StageUnavailable: until the update is over.
        """
        if wanted != self._model_revision:
            raise StageUnavailable("the model is being replaced; try again in a few seconds")

    def signed(self, served: Served[T]) -> Served[T]:
        """A result with what the replica holds; the front end's metrics page shows it."""
        return dataclasses.replace(served, memory=self._memory.read())


class EncoderReplica(StageReplica):
    """An encoder computes its maps at once and pools them when the boxes arrive."""

    async def encode(
        self,
        frame: Frame,
        left_s: float | None,
        urgency: Urgency,
        model: str,
        proposals: Proposals | Awaitable[Proposals],
    ) -> Served[Any]:
        """Features of every box.

        Args:
            frame: the picture.
            left_s: the caller waits no longer.
            urgency: of the caller.
            model: the caller's, see `check_model`.
            proposals: the boxes, which may not be there yet.

        Raises:
            Overloaded: the caller would have waited longer.
            StageUnavailable: this replica has another model.
        """
        self.check_model(model)
        ticket = self.line.ticket(Limits.starting_now(left_s, urgency))
        started = self.line.run_together(
            ticket, self.stage.start, frame, limit=self.max_batch_frames
        )
        with memory_errors_typed():
            maps, proposals = await asyncio.gather(started, _waited(proposals))
            pool = self.stage.pool
            pooled: Served[Any] = await self.line.run(ticket, pool, maps.value, proposals)
        return self.signed(
            Served(
                pooled.value,
                queue_s=maps.queue_s + pooled.queue_s,
                compute_s=maps.compute_s + pooled.compute_s,
                num_together=maps.num_together,
            )
        )


async def _waited(proposals: Proposals | Awaitable[Proposals]) -> Proposals:
    return proposals if isinstance(proposals, Proposals) else await proposals
