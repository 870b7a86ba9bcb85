"""Stages without weights: same shape as the real ones, quick, and obedient to their query.

A query that begins with "slow" takes 0.3 s, "crash" raises, "memory" runs out of it, "hang" never
ends, "busy" is refused for want of time, "absent" finds nothing, anything else finds box 0 (COUNT:
all boxes). In one process a query that begins with "held" waits until it is released. They decode
the frame, so a damaged one fails as it should.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from agent.detections import FloatArray, Proposals
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame, RGBArray
from agent.prompts import Task, TaskKind
from agent.stage_settings import EngineSettings
from agent.urgency import CurrentLimits, Limits
from agent.written_text import written_in_thread
from deployments.observability.metrics import CallCounts
from groundstream.errors import Overloaded

NUM_BOXES = 4
COLOURS = 3
SLOW_S = 0.3
HANG_S = 600.0
BUSY_RETRY_S = 0.2
SECRET = "secret detail of the inside"


class FakeStage:
    """Needs no files; a model's `config.json` may say how wide its region features are."""

    def __init__(self, width: int = COLOURS) -> None:
        self.width = width

    @classmethod
    def from_pretrained(
        cls,
        model: str,
        *,
        device: str = "cpu",
        num_threads: int | None = None,
        dtype: str = "auto",
        network: str | None = None,
        compiled: bool = False,
        engine: EngineSettings | None = None,
    ) -> FakeStage:
        """The stage; of its files only the configuration is read, if there is one."""
        path = Path(model) / "config.json"
        config = json.loads(path.read_text()) if path.is_file() else {}
        return cls(config.get("fake_width", COLOURS))


class FakeProposer(FakeStage):
    """Proposes the four quarters of the frame."""

    def propose(self, frames: list[Frame]) -> list[Proposals]:
        """Quarters in reading order, less and less sure."""
        return [_quarters(frame) for frame in frames]


class FakePrimaryEncoder(FakeStage):
    """Mean colours instead of features."""

    def start(self, frames: list[Frame]) -> list[RGBArray]:
        """The decoded pictures."""
        return [frame.rgb() for frame in frames]

    def pool(self, maps: RGBArray, proposals: Proposals) -> PrimaryFeatures:
        """Four image tokens and one vector per box."""
        tokens = np.full((4, 8), maps[0, 0].mean() / 255, dtype=np.float32)
        return PrimaryFeatures(tokens, (4, 4), _colours(maps, proposals, self.width))


class FakeAuxiliaryEncoder(FakeStage):
    """Mean colours instead of features."""

    def start(self, frames: list[Frame]) -> list[RGBArray]:
        """The decoded pictures."""
        return [frame.rgb() for frame in frames]

    def pool(self, maps: RGBArray, proposals: Proposals) -> AuxiliaryFeatures:
        """One vector per box."""
        return AuxiliaryFeatures(_colours(maps, proposals, self.width))


class FakeLanguage(FakeStage):
    """Writes what the query asks it to write."""

    def __init__(self, width: int = COLOURS) -> None:
        super().__init__(width)
        self._threads = ThreadPoolExecutor(max_workers=4, thread_name_prefix="fake-language")
        self._hangs_since_s: float | None = None

    def stalled_s(self) -> float:
        """As the engine says it."""
        since_s = self._hangs_since_s
        return 0.0 if since_s is None else time.monotonic() - since_s

    def start(
        self,
        features: FrameFeatures | None,
        task: Task,
        on_text: Callable[[str], None] | None = None,
    ) -> Future[Generation]:
        """The answer to come."""
        return self._threads.submit(self.answer, features, task, on_text)

    def answer(
        self,
        features: FrameFeatures | None,
        task: Task,
        on_text: Callable[[str], None] | None = None,
    ) -> Generation:
        """See the module's header."""
        generation = self._generation(features, task)
        for piece in generation.pieces if on_text is not None else ():
            on_text(piece)
        return generation

    def _generation(self, features: FrameFeatures | None, task: Task) -> Generation:
        query = task.query
        if features is not None and features.primary_regions.shape[1] != self.width:
            raise RuntimeError("these are the features of another model")
        if query.startswith("crash"):
            raise RuntimeError(SECRET)
        if query.startswith("memory"):
            raise MemoryError("not enough for this one")
        if query.startswith("hang"):
            self._hangs_since_s = time.monotonic()
            time.sleep(HANG_S)
        if query.startswith("busy"):
            raise Overloaded("too much to do", retry_after_s=BUSY_RETRY_S)
        if query.startswith("slow"):
            time.sleep(SLOW_S)
        if task.kind is TaskKind.REGION_CAPTION:
            return _generation(f"thing {task.region}")
        if query.startswith("say "):
            return _generation(query.removeprefix("say "))
        if query.startswith("absent"):
            regions = []
        elif task.kind is TaskKind.COUNT:
            regions = list(range(len(features.proposals)))
        else:
            regions = [0]
        tokens = [f"<region{index}>" for index in regions]
        return _generation("<ground>", query, "</ground>", "<objects>", *tokens, "</objects>")


class FakeStages:
    """The four fakes in this process, as the pipeline wants them."""

    has_auxiliary_encoder = True

    def __init__(self) -> None:
        self.calls = CallCounts()
        self.limits: list[Limits] = []
        self.released = asyncio.Event()
        """Set to have "held" queries answered."""
        self._proposer = FakeProposer()
        self._primary = FakePrimaryEncoder()
        self._auxiliary = FakeAuxiliaryEncoder()
        self._language = FakeLanguage()

    def within(self, limits: CurrentLimits) -> FakeStages:
        """These stages; the limits are noted."""
        self.limits.append(limits.now())
        return self

    def propose(self, frame: Frame) -> Awaitable[Proposals]:
        """A task, which may be awaited many times."""
        self.calls.propose += 1

        async def run() -> Proposals:
            return self._proposer.propose([frame])[0]

        return asyncio.ensure_future(run())

    def resolved(self, proposals: Proposals) -> Awaitable[Proposals]:
        """A task that has the boxes already."""

        async def run() -> Proposals:
            return proposals

        return asyncio.ensure_future(run())

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """See `FakePrimaryEncoder`."""
        self.calls.encode_primary += 1
        return self._primary.pool(self._primary.start([frame])[0], await proposals)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """See `FakeAuxiliaryEncoder`."""
        self.calls.encode_auxiliary += 1
        return self._auxiliary.pool(self._auxiliary.start([frame])[0], await proposals)

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """In a thread, because some queries are slow."""
        self.calls.answer += 1
        if task.query.startswith("held"):
            await self.released.wait()
        return await asyncio.to_thread(self._language.answer, features, task)

    async def until_asked(self, num: int = 1) -> None:
        """Return when so many questions have come."""
        while self.calls.answer < num:
            await asyncio.sleep(0.005)

    def write_answer(self, features: FrameFeatures, task: Task) -> AsyncIterator[str | Generation]:
        """The same, as it is written."""
        self.calls.answer += 1
        return written_in_thread(
            lambda on_text: asyncio.to_thread(self._language.answer, features, task, on_text)
        )


def _generation(*pieces: str) -> Generation:
    return Generation(
        pieces=pieces,
        probabilities=(0.9,) * len(pieces),
        truncated=False,
        num_prompt_tokens=10,
        num_prefix_tokens_reused=0,
        num_passes=1,
    )


def _quarters(frame: Frame) -> Proposals:
    frame.rgb()
    x, y, w, h = frame.width / 2, frame.height / 2, frame.width, frame.height
    boxes = [(0, 0, x, y), (x, 0, w, y), (0, y, x, h), (x, y, w, h)]
    return Proposals(
        np.array(boxes, dtype=np.float32), np.linspace(0.9, 0.6, NUM_BOXES, dtype=np.float32)
    )


def _colours(rgb: RGBArray, proposals: Proposals, width: int) -> FloatArray:
    """The colour at each box's corner, over and over until the feature is wide enough."""
    corners = [rgb[int(y), int(x)] for x, y, _, _ in proposals.xyxy]
    colours = np.array(corners, dtype=np.float32).reshape(-1, COLOURS) / 255
    return np.asarray(colours[:, np.arange(width) % COLOURS], dtype=np.float32)
