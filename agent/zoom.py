"""Coarse to fine: answer from the reduced frame, then look again where the question needs it.

Two ways stand behind `Zoomer`: region zoom, here, works with any VLM-FO1 pipeline and finds what to
look at by its own region tokens and proposals; the published two-turn protocol of ERGO, which
prints coordinates, is `agent.ergo`. Knows no tensors and no transport.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from agent.crops import CropRules, Look, cut, plan_looks, tiles, whole
from agent.detections import FloatArray, Proposals, box_iou, non_maximum_suppression
from agent.frame import Frame, RGBArray
from agent.frame_summary import FrameSummary
from agent.parsing import Answer
from agent.pipeline import Grounder, Grounding
from agent.prompts import Task, TaskKind
from agent.revisions import SAME_BOX_IOU, RevisedAnswers, Revision, first_revision
from agent.settings import ZoomSettings
from agent.zoom_policy import Arrangement, Zoom, ZoomPolicy

_logger = logging.getLogger(__name__)
_PATCH_PX = 14
_NEVER = frozenset({TaskKind.GROUNDED_CAPTION, TaskKind.VISUAL_PROMPT})
"""Tasks about the whole picture at once; a crop could not answer them."""


class Zoomer(Protocol):
    """A way of looking twice."""

    def look(self, frame: Frame, tasks: Sequence[Task], zoom: Zoom) -> AsyncIterator[Revision]:
        """The first answer as soon as it is known, then its revisions; the last one is final.

        Raises:
            AgentError: the first look failed. A later one that fails only ends the revisions.
        """
        ...


@dataclass(frozen=True)
class _Plan:
    """Second looks for some of the tasks."""

    looks: tuple[Look, ...]
    tasks: tuple[int, ...]
    boxes: FloatArray = field(default_factory=lambda: np.zeros((0, 4), dtype=np.float32))
    """(n, 4) what the looks are for, frame pixels."""
    given: bool = False
    """The boxes are shown as regions; otherwise each look proposes its own."""
    numbers: tuple[int, ...] = ()
    """Of tasks that speak of boxes: which of the first look's regions each box is."""


@dataclass(frozen=True)
class _Seen:
    """How the first look saw the frame."""

    longest_px: int
    """Longer side of the picture that the model saw."""
    reduction: float
    """Frame pixels per pixel seen."""

    @classmethod
    def of(cls, frame: FrameSummary) -> _Seen:
        if frame.seen_px:
            longest = max(frame.width, frame.height)
            seen_px = min(frame.seen_px, longest)
            return cls(seen_px, longest / seen_px)
        rows, columns = frame.grid
        width, height = columns * _PATCH_PX, rows * _PATCH_PX
        reduction = math.sqrt(frame.width * frame.height / (width * height))
        return cls(max(width, height), reduction)


def crop_rules(settings: ZoomSettings) -> CropRules:
    """How crops are cut, as the settings say."""
    return CropRules(
        margin=settings.margin,
        cell_px=settings.cell_px,
        picture_px=settings.picture_px,
        max_crops=settings.max_crops,
    )


class RegionZoom:
    """Looks again at regions that VLM-FO1 itself has found on the reduced frame.

    For searches the proposal network, whose work costs no vision token, also scouts the frame in
    parts; what it finds there is shown on contact sheets and named by region tokens.
    """

    def __init__(
        self,
        pipeline: Grounder,
        settings: ZoomSettings | None = None,
        *,
        deadline_s: float = math.inf,
    ) -> None:
        """`deadline_s`: the caller's, on `time.monotonic`'s clock."""
        self._pipeline = pipeline
        self._settings = settings or ZoomSettings()
        self._deadline_s = deadline_s
        self._rules = crop_rules(self._settings)

    async def look(
        self,
        frame: Frame,
        tasks: Sequence[Task],
        zoom: Zoom,
        *,
        boxes: FloatArray | None = None,
    ) -> AsyncIterator[Revision]:
        """See `Zoomer`; `boxes` are used instead of proposals, as in `Pipeline.ground`."""
        started_s = time.monotonic()
        first = await self._pipeline.ground(frame, list(tasks), boxes=boxes)
        async for revision in self.revisions(
            frame, first, zoom, given=boxes is not None, started_s=started_s
        ):
            yield revision

    async def ask(
        self, frame: Frame, task: Task, zoom: Zoom, *, boxes: FloatArray | None = None
    ) -> AsyncIterator[str | Revision]:
        """One question: the first answer's text as it is written, then the revisions."""
        started_s = time.monotonic()
        async for piece in self._pipeline.ask(frame, task, boxes=boxes):
            if isinstance(piece, str):
                yield piece
                continue
            async for revision in self.revisions(
                frame, piece, zoom, given=boxes is not None, started_s=started_s
            ):
                yield revision

    async def revisions(
        self,
        frame: Frame,
        first: Grounding,
        zoom: Zoom,
        *,
        given: bool = False,
        started_s: float | None = None,
    ) -> AsyncIterator[Revision]:
        """The first look's answers as revision 0, then what second looks make of them.

        Args:
            frame: the picture.
            first: the answers so far, with how the frame was seen.
            zoom: what the caller wants.
            given: the boxes were sent by the client; no others are searched for.
            started_s: when the call began, on `time.monotonic`'s clock.
        """
        started_s = time.monotonic() if started_s is None else started_s
        wanting = self._wanting(first, zoom)
        yield first_revision(first, final=not wanting)
        if not wanting:
            return
        assert first.seen is not None
        until_s = min(
            self._deadline_s - self._settings.reply_s,
            math.inf if zoom.budget_s is None else started_s + zoom.budget_s,
        )
        seen = _Seen.of(first.seen)
        answers = RevisedAnswers(
            first,
            num_tokens=first.seen.num_image_tokens,
            small_px=self._settings.small_px * seen.reduction,
        )
        looks = self._second_looks(frame, first, wanting, zoom, given)
        try:
            async for look, grounding, tasks, left in _until(looks, until_s):
                answers.add(look, grounding, tasks)
                took_s = time.monotonic() - started_s
                yield answers.revision(final=not left, total_s=took_s)
                if not left:
                    return
            yield answers.closing(total_s=time.monotonic() - started_s, cut_short=False)
        except TimeoutError:
            yield answers.closing(total_s=time.monotonic() - started_s, cut_short=True)
        except Exception as error:
            # The answer that stands is worth more than the reason why it got no better.
            _logger.warning("a second look failed: %s", error)
            yield answers.closing(total_s=time.monotonic() - started_s, cut_short=True)

    # ---- what is worth a second look ----

    def _wanting(self, first: Grounding, zoom: Zoom) -> list[int]:
        """Numbers of the tasks that get a second look."""
        if zoom.policy is ZoomPolicy.OFF or first.seen is None:
            return []
        seen = _Seen.of(first.seen)
        if zoom.policy is ZoomPolicy.AUTO and seen.reduction < self._settings.least_reduction:
            return []
        found = []
        for number, answer in enumerate(first.answers):
            if answer.task.kind in _NEVER or answer.is_placed:
                continue
            about = _about(answer, first.proposals)
            if not len(about) and not answer.task.kind.searches:
                continue  # Words about the whole picture: nothing says where to look.
            always = zoom.policy is ZoomPolicy.ALWAYS
            if always or not len(about) or self._small(about, seen).any():
                found.append(number)
        return found

    def _small(self, boxes: FloatArray, seen: _Seen) -> NDArray[np.bool_]:
        """(n,) too small on the first look's picture to be sure of."""
        sides = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0.0)
        return np.asarray(sides < self._settings.small_px * seen.reduction)

    # ---- the second looks ----

    async def _second_looks(
        self, frame: Frame, first: Grounding, wanting: Sequence[int], zoom: Zoom, given: bool
    ) -> AsyncIterator[tuple[Look, Grounding, tuple[int, ...], int]]:
        """Each look, its answers, the tasks they are to, and how many looks are still to come."""
        rgb = await asyncio.to_thread(frame.rgb)
        plans = await self._plans(frame, rgb, first, wanting, zoom, given)
        running = [
            asyncio.ensure_future(self._look(frame, rgb, first, plan, look))
            for plan in plans
            for look in plan.looks
        ]
        try:
            for left, done in zip(
                reversed(range(len(running))), asyncio.as_completed(running), strict=True
            ):
                look, grounding, tasks = await done
                yield look, grounding, tasks, left
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _plans(
        self,
        frame: Frame,
        rgb: RGBArray,
        first: Grounding,
        wanting: Sequence[int],
        zoom: Zoom,
        given: bool,
    ) -> list[_Plan]:
        assert first.seen is not None
        seen = _Seen.of(first.seen)
        most = self._settings.vision_tokens
        budget = min(most, zoom.vision_tokens or most)
        searching = tuple(n for n in wanting if first.answers[n].task.kind.searches)
        pointing = [n for n in wanting if n not in searching]
        plans = []
        for place, number in enumerate(pointing):
            answer = first.answers[number]
            numbers = _regions_of(answer)
            boxes = first.proposals.xyxy[list(numbers)]
            share = budget // (len(pointing) - place + bool(searching))
            looks = plan_looks(
                boxes, Arrangement.UNION, frame=(frame.width, frame.height),
                longest_px=seen.longest_px, budget_tokens=share, rules=self._rules,
            )  # fmt: skip
            budget -= sum(look.num_tokens for look in looks)
            plans.append(_Plan(looks, (number,), boxes, given=True, numbers=numbers))
        if searching:
            boxes = await self._candidates(frame, rgb, first, searching, given, seen)
            looks = plan_looks(
                boxes, zoom.arrangement, frame=(frame.width, frame.height),
                longest_px=seen.longest_px, budget_tokens=budget, rules=self._rules,
            )  # fmt: skip
            shown = given or zoom.arrangement is Arrangement.SHEET
            plans.append(_Plan(looks, searching, boxes, given=shown))
        return plans

    async def _candidates(
        self,
        frame: Frame,
        rgb: RGBArray,
        first: Grounding,
        searching: Sequence[int],
        given: bool,
        seen: _Seen,
    ) -> FloatArray:
        """(n, 4) boxes worth a look, the likeliest first: those named, then those scouted."""
        named = Proposals(
            np.concatenate([first.answers[n].detections.xyxy for n in searching]),
            np.concatenate([first.answers[n].detections.confidence for n in searching]),
        )
        others = first.proposals if given else await self.scout(frame, rgb)
        boxes = np.concatenate([others.xyxy, named.xyxy])
        overlap = box_iou(others.xyxy, named.xyxy).max(axis=1, initial=0.0)
        # Scouted boxes sit better than the first look's and stand in for them.
        rank = np.concatenate(
            [
                np.where(overlap >= SAME_BOX_IOU, 2.0, others.objectness),
                1.0 + 0.5 * named.objectness,
            ]
        ).astype(np.float32)
        kept = non_maximum_suppression(boxes, rank, iou=SAME_BOX_IOU)
        boxes = boxes[kept]
        return boxes[self._small(boxes, seen)]

    async def scout(self, frame: Frame, rgb: RGBArray) -> Proposals:
        """What the proposal network finds in parts of the frame, best first.

        Args:
            frame: the picture.
            rgb: its pixels.
        """
        settings = self._settings
        parts = [
            whole(window)
            for window in tiles(
                (frame.width, frame.height), settings.scout_px, settings.max_scouted
            )
        ]

        async def search(part: Look) -> Proposals:
            picture = await asyncio.to_thread(cut, rgb, part, frame)
            found = await self._pipeline.propose(picture)
            return Proposals(part.to_frame(found.xyxy), found.objectness)

        found = await asyncio.gather(*map(search, parts))
        boxes = np.concatenate([part.xyxy for part in found])
        scores = np.concatenate([part.objectness for part in found])
        kept = non_maximum_suppression(boxes, scores, iou=SAME_BOX_IOU)
        return Proposals(boxes[kept], scores[kept])

    async def _look(
        self, frame: Frame, rgb: RGBArray, first: Grounding, plan: _Plan, look: Look
    ) -> tuple[Look, Grounding, tuple[int, ...]]:
        picture = await asyncio.to_thread(cut, rgb, look, frame)
        tasks = [first.answers[number].task for number in plan.tasks]
        if plan.numbers:
            here = {number: place for place, number in enumerate(plan.numbers)}
            tasks = [task.with_regions(here) for task in tasks]
        shown = look.given(plan.boxes) if plan.given else None
        grounding = await self._pipeline.ground(picture, tasks, boxes=shown)
        return look, grounding, plan.tasks


def _about(answer: Answer, proposals: Proposals) -> FloatArray:
    """(n, 4) the boxes a question or its answer speaks of."""
    return proposals.xyxy[list(_regions_of(answer))]


def _regions_of(answer: Answer) -> tuple[int, ...]:
    """Regions the question mentions, then those the answer names."""
    return tuple(dict.fromkeys((*answer.task.mentioned, *answer.detections.region.tolist())))


async def _until(
    source: AsyncIterator[tuple[Look, Grounding, tuple[int, ...], int]], until_s: float
) -> AsyncIterator[tuple[Look, Grounding, tuple[int, ...], int]]:
    """The items that come in time.

    Raises:
        TimeoutError: the next one did not; what produces it has been stopped.
    """
    try:
        while True:
            left_s = until_s - time.monotonic()
            try:
                async with asyncio.timeout(None if math.isinf(left_s) else left_s):
                    item = await anext(source)
            except StopAsyncIteration:
                return
            yield item
    finally:
        with contextlib.suppress(RuntimeError):
            await source.aclose()  # type: ignore[attr-defined]
