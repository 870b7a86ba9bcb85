"""A model's stages in one process: for notebooks, the command line, evaluation and benchmarks.

The service binds the same pipeline to deployment handles instead (`deployments/`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from agent.batching import Batcher, batch_limit
from agent.detections import Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.features import AuxiliaryFeatures, FrameFeatures, Generation, PrimaryFeatures
from agent.frame import Frame
from agent.generation import LanguageStage
from agent.model_directory import DEFAULT_MODEL, find_model, has_auxiliary_encoder
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.proposer import ProposalEvidence, Proposer
from agent.region_cache import MemoryRegionCache, RegionCache
from agent.stage_settings import EngineSettings
from agent.urgency import CurrentLimits
from agent.written_text import written_in_thread

T = TypeVar("T")

_DEFAULT_CACHE_BYTES = 256 * 1024 * 1024


class LocalStages:
    """Stage objects behind a small thread pool; counts its calls."""

    def __init__(
        self,
        proposer: Proposer,
        primary: PrimaryEncoderStage,
        auxiliary: AuxiliaryEncoderStage | ProposalEvidence,
        language: LanguageStage,
        *,
        max_batch_frames: int = 1,
        max_new_tokens: int | None = None,
    ) -> None:
        self._primary = primary
        self._auxiliary = auxiliary
        self.has_auxiliary_encoder = not isinstance(auxiliary, ProposalEvidence)
        self.language = language
        self._max_new_tokens = max_new_tokens
        self._threads = ThreadPoolExecutor(max_workers=3, thread_name_prefix="stage")
        self._proposals, self._primary_maps, self._auxiliary_maps = (
            Batcher(method, self._threads, limit=max_batch_frames)
            for method in (proposer.propose, primary.start, auxiliary.start)
        )
        self.calls: Counter[str] = Counter()

    @classmethod
    def from_pretrained(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        device: str = "cpu",
        dtype: str = "auto",
        proposal_network: str | None = None,
        engine: EngineSettings | None = None,
        max_batch_frames: int | None = None,
        max_new_tokens: int | None = None,
        as_published: bool = False,
    ) -> LocalStages:
        """All stages of a model directory; one whose proposals bring evidence has no fourth.

        Args:
            model: name or folder.
            device: where all stages compute.
            dtype: type of encoder and language weights (see `ServiceSettings`).
            proposal_network: instead of the model's own.
            engine: bounds of the generation engine.
            max_batch_frames: frames that come together and are seen together; None: what suits
                the device.
            max_new_tokens: longest answer, in place of what each question says.
            as_published: rotary tables and boxes as the published code has them.

        Raises:
            CheckpointMismatch: files are missing or do not fit.
        """
        proposer = Proposer.from_pretrained(
            model, device=device, network=proposal_network, as_published=as_published
        )
        auxiliary: AuxiliaryEncoderStage | ProposalEvidence = ProposalEvidence(proposer)
        if has_auxiliary_encoder(model):
            auxiliary = AuxiliaryEncoderStage.from_pretrained(model, device=device, dtype=dtype)
        return cls(
            proposer,
            PrimaryEncoderStage.from_pretrained(
                model, device=device, dtype=dtype, as_published=as_published
            ),
            auxiliary,
            LanguageStage.from_pretrained(
                model, device=device, dtype=dtype, engine=engine, as_published=as_published
            ),
            max_batch_frames=batch_limit(device, max_batch_frames),
            max_new_tokens=max_new_tokens,
        )

    def within(self, limits: CurrentLimits) -> LocalStages:
        """These stages; in one process nobody is refused."""
        return self

    def propose(self, frame: Frame) -> Awaitable[Proposals]:
        """A future; the network runs in a thread."""
        self.calls["propose"] += 1
        return asyncio.wrap_future(self._proposals.submit(frame))

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
        maps = await asyncio.wrap_future(self._primary_maps.submit(frame))
        return await self._run(self._primary.pool, maps, await proposals)

    async def encode_auxiliary(
        self, frame: Frame, proposals: Awaitable[Proposals]
    ) -> AuxiliaryFeatures:
        """Maps at once, pooling when the boxes are there."""
        self.calls["encode_auxiliary"] += self.has_auxiliary_encoder
        maps = await asyncio.wrap_future(self._auxiliary_maps.submit(frame))
        return await self._run(self._auxiliary.pool, maps, await proposals)

    async def _run(self, method: Callable[..., T], *arguments: object) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, method, *arguments)

    async def answer(self, features: FrameFeatures | None, task: Task) -> Generation:
        """One question; questions about one frame share its prefix."""
        self.calls["answer"] += 1
        return await asyncio.wrap_future(self.language.start(features, self._bounded(task)))

    def write_answer(self, features: FrameFeatures, task: Task) -> AsyncIterator[str | Generation]:
        """One question, its text as it is written."""
        self.calls["answer"] += 1
        return written_in_thread(
            lambda on_text: asyncio.wrap_future(
                self.language.start(features, self._bounded(task), on_text)
            )
        )

    def _bounded(self, task: Task) -> Task:
        if self._max_new_tokens is None:
            return task
        return replace(task, max_new_tokens=self._max_new_tokens)

    def close(self) -> None:
        """Stop the threads and the engine."""
        self._threads.shutdown(wait=True)
        self.language.close()


def local_pipeline(
    model: str = DEFAULT_MODEL,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    proposal_network: str | None = None,
    cache: RegionCache | None = None,
    max_new_tokens: int | None = None,
    as_published: bool = False,
) -> Pipeline:
    """A ready pipeline in this process; the arguments are those of `LocalStages.from_pretrained`.

    Raises:
        CheckpointMismatch: the model's files are missing or do not fit.
    """
    directory = find_model(model, proposal_network=proposal_network, as_published=as_published)
    return Pipeline(
        LocalStages.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            proposal_network=proposal_network,
            max_new_tokens=max_new_tokens,
            as_published=as_published,
        ),
        cache if cache is not None else MemoryRegionCache(budget_bytes=_DEFAULT_CACHE_BYTES),
        model_digest=directory.digest,
        rules=directory.rules,
    )
