"""What every stage replica has: one agent object and a line before the thread that runs it.

The event loop stays free while a model computes, and forward passes of one replica never
overlap. Plain classes: `deployments/app.py` turns them into deployments.
"""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from agent.batching import batch_limit
from agent.detections import Proposals
from agent.errors import SettingsError, StageUnavailable
from agent.frame import Frame
from agent.urgency import Limits, Urgency
from deployments.freed_memory import FreedMemory
from deployments.logs import configure_logs
from deployments.out_of_memory import memory_errors_typed
from deployments.process_memory import MemoryReader
from deployments.stage_queue import Served, StageQueue

T = TypeVar("T")


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
    """Holds the stage and the line before it."""

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
        pending: dict[str, Any],
        left_s: float | None = None,
        urgency: Urgency = Urgency.ONE_OFF,
        model: str = "",
    ) -> Served[Any]:
        """Features of every box.

        Args:
            frame: the picture.
            pending: the boxes under "proposals", as a result that may not be there yet. In a
                dict, because Ray would wait for a bare one before it starts this method.
            left_s: the caller waits no longer.
            urgency: of the caller.
            model: the caller's, see `check_model`.

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
            maps, proposals = await asyncio.gather(started, _wait(pending["proposals"]))
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


async def _wait(pending: Proposals | Awaitable[Served[Proposals]]) -> Proposals:
    # Boxes that the client sent are there already.
    return pending if isinstance(pending, Proposals) else (await pending).value
