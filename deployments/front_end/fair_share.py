"""Fair shares of the language model: so many prompts at once, and tenants take turns.

One call may be 16 questions about ten pages of boxes each. Without this it fills the stages' queues
at once, and everybody else is refused. Here its prompts wait at the front end that took the call,
and the tenant with fewest under way is next. Knows no queue and no replica.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass

from agent.detections import FloatArray, Proposals
from agent.frame import Frame
from agent.pipeline import FeaturesUnderWay, Grounder, Grounding
from agent.prompts import Task
from agent.urgency import Limits
from deployments.front_end.access import tenant_or_empty
from groundstream.errors import Overloaded


@dataclass(frozen=True)
class _Waiting:
    places: int
    turn: asyncio.Future[None]


class FairQueue:
    """So many at once; for one event loop."""

    def __init__(self, num_at_once: int) -> None:
        self._num_at_once = num_at_once
        # Some places are left for the next tenant: those that are taken free up one by one.
        self._most_each = max(1, num_at_once * 3 // 4)
        self._under_way: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[_Waiting]] = OrderedDict()

    @contextlib.asynccontextmanager
    async def turn(
        self, owner: str, *, places: int = 1, within_s: float | None = None
    ) -> AsyncIterator[None]:
        """So many places together, when it is this owner's turn.

        Raises:
            Overloaded: it was not in time.
        """
        places = min(places, self._most_each)
        if self._lines or not self._has_room(owner, places):
            await self._wait(owner, places, within_s)
        else:
            self._under_way[owner] += places
        try:
            yield
        finally:
            self._give_back(owner, places)

    async def _wait(self, owner: str, places: int, within_s: float | None) -> None:
        waiting = _Waiting(places, asyncio.get_running_loop().create_future())
        self._lines.setdefault(owner, deque()).append(waiting)
        self._admit()
        try:
            async with asyncio.timeout(within_s):
                await waiting.turn
        except BaseException as error:
            if waiting.turn.done() and not waiting.turn.cancelled():
                self._give_back(owner, places)  # It came at the last moment.
            else:
                self._leave(owner, waiting)
            if isinstance(error, TimeoutError):
                raise Overloaded(
                    "the deadline passed while the question waited behind others of your own"
                ) from None
            raise

    def _has_room(self, owner: str, places: int) -> bool:
        total = sum(self._under_way.values())
        return total + places <= self._num_at_once and self._may_have(owner, places)

    def _may_have(self, owner: str, places: int) -> bool:
        return self._under_way[owner] + places <= self._most_each

    def _give_back(self, owner: str, places: int) -> None:
        self._under_way[owner] -= places
        if not self._under_way[owner]:
            del self._under_way[owner]
        self._admit()

    def _admit(self) -> None:
        """Let in the next, but none before one that needs more places than are free."""
        while (owner := self._next()) is not None:
            first = self._lines[owner][0]
            if not first.turn.done() and not self._has_room(owner, first.places):
                return
            self._lines[owner].popleft()
            if not self._lines[owner]:
                del self._lines[owner]
            else:
                self._lines.move_to_end(owner)
            if not first.turn.done():
                self._under_way[owner] += first.places
                first.turn.set_result(None)

    def _next(self) -> str | None:
        """Of those that wait and may have more: the one with fewest, then the longest waiting."""
        waiting = [
            owner for owner, line in self._lines.items() if self._may_have(owner, line[0].places)
        ]
        return min(waiting, key=lambda owner: self._under_way[owner], default=None)

    def _leave(self, owner: str, waiting: _Waiting) -> None:
        line = self._lines.get(owner)
        if line is not None:
            with contextlib.suppress(ValueError):
                line.remove(waiting)
            if not line:
                del self._lines[owner]
        self._admit()


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
