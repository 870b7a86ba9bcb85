"""The language deployment: region features and a question in, an answer out."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from agent.urgency import Limits
from agent.written_text import written_in_thread
from deployments.stage_queue import Served
from deployments.stage_replica import StageReplica


class Language(StageReplica):
    """One `agent.generation.LanguageStage`, whose engine answers concurrent calls together.

    How long a caller waits, and how urgent it is, stands in the task's `patience_s`.
    """

    async def answer(self, features: FrameFeatures | None, task: Task) -> Served[Generation]:
        """What the model writes about one frame and one question."""
        started_s = time.monotonic()
        generation: Generation = await self._written(features, task)
        return Served(generation, compute_s=time.monotonic() - started_s)

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Served[Generation]]:
        """The same, its text as it is written."""
        started_s = time.monotonic()
        written = written_in_thread(lambda on_text: self._written(features, task, on_text))
        async for piece in written:
            if isinstance(piece, str):
                yield piece
            else:
                yield Served(piece, compute_s=time.monotonic() - started_s)

    async def _written(self, *arguments: object) -> Generation:
        """Begun in the stage's own thread, whose priority the engine's thread inherits."""
        begun = await self.line.run(self.line.ticket(Limits()), self.stage.start, *arguments)
        generation: Generation = await asyncio.wrap_future(begun.value)
        return generation
