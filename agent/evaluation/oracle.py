"""Stages that know the truth: what tracking is worth apart from what the model sees.

Proposals are the true boxes, jittered, among distractors; the answer names those of the asked
label, less a share it misses. Region features are one vector per true object plus noise. All
drawn from the frame's number, so that runs repeat.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, Proposals
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.prompts import Task
from agent.urgency import CurrentLimits
from groundstream.errors import InvalidQuery

_WIDTH = 32


@dataclass(frozen=True)
class TrueFrame:
    """What is really in one frame."""

    xyxy: FloatArray
    """(n, 4) pixels."""
    label: tuple[str, ...]
    track_id: NDArray[np.int64]
    """(n,)."""


@dataclass(frozen=True)
class OracleSettings:
    """How good the oracle is."""

    jitter: float = 0.03
    """Standard deviation of each box side, in box sizes."""
    missed: float = 0.05
    """Share of objects that an answer passes over."""
    num_distractors: int = 10
    """Proposals that are nothing."""
    appearance_noise: float = 0.5
    """Length of the noise beside features of length 1."""


class OracleStages:
    """Implements `agent.features.Stages` from the truth."""

    has_auxiliary_encoder = False

    def __init__(self, truth: Mapping[int, TrueFrame], settings: OracleSettings) -> None:
        """Answer about frames by their index.

        Args:
            truth: what is in each frame.
            settings: how good to be.
        """
        self._truth = truth
        self._settings = settings

    def within(self, limits: CurrentLimits) -> OracleStages:
        """These stages; nobody is refused."""
        return self

    def propose(self, frame: Frame) -> Awaitable[Proposals]:
        """True boxes first, then distractors."""
        truth, rng = self._truth[frame.index], np.random.default_rng(frame.index)
        sides = np.tile(truth.xyxy[:, 2:] - truth.xyxy[:, :2], 2)
        jittered = truth.xyxy + rng.normal(0.0, self._settings.jitter, sides.shape) * sides
        corner = rng.uniform(0.0, 0.8, (self._settings.num_distractors, 2))
        extent = rng.uniform(0.05, 0.2, (self._settings.num_distractors, 2))
        size = np.array([frame.width, frame.height])
        distractors = np.hstack([corner, corner + extent]) * np.tile(size, 2)
        xyxy = np.vstack([jittered, distractors]).astype(np.float32)
        return self.resolved(Proposals(xyxy, np.linspace(0.9, 0.1, len(xyxy), dtype=np.float32)))

    def resolved(self, proposals: Proposals) -> Awaitable[Proposals]:
        """A future that is done."""
        future: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        future.set_result(proposals)
        return future

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """One vector per object."""
        regions = self._appearance(frame.index, len(await proposals))
        # The frame's number travels where image tokens would.
        tokens = np.full((1, 1), frame.index, dtype=np.float32)
        return PrimaryFeatures(image_tokens=tokens, grid=(2, 2), regions=regions)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """The same vectors."""
        return AuxiliaryFeatures(self._appearance(frame.index, len(await proposals)))

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """The true boxes of the label, less those it misses."""
        if features is None:
            raise InvalidQuery("the oracle answers about scenes only")
        index = int(features.image_tokens[0, 0])
        rng = np.random.default_rng((index, *task.query.encode()))
        named = [
            region
            for region, label in enumerate(self._truth[index].label)
            if label == task.query and rng.random() >= self._settings.missed
        ]
        tokens = [f"<region{region}>" for region in named]
        pieces = ("<ground>", task.query, "</ground>", "<objects>", *tokens, "</objects>")
        return Generation(
            pieces=pieces,
            probabilities=(0.9,) * len(pieces),
            truncated=False,
            num_prompt_tokens=0,
            num_prefix_tokens_reused=0,
            num_passes=len(pieces),
        )

    async def write_answer(
        self, features: FrameFeatures, task: Task
    ) -> AsyncIterator[str | Generation]:
        """The whole answer at once."""
        yield await self.answer(features, task)

    def _appearance(self, index: int, count: int) -> FloatArray:
        rng = np.random.default_rng((7, index))
        rows = [
            np.random.default_rng((8, int(t))).normal(size=_WIDTH)
            for t in self._truth[index].track_id
        ]
        rows += [rng.normal(size=_WIDTH) for _ in range(count - len(rows))]
        vectors = np.array(rows).reshape(count, _WIDTH)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        noise = rng.normal(size=vectors.shape) / np.sqrt(_WIDTH)
        return np.asarray(vectors + self._settings.appearance_noise * noise, dtype=np.float32)
