"""Fair shares of the language model: so many prompts at once, and tenants take turns.

One call may be 16 questions about ten pages of boxes each. Without this it fills the stages' queues
at once, and everybody else is refused. Here its prompts wait at the front end that took the call,
and the tenant with fewest under way is next (`deployments/fair_queue.py`). Knows no replica.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from agent.detections import FloatArray, Proposals
from agent.frame import Frame
from agent.pipeline import FeaturesUnderWay, Grounder, Grounding
from agent.prompts import Task
from agent.urgency import Limits
from deployments.fair_queue import FairQueue
from deployments.front_end.access import tenant_or_empty


class FairGrounder:
    """A way to the model that tenants share by turns, a place for every question."""

    def __init__(self, grounder: Grounder, turns: FairQueue, limits: Limits | None = None) -> None:
        self._grounder = grounder
        self._turns = turns
        self._limits = limits

    def within(self, limits: Limits) -> FairGrounder:
        """The same for one call's work; what waits for its turn too long is refused."""
        return FairGrounder(self._grounder.within(limits), self._turns, limits)

    def for_tenant(self, tenant: str) -> FairGrounder:
        """The same for a tenant, who shares nothing with others."""
        return FairGrounder(self._grounder.for_tenant(tenant), self._turns, self._limits)

    def begin(self, frame: Frame, *, boxes: FloatArray | None = None) -> FeaturesUnderWay:
        """At once: no question is asked yet."""
        return self._grounder.begin(frame, boxes=boxes)

    async def ground(
        self,
        frame: Frame,
        tasks: list[Task],
        *,
        boxes: FloatArray | None = None,
        begun: FeaturesUnderWay | None = None,
        expected: Sequence[FloatArray | None] | None = None,
    ) -> Grounding:
        """In turn."""
        async with self._turn(len(tasks)):
            return await self._grounder.ground(
                frame, tasks, boxes=boxes, begun=begun, expected=expected
            )

    async def ask(
        self, frame: Frame, task: Task, *, boxes: FloatArray | None = None
    ) -> AsyncIterator[str | Grounding]:
        """In turn."""
        async with self._turn(1):
            pieces = self._grounder.ask(frame, task, boxes=boxes)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                # A caller that goes away in the middle ends the stage's work as well.
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()

    async def propose(self, frame: Frame) -> Proposals:
        """At once: boxes need no language model."""
        return await self._grounder.propose(frame)

    def _turn(self, places: int) -> contextlib.AbstractAsyncContextManager[None]:
        left_s = math.inf if self._limits is None else self._limits.left_s
        within_s = None if math.isinf(left_s) else left_s
        return self._turns.turn(tenant_or_empty(), places=max(1, places), within_s=within_s)
