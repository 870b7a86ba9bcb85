"""What every stage replica has: one agent object and one thread for its forward passes.

The event loop stays free while a model computes, and forward passes of one replica never
overlap. Plain classes: `deployments/app.py` turns them into deployments.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from agent.batching import Batcher, batch_limit
from agent.detections import Proposals
from agent.errors import SettingsError
from agent.frame import Frame

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
    """Holds the stage and runs its blocking methods one at a time."""

    batched: str | None = None
    """The stage's method that takes a list of frames."""

    def __init__(
        self,
        factory: str,
        model: str,
        device: str,
        num_threads: int,
        max_batch_frames: int | None = None,
        **options: object,
    ) -> None:
        self.stage: Any = load_factory(factory).from_pretrained(
            model, device=device, num_threads=num_threads, **options
        )
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="stage")
        if self.batched is not None:
            self.frames: Batcher[Frame, Any] = Batcher(
                getattr(self.stage, self.batched),
                self._thread,
                limit=batch_limit(device, max_batch_frames),
            )

    async def run(self, method: Callable[..., T], *arguments: Any) -> T:
        """A blocking call in the replica's own thread, after those already waiting."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, method, *arguments)


class EncoderReplica(StageReplica):
    """An encoder computes its maps at once and pools them when the boxes arrive."""

    batched = "start"

    async def encode(self, frame: Frame, pending: dict[str, Awaitable[Proposals]]) -> Any:
        """Features of every box.

        Args:
            frame: the picture.
            pending: the boxes under "proposals", as a result that may not be there yet. In a
                dict, because Ray would wait for a bare one before it starts this method.
        """
        maps, proposals = await asyncio.gather(
            asyncio.wrap_future(self.frames.submit(frame)), _wait(pending["proposals"])
        )
        return await self.run(self.stage.pool, maps, proposals)


async def _wait(pending: Awaitable[Proposals]) -> Proposals:
    # Boxes that the client sent are there already.
    return pending if isinstance(pending, Proposals) else await pending
