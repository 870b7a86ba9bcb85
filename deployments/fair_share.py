"""Fair shares of the language model: so many prompts at once, and tenants take turns.

One call may be 16 questions about ten pages of boxes each. Without this it fills the stages' queues
at once, and everybody else is refused. Here its prompts wait at the front end that took the call,
and whoever has fewest under way is next. Knows no queue and no replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

from agent.detections import Proposals
from agent.errors import Overloaded
from agent.features import (
    AuxiliaryFeatures,
    FrameFeatures,
    Generation,
    PrimaryFeatures,
    Stages,
)
from agent.frame import Frame
from agent.prompts import Task
from agent.urgency import Limits
from deployments.access import tenant_or_nobody


class Turns:
    """So many at once; for one event loop."""

    def __init__(self, num_at_once: int) -> None:
        self._num_at_once = num_at_once
        # Some places are for whoever comes next: those that are taken free up one by one.
        self._most_each = max(1, num_at_once * 3 // 4)
        self._under_way: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(self, whose: str, *, within_s: float | None = None) -> AsyncIterator[None]:
        """One place, when it is this owner's turn.

        Raises:
            Overloaded: it was not in time.
        """
        if self._lines.get(whose) or not self._has_room(whose):
            await self._wait(whose, within_s)
        else:
            self._under_way[whose] += 1
        try:
            yield
        finally:
            self._give_back(whose)

    async def _wait(self, whose: str, within_s: float | None) -> None:
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(whose, deque()).append(turn)
        try:
            async with asyncio.timeout(within_s):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._give_back(whose)  # It came at the last moment.
            else:
                self._leave(whose, turn)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    "the deadline passed while the question waited behind others of your own"
                ) from None
            raise

    def _has_room(self, whose: str) -> bool:
        total = sum(self._under_way.values())
        return total < self._num_at_once and self._under_way[whose] < self._most_each

    def _give_back(self, whose: str) -> None:
        self._under_way[whose] -= 1
        if not self._under_way[whose]:
            del self._under_way[whose]
        while next_one := self._next():
            turn = self._lines[next_one].popleft()
            if not self._lines[next_one]:
                del self._lines[next_one]
            else:
                self._lines.move_to_end(next_one)
            if not turn.done():
                self._under_way[next_one] += 1
                turn.set_result(None)

    def _next(self) -> str | None:
        """Of those that wait and may go: who has fewest under way, then who waited longest."""
        waiting = [whose for whose in self._lines if self._has_room(whose)]
        return min(waiting, key=lambda whose: self._under_way[whose], default=None)

    def _leave(self, whose: str, turn: asyncio.Future[None]) -> None:
        line = self._lines.get(whose)
        if line is not None:
            with contextlib.suppress(ValueError):
                line.remove(turn)
            if not line:
                del self._lines[whose]


class FairStages:
    """Stages whose language model is shared by turns."""

    def __init__(self, stages: Stages, turns: Turns, limits: Limits | None = None) -> None:
        self._stages = stages
        self._turns = turns
        self._limits = limits

    @property
    def has_auxiliary_encoder(self) -> bool:
        """As of the stages themselves."""
        return self._stages.has_auxiliary_encoder

    def within(self, limits: Limits) -> FairStages:
        """The same for one call's work; what waits for its turn too long is refused."""
        return FairStages(self._stages.within(limits), self._turns, limits)

    def propose(self, frame: Frame) -> Awaitable[Proposals]:
        """As of the stages themselves."""
        return self._stages.propose(frame)

    def resolved(self, proposals: Proposals) -> Awaitable[Proposals]:
        """As of the stages themselves."""
        return self._stages.resolved(proposals)

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """As of the stages themselves."""
        return await self._stages.encode_primary(frame, proposals)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """As of the stages themselves."""
        return await self._stages.encode_auxiliary(frame, proposals)

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """In turn."""
        async with self._turn():
            return await self._stages.answer(features, task)

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """In turn."""
        async with self._turn():
            pieces = self._stages.write_answer(features, task)
            try:
                async for piece in pieces:
                    yield piece
            finally:
                # Whoever goes away in the middle takes the stage's work along.
                if isinstance(pieces, AsyncGenerator):
                    await pieces.aclose()

    def _turn(self) -> contextlib.AbstractAsyncContextManager[None]:
        left_s = math.inf if self._limits is None else self._limits.left_s
        within_s = None if math.isinf(left_s) else left_s
        return self._turns.turn(tenant_or_nobody(), within_s=within_s)
