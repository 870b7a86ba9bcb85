"""The language deployment: region features and a question in, an answer out."""

from __future__ import annotations

from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from deployments.stage_replica import StageReplica


class Language(StageReplica):
    """One `agent.generation.LanguageStage`."""

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """What the model writes about one frame and one question."""
        generation: Generation = await self.run(self.stage.answer, features, task)
        return generation
