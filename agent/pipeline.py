"""One frame's way from pixels to an answer, written once against four async stages.

In a notebook the stages are local objects (`agent.stages.LocalStages`). In the service each
language replica runs this beside its model, with the vision stages behind deployment handles
(`deployments.stages.remote_stages`); its front ends ask it through the same protocol, `Grounder`
(`deployments.stages.remote_pipeline`). Knows no Ray, no gRPC and no tensors.
"""

from __future__ import annotations

import asyncio
import copy
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from agent.answer_rules import AnswerRules
from agent.carried_answers import carried_answers
from agent.detections import FloatArray, Proposals, validate_boxes
from agent.features import (
    AuxiliaryFeatures,
    FrameFeatures,
    Generation,
    PrimaryFeatures,
    Stages,
    StageTimings,
)
from agent.frame import Frame
from agent.frame_summary import FrameSummary, summary_of
from agent.paging import Page, in_groups, pages_for
from agent.parsing import Answer, join_pages, parse_answer
from agent.prompts import Task
from agent.region_cache import RegionCache, feature_key
from agent.single_flight import SingleFlight
from agent.started_tasks import started
from agent.urgency import Limits, SharedLimits, Urgency
from groundstream.errors import InvalidQuery, Overloaded

_MOST_PROMPTS = 256
"""Of one call at a time: half of what may wait at the language stage (`EngineSettings`)."""
_GRACE_S = 0.05
"""The stage that is late says so itself, if it can."""


@dataclass(frozen=True)
class Grounding:
    """The answers to all questions asked about one frame."""

    answers: tuple[Answer, ...]
    proposals: Proposals
    cache_hit: bool
    """True when no proposal network and no encoder ran for this frame."""
    timings: StageTimings = field(default_factory=StageTimings)
    seen: FrameSummary | None = None
    """How the frame was seen; None when it was not."""


@dataclass(frozen=True)
class FeaturesUnderWay:
    """Features that are being fetched or computed, to be used or given up by the one who began."""

    result: asyncio.Future[Any]
    """Done when they are there; what it holds is for `Grounder.ground` alone."""
    timings: StageTimings
    started_s: float
    """On `time.perf_counter`'s clock."""


class FrameNotHere(Exception):
    """A frame came without its bytes, and neither its features nor work on them are here."""


class QueriesRefused(InvalidQuery):
    """Some of the questions about one frame cannot be asked; its others can."""

    def __init__(self, reasons: Mapping[int, str]) -> None:
        """`reasons`: why, by the question's place among all."""
        super().__init__(next(iter(reasons.values())))
        self.reasons = reasons

    def __reduce__(self) -> tuple[type[QueriesRefused], tuple[Mapping[int, str]]]:
        # The default would give the message for the reasons on the way between processes.
        return type(self), (self.reasons,)


class Grounder(Protocol):
    """Answers questions about frames: `Pipeline`, or a way to one in another process."""

    def within(self, limits: Limits) -> Grounder:
        """The same for one call, with its deadline and urgency."""
        ...

    def for_tenant(self, tenant: str) -> Grounder:
        """The same for a tenant, who shares nothing with others."""
        ...

    def begin(self, frame: Frame, *, boxes: FloatArray | None = None) -> FeaturesUnderWay: ...

    async def ground(
        self,
        frame: Frame,
        tasks: list[Task],
        *,
        boxes: FloatArray | None = None,
        begun: FeaturesUnderWay | None = None,
        expected: Sequence[FloatArray | None] | None = None,
    ) -> Grounding:
        """See `Pipeline.ground`."""
        ...

    def ask(
        self, frame: Frame, task: Task, *, boxes: FloatArray | None = None
    ) -> AsyncIterator[str | Grounding]: ...

    async def propose(self, frame: Frame) -> Proposals: ...


class Pipeline:
    """Frame in, answers out; the order of the stages and nothing else."""

    def __init__(
        self,
        stages: Stages,
        cache: RegionCache,
        *,
        model_digest: str,
        rules: AnswerRules | None = None,
        tenant: str = "",
    ) -> None:
        """
        Args:
            stages: where work is done.
            cache: features of frames that were seen.
            model_digest: part of every key.
            rules: how the model is asked and its answers are read; None: as the published one.
            tenant: part of every key, so that tenants share nothing.
        """
        self._stages = stages
        self._cache = cache
        self._model_digest = model_digest
        self.rules = rules or AnswerRules()
        self._tenant = tenant
        self._limits = Limits()
        self._flights: SingleFlight[FrameFeatures] = SingleFlight()

    def within(self, limits: Limits) -> Pipeline:
        """The same pipeline, cache and flights for one call, with its deadline and urgency.

        Work that several calls share runs within the limits of the most patient.
        """
        bound = copy.copy(self)
        bound._limits = limits
        bound._stages = self._stages.within(limits)
        return bound

    def over(self, stages: Stages) -> Pipeline:
        """The same pipeline, cache and flights over other stages of the same model."""
        bound = copy.copy(self)
        bound._stages = stages
        return bound

    def for_tenant(self, tenant: str) -> Pipeline:
        """The same pipeline under keys of the tenant's own."""
        bound = copy.copy(self)
        bound._tenant = tenant
        return bound

    def begin(self, frame: Frame, *, boxes: FloatArray | None = None) -> FeaturesUnderWay:
        """Start on a frame's features while its questions are still being made up."""
        timings, started_s = StageTimings(), time.perf_counter()
        result = started(self.features(frame, boxes=boxes, timings=timings))
        return FeaturesUnderWay(result, timings, started_s)

    async def ground(
        self,
        frame: Frame,
        tasks: list[Task],
        *,
        boxes: FloatArray | None = None,
        begun: FeaturesUnderWay | None = None,
        reuse: FrameFeatures | None = None,
        expected: Sequence[FloatArray | None] | None = None,
        continued: bool = False,
    ) -> Grounding:
        """Answer every task about one frame; features are computed or fetched once.

        Args:
            frame: the picture.
            tasks: the questions, answered concurrently.
            boxes: (n, 4) pixels; use these instead of the proposal network's.
            begun: what `begin` said about this frame and these boxes, if it was asked.
            reuse: features of an earlier frame that may stand in for this one's.
            expected: for each task where its answer's boxes are likely to be, (n, 4) pixels, or
                None; a guess that saves decoding when it is right and changes no answer.
            continued: see `features`.

        Raises:
            InvalidFrame: the image cannot be decoded.
            InvalidBoxes: `boxes` are malformed.
            QueriesRefused: some tasks cannot be asked, as those about a box that does not exist;
                the others can be asked without them.
            Overloaded: the answers would come too late; see `within`.
        """
        started_s, timings = time.perf_counter(), StageTimings()
        if reuse is not None:
            features, cache_hit = reuse, True
        elif begun is not None:
            started_s, timings = begun.started_s, begun.timings
            features, cache_hit = await begun.result
        else:
            features, cache_hit = await self.features(
                frame, boxes=boxes, timings=timings, continued=continued
            )
        pages = self._all_pages(tasks, features)
        language_started = time.perf_counter()
        places = expected if expected is not None else [None] * len(tasks)
        guided = [
            _guided(task, where, features.proposals)
            for task, where in zip(tasks, places, strict=True)
        ]
        answering = self._all_answers(features, guided, pages)
        seen, answers = await asyncio.gather(asyncio.to_thread(summary_of, features), answering)
        finished = time.perf_counter()
        timings.language_s = finished - language_started
        timings.total_s = finished - started_s
        return Grounding(tuple(answers), features.proposals, cache_hit, timings, seen)

    async def _all_answers(
        self, features: FrameFeatures, tasks: Sequence[Task], pages: Sequence[tuple[Page, ...]]
    ) -> list[Answer]:
        """The answers to all questions, each on its pages.

        Raises:
            QueriesRefused: some cannot be asked; the others have been answered by then.
        """

        async def tried(asked: tuple[Task, tuple[Page, ...]]) -> Answer | InvalidQuery:
            try:
                return await self._answer(features, *asked)
            except InvalidQuery as error:
                return error

        ended: list[Answer | InvalidQuery] = []
        for group in in_groups(
            list(zip(tasks, pages, strict=True)),
            lambda asked: _prompts_a_page(asked[0]) * len(asked[1]),
            _MOST_PROMPTS,
        ):
            ended += await asyncio.gather(*(tried(asked) for asked in group))
        refused = {
            n: str(error) for n, error in enumerate(ended) if isinstance(error, InvalidQuery)
        }
        if refused:
            raise QueriesRefused(refused)
        return [answer for answer in ended if isinstance(answer, Answer)]

    async def _answer(self, features: FrameFeatures, task: Task, pages: tuple[Page, ...]) -> Answer:
        """One question, asked on its pages of boxes."""
        generations: list[Generation] = []
        for group in in_groups(pages, lambda _: _prompts_a_page(task), _MOST_PROMPTS):
            generations += await asyncio.gather(
                *(
                    self._stages.answer(features.select(page.indices), page.task(task))
                    for page in group
                )
            )
        return self._joined(task, list(zip(pages, generations, strict=True)), features)

    def _all_pages(self, tasks: Sequence[Task], features: FrameFeatures) -> list[tuple[Page, ...]]:
        """The pages of each question; those about boxes that do not exist are refused before any is
        asked.

        Raises:
            QueriesRefused: there are some.
        """
        pages, reasons = [], {}
        for number, task in enumerate(tasks):
            try:
                pages.append(self._pages(task, features))
            except InvalidQuery as error:
                reasons[number] = str(error)
        if reasons:
            raise QueriesRefused(reasons)
        return pages

    def _pages(self, task: Task, features: FrameFeatures) -> tuple[Page, ...]:
        return pages_for(task, len(features.proposals), size=self.rules.regions_per_page)

    def _joined(
        self, task: Task, pages: Sequence[tuple[Page, Generation]], features: FrameFeatures
    ) -> Answer:
        size = features.width, features.height
        return join_pages(task, pages, features.proposals, rules=self.rules, size=size)

    async def converse(self, task: Task) -> Answer:
        """A question without a picture (CHAT)."""
        generation = await self._stages.answer(None, task)
        return parse_answer(task, generation, Proposals())

    async def propose(self, frame: Frame) -> Proposals:
        """The boxes of a frame and nothing else.

        Raises:
            InvalidFrame: the image cannot be decoded.
        """
        return await self._stages.propose(frame)

    async def ask(
        self, frame: Frame, task: Task, *, boxes: FloatArray | None = None
    ) -> AsyncIterator[str | Grounding]:
        """One question: its text as it is written, then the whole; see `ground`.

        A search through more than one page of boxes writes its pages together and says them at
        the end.
        """
        timings, started_s = StageTimings(), time.perf_counter()
        features, cache_hit = await self.features(frame, boxes=boxes, timings=timings)
        language_started = time.perf_counter()
        pages = self._pages(task, features)
        if len(pages) > 1:
            answer = await self._answer(features, task, pages)
            yield answer.text
        else:
            (page,) = pages
            shown = features.select(page.indices)
            async for piece in self._stages.write_answer(shown, page.task(task)):
                if isinstance(piece, str):
                    yield piece
                else:
                    answer = self._joined(task, [(page, piece)], features)
        finished = time.perf_counter()
        timings.language_s = finished - language_started
        timings.total_s = finished - started_s
        seen = await asyncio.to_thread(summary_of, features)
        yield Grounding((answer,), features.proposals, cache_hit, timings, seen)

    async def features(
        self,
        frame: Frame,
        *,
        boxes: FloatArray | None = None,
        timings: StageTimings | None = None,
        continued: bool = False,
    ) -> tuple[FrameFeatures, bool]:
        """The frame's features, and whether somebody else has computed them.

        Identical frames that come together are computed once. A picture of a one-off call may be
        asked about again anywhere; a frame of a stream is shared once that has happened.

        Args:
            frame: the picture; without its bytes where its features must be here already.
            boxes: (n, 4) pixels; instead of the proposal network's.
            timings: filled in.
            continued: the same caller has asked before, on behalf of the same questions.

        Raises:
            Overloaded: the deadline passed before they were there.
            FrameNotHere: the bytes are needed after all.
        """
        timings = StageTimings() if timings is None else timings
        known = None
        if boxes is not None:
            xyxy = validate_boxes(boxes, width=frame.width, height=frame.height)
            known = Proposals(xyxy, np.ones(len(xyxy), dtype=np.float32))
        key = feature_key(frame, self._model_digest, tenant=self._tenant, boxes=known)
        started_s = time.perf_counter()
        cached = await self._cache.get(key)
        timings.cache_s = time.perf_counter() - started_s
        if cached is not None:
            if not continued:
                self._cache.asked_again(key)
            return cached, True
        if not frame.encoded and key not in self._flights:
            raise FrameNotHere

        async def compute(shared: SharedLimits) -> FrameFeatures:
            stages = self._stages.within(shared)
            computed = await self._compute(stages, frame, key, known, timings)
            is_picture = shared.now().urgency is Urgency.ONE_OFF
            self._cache.put_soon(key, computed, may_be_asked_again=is_picture)
            return computed

        left_s = self._limits.left_s
        try:
            async with asyncio.timeout(None if math.isinf(left_s) else left_s + _GRACE_S):
                features, joined = await self._flights.run(key, compute, self._limits)
        except TimeoutError:
            raise Overloaded(
                "the frame's features were not there before the deadline; allow more time, send "
                "less or try again later"
            ) from None
        if joined and not continued:
            self._cache.asked_again(key)
        return features, joined

    async def _compute(
        self,
        stages: Stages,
        frame: Frame,
        key: str,
        known: Proposals | None,
        timings: StageTimings,
    ) -> FrameFeatures:
        started_s = time.perf_counter()

        def since() -> float:
            return time.perf_counter() - started_s

        pending = stages.propose(frame) if known is None else stages.resolved(known)

        async def primary_timed() -> PrimaryFeatures:
            result = await stages.encode_primary(frame, pending)
            timings.primary_s = since()
            return result

        async def auxiliary_timed() -> AuxiliaryFeatures:
            result = await stages.encode_auxiliary(frame, pending)
            if stages.has_auxiliary_encoder:
                timings.auxiliary_s = since()
            return result

        async def proposals_timed() -> Proposals:
            result = await pending
            timings.propose_s = since()
            return result

        proposals, primary, auxiliary = await asyncio.gather(
            proposals_timed(), primary_timed(), auxiliary_timed()
        )
        return FrameFeatures(
            width=frame.width,
            height=frame.height,
            proposals=proposals,
            image_tokens=primary.image_tokens,
            grid=primary.grid,
            primary_regions=primary.regions,
            auxiliary_regions=auxiliary.regions,
            seen_px=primary.seen_px,
            key=key,
        )


def _prompts_a_page(task: Task) -> int:
    """Prompts of the language model that a question takes for each page, at most."""
    return max(1, len(task.labels))


def _guided(task: Task, expected: FloatArray | None, proposals: Proposals) -> Task:
    """The task with drafts of its answer, where boxes are expected."""
    if expected is None:
        return task
    return replace(task, drafts=carried_answers(task, expected, proposals))
