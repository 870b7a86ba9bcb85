"""A key frame ends, well or badly, only while nobody else changes the follower."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from agent.urgency import Limits
from deployments.streams.frame_grounding import FrameGrounding
from groundstream.errors import StageUnavailable


class Follower:
    """Notes how key frames end."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def expected(self, keyframe: Any) -> tuple[str, ...]:
        return ()

    def finish_keyframe(
        self, keyframe: Any, grounding: Any, queries: Any, *, refused: Any
    ) -> list[Any]:
        self.ends.append("finished")
        return []

    def abandon_keyframe(self, keyframe: Any) -> None:
        self.ends.append("abandoned")


class Pipeline:
    """Answers at once, or not at all."""

    def __init__(self, error: Exception | None) -> None:
        self._error = error

    def within(self, limits: Limits) -> Pipeline:
        return self

    async def ground(self, *arguments: Any, **options: Any) -> Any:
        if self._error is not None:
            raise self._error
        return SimpleNamespace(cache_hit=False, timings=SimpleNamespace(propose_s=0.1))


async def still() -> None:
    """The frame's picture, which nobody looks at here."""


@pytest.mark.parametrize(
    ("error", "end"), [(None, "finished"), (StageUnavailable("gone"), "abandoned")]
)
async def test_a_keyframe_ends_only_while_nobody_changes_the_follower(
    error: Exception | None, end: str
) -> None:
    session: Any = SimpleNamespace(
        policy=SimpleNamespace(reuse_features=False, max_age_s=None), queries=()
    )
    tracking: Any = SimpleNamespace(changing=asyncio.Lock(), follower=Follower(), propose_s=None)
    pipeline: Any = Pipeline(error)
    grounding = FrameGrounding(session, pipeline, tracking, reuse_difference=1.0)
    arrived: Any = SimpleNamespace(still=still, boxes=None)
    keyframe: Any = SimpleNamespace(queries=(), sketch=None)
    async with tracking.changing:
        ending = asyncio.create_task(grounding.ground(arrived, keyframe, Limits()))
        await asyncio.sleep(0.01)
        assert tracking.follower.ends == []
    done = await asyncio.gather(ending, return_exceptions=True)
    assert tracking.follower.ends == [end]
    assert (done[0] is error) == (error is not None)
