"""The language deployment: region features and a question in, an answer out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from agent.written_text import written_in_thread
from deployments.stage_replica import StageReplica


class Language(StageReplica):
    """One `agent.generation.LanguageStage`, whose engine answers concurrent calls together."""

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the model writes about one frame and one question."""
        generation: Generation = await asyncio.wrap_future(self.stage.start(features, task))
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """The same, its text as it is written."""
        written = written_in_thread(
            lambda on_text: asyncio.wrap_future(self.stage.start(features, task, on_text))
        )
        async for piece in written:
            yield piece
