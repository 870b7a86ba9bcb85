"""The language deployment: region features and a question in, an answer out."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterator

from agent.features import FrameFeatures, Generation
from agent.prompts import Task
from agent.urgency import Limits
from agent.written_text import written_in_thread
from deployments.out_of_memory import memory_errors_typed
from deployments.stage_queue import Served
from deployments.stage_replica import StageReplica


class Language(StageReplica):
    """One `agent.generation.LanguageStage`, whose engine answers concurrent calls together.

    How long a caller waits, and how urgent it is, stands in the task's `patience_s`.
    """

    _num_under_way = 0

    async def answer(
        self, features: FrameFeatures | None, task: Task, model: str = ""
    ) -> Served[Generation]:
        """What the model writes about one frame and one question.

        Raises:
            StageUnavailable: this replica has another `model`.
        """
        self.check_model(model)
        with self._under_way() as served:
            generation: Generation = await self._written(features, task)
            return served(generation)

    async def write_answer(
        self, features: FrameFeatures, task: Task, model: str = ""
    ) -> AsyncIterator[str | Served[Generation]]:
        """The same, its text as it is written."""
        self.check_model(model)
        written = written_in_thread(lambda on_text: self._written(features, task, on_text))
        with self._under_way() as served:
            async for piece in written:
                yield piece if isinstance(piece, str) else served(piece)

    @contextlib.contextmanager
    def _under_way(self) -> Iterator[Callable[[Generation], Served[Generation]]]:
        """Counts the answers that the engine writes together; signs one with what it took."""
        started_s = time.monotonic()
        self._num_under_way += 1
        num_together = self._num_under_way
        try:
            yield lambda generation: self.signed(
                Served(
                    generation,
                    compute_s=time.monotonic() - started_s,
                    num_together=num_together,
                )
            )
        finally:
            self._num_under_way -= 1

    async def _written(self, *arguments: object) -> Generation:
        """Begun in the stage's own thread, whose priority the engine's thread inherits."""
        begun = await self.line.run(self.line.ticket(Limits()), self.stage.start, *arguments)
        with memory_errors_typed():
            generation: Generation = await asyncio.wrap_future(begun.value)
            return generation
