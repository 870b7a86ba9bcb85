"""The four stages in one process: for notebooks, the command line, evaluation and benchmarks.

The service binds the same pipeline to deployment handles instead (`deployments/`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable
from concurrent.futures import ThreadPoolExecutor

from agent.detections import Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.generation import LanguageStage
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.proposer import Proposer
from agent.region_cache import MemoryRegionCache, RegionCache
from agent.urgency import Limits
from agent.written_text import written_in_thread

_DEFAULT_CACHE_BYTES = 256 * 1024 * 1024


class LocalStages:
    """Stage objects behind a small thread pool; counts its calls."""

    def __init__(
        self,
        proposer: Proposer,
        primary: PrimaryEncoderStage,
        auxiliary: AuxiliaryEncoderStage,
        language: LanguageStage,
    ) -> None:
        self._proposer = proposer
        self._primary = primary
        self._auxiliary = auxiliary
        self.language = language
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="stage")
        self.calls: Counter[str] = Counter()

    @classmethod
    def from_pretrained(
        cls,
        model: str = "nano",
        *,
        device: str = "cpu",
        dtype: str = "auto",
        proposal_network: str | None = None,
    ) -> LocalStages:
        """All four stages of a model directory.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        return cls(
            Proposer.from_pretrained(model, device=device, network=proposal_network),
            PrimaryEncoderStage.from_pretrained(model, device=device, dtype=dtype),
            AuxiliaryEncoderStage.from_pretrained(model, device=device, dtype=dtype),
            LanguageStage.from_pretrained(model, device=device, dtype=dtype),
        )

    def within(self, limits: Limits) -> LocalStages:
        """These stages; in one process nobody is refused."""
        return self

    def propose(self, frame: Frame) -> Awaitable[Proposals]:
        """A future; the network runs in a thread."""
        self.calls["propose"] += 1
        loop = asyncio.get_running_loop()
        return loop.run_in_executor(self._threads, lambda: self._proposer.propose([frame])[0])

    def resolved(self, proposals: Proposals) -> Awaitable[Proposals]:
        """A future that is done."""
        future: asyncio.Future[Proposals] = asyncio.get_running_loop().create_future()
        future.set_result(proposals)
        return future

    async def encode_primary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> PrimaryFeatures:
        """Maps at once, pooling when the boxes are there."""
        self.calls["encode_primary"] += 1
        loop = asyncio.get_running_loop()
        maps = await loop.run_in_executor(self._threads, self._primary.start, frame)
        return await loop.run_in_executor(self._threads, self._primary.pool, maps, await proposals)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Maps at once, pooling when the boxes are there."""
        self.calls["encode_auxiliary"] += 1
        loop = asyncio.get_running_loop()
        maps = await loop.run_in_executor(self._threads, self._auxiliary.start, frame)
        return await loop.run_in_executor(
            self._threads, self._auxiliary.pool, maps, await proposals
        )

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """One question; questions about one frame share its prefix."""
        self.calls["answer"] += 1
        return await asyncio.wrap_future(self.language.start(features, task))

    def write_answer(self, features: FrameFeatures, task: Task) -> AsyncIterator[str | Generation]:
        """One question, its text as it is written."""
        self.calls["answer"] += 1
        return written_in_thread(
            lambda on_text: asyncio.wrap_future(self.language.start(features, task, on_text))
        )

    def close(self) -> None:
        """Stop the threads and the engine."""
        self._threads.shutdown(wait=True)
        self.language.close()


def local_pipeline(
    model: str = "nano",
    *,
    device: str = "cpu",
    dtype: str = "auto",
    proposal_network: str | None = None,
    cache: RegionCache | None = None,
) -> Pipeline:
    """A ready pipeline in this process.

    Raises:
        CheckpointMismatch: the model's files are missing or do not fit.
    """
    return Pipeline(
        LocalStages.from_pretrained(
            model, device=device, dtype=dtype, proposal_network=proposal_network
        ),
        cache if cache is not None else MemoryRegionCache(budget_bytes=_DEFAULT_CACHE_BYTES),
        model_digest=find_model(model, proposal_network=proposal_network).digest,
    )
