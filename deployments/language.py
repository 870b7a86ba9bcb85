"""The language deployment: region features and a question in, an answer out."""

from __future__ import annotations

from collections.abc import AsyncIterator

from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from agent.written_text import written_in_thread
from deployments.stage_replica import StageReplica


class Language(StageReplica):
    """One `agent.generation.LanguageStage`."""

    async def answer(self, features: FrameFeatures, task: Task) -> Generation:
        """What the model writes about one frame and one question."""
        generation: Generation = await self.run(self.stage.answer, features, task)
        return generation

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """The same, its text as it is written."""
        written = written_in_thread(
            lambda on_text: self.run(self.stage.answer, features, task, on_text)
        )
        async for piece in written:
            yield piece
