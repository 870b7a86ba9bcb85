"""An answer that gets better: the first look's, then revised by every second look.

What a finer look says about the small things inside its crops replaces what the first look said
about them; everything else stands. Every box keeps where it was seen. Knows no stage.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agent.crops import Crop, Look, inside
from agent.detections import Detections, FloatArray, Proposals, non_maximum_suppression
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import REGION_TOKEN, TaskKind, region_token

SAME_BOX_IOU = 0.5
"""Two boxes that overlap more are one thing."""


@dataclass(frozen=True)
class Origin:
    """Where a box was seen, if not on the whole frame."""

    crop: int
    """Index into the revision's crops."""
    found: tuple[float, float, float, float]
    """The box on the look's picture, in its pixels; the crop leads from it to the frame."""


@dataclass(frozen=True)
class Revision:
    """All answers of one call as they stand."""

    number: int
    """0 is the first look; each later one replaces those before it."""
    grounding: Grounding
    """Boxes in frame pixels; its proposals are the first look's, then those of the crops."""
    origins: tuple[tuple[Origin | None, ...], ...]
    """For each answer and each of its boxes where it was seen; None: on the whole frame."""
    crops: tuple[Crop, ...] = ()
    """What was inspected."""
    vision_tokens: int = 0
    """Of all pictures shown so far."""
    final: bool = True
    """No revision will follow."""
    cut_short: bool = False
    """Time ran out, or a stage failed, before everything planned was looked at."""


@dataclass(frozen=True)
class _Found:
    """One box of one answer."""

    label: str
    box: FloatArray
    """(4,) frame pixels."""
    confidence: float
    region: int
    origin: Origin | None


class RevisedAnswers:
    """Collects looks; says at any time how the answers stand."""

    def __init__(self, first: Grounding, *, num_tokens: int, small_px: float) -> None:
        """Begin with the first look.

        Args:
            first: its answers.
            num_tokens: its vision tokens.
            small_px: boxes of the first look whose longer side is shorter, in frame pixels, give
                way to what a crop over them shows.
        """
        self._first = first
        self._small_px = small_px
        self._num_tokens = num_tokens
        self._number = 0
        self._boxes = [first.proposals.xyxy]
        self._objectness = [first.proposals.objectness]
        self._crops: list[Crop] = []
        self._later: dict[int, list[Answer]] = {}
        self._found: dict[int, list[_Found]] = {}

    def add(self, look: Look, grounding: Grounding, tasks: Sequence[int]) -> None:
        """One more look, its answers to the tasks of these numbers, in order."""
        first_region = sum(map(len, self._boxes))
        self._boxes.append(look.to_frame(grounding.proposals.xyxy))
        self._objectness.append(grounding.proposals.objectness)
        for number, answer in zip(tasks, grounding.answers, strict=True):
            self._later.setdefault(number, []).append(
                replace(answer, text=_renumbered(answer.text, first_region))
            )
            placed = self._first.answers[number].placed
            self._found.setdefault(number, []).extend(
                found
                for found in self._on_crops(look, answer.detections, first_region)
                if found.label not in placed
            )
        self._crops += look.crops
        if grounding.seen is not None:
            self._num_tokens += grounding.seen.num_image_tokens
        self._number += 1

    def revision(self, *, final: bool, total_s: float, cut_short: bool = False) -> Revision:
        """The answers as they stand."""
        standing = [self._standing(number) for number in range(len(self._first.answers))]
        grounding = replace(
            self._first,
            answers=tuple(answer for answer, _ in standing),
            proposals=Proposals(np.concatenate(self._boxes), np.concatenate(self._objectness)),
            timings=replace(self._first.timings, total_s=total_s),
        )
        return Revision(
            self._number,
            grounding,
            tuple(origins for _, origins in standing),
            tuple(self._crops),
            self._num_tokens,
            final,
            cut_short,
        )

    def closing(self, *, total_s: float, cut_short: bool) -> Revision:
        """The last word where no look changes anything more: the next number, the same answers."""
        self._number += 1
        return self.revision(final=True, cut_short=cut_short, total_s=total_s)

    def _on_crops(self, look: Look, detections: Detections, first_region: int) -> list[_Found]:
        boxes = look.to_frame(detections.xyxy)
        owners = look.owners(detections.xyxy) if len(detections) else np.zeros(0, dtype=np.int64)
        rows = zip(
            detections.label, boxes, detections.confidence.tolist(), detections.region.tolist(),
            owners.tolist(), detections.xyxy.tolist(), strict=True,
        )  # fmt: skip
        return [
            _Found(
                label,
                box,
                confidence,
                first_region + region,
                Origin(len(self._crops) + owner, (x1, y1, x2, y2)),
            )
            for label, box, confidence, region, owner, (x1, y1, x2, y2) in rows
        ]

    def _standing(self, number: int) -> tuple[Answer, tuple[Origin | None, ...]]:
        first = self._first.answers[number]
        later = self._later.get(number)
        if not later:
            return first, (None,) * len(first.detections)
        found = self._found[number]
        if first.task.kind.searches:
            found = _without_doubles([*self._left_over(first), *found])
        answers = [first, *later]
        searches = first.task.kind.searches
        revised = replace(
            first if searches else later[-1],
            task=first.task,
            text="\n".join(answer.text for answer in answers) if searches else later[-1].text,
            detections=_detections(found),
            num_proposals=sum(answer.num_proposals for answer in answers),
            num_unknown_regions=sum(answer.num_unknown_regions for answer in answers),
            num_passes=sum(answer.num_passes for answer in answers),
            num_drafted_tokens=sum(answer.num_drafted_tokens for answer in answers),
        )
        if searches:
            revised = replace(revised, status=_status(answers, len(found)))
        if first.task.kind is TaskKind.COUNT:
            # Each look counts what it shows; only the boxes can be added without doubles.
            revised = replace(revised, count=len(found))
        return revised, tuple(item.origin for item in found)

    def _left_over(self, first: Answer) -> list[_Found]:
        """What the first look found and no crop has shown better."""
        detections = first.detections
        sides = (detections.xyxy[:, 2:] - detections.xyxy[:, :2]).max(axis=1, initial=0.0)
        seen = inside(detections.xyxy, [crop.box for crop in self._crops])
        rows = zip(
            detections.label, detections.xyxy, detections.confidence.tolist(),
            detections.region.tolist(), sides.tolist(), seen, strict=True,
        )  # fmt: skip
        return [
            _Found(label, box, confidence, region, None)
            for label, box, confidence, region, side, again in rows
            if label in first.placed or not (again and side < self._small_px)
        ]


def first_revision(first: Grounding, *, final: bool) -> Revision:
    """The answers of the first look."""
    tokens = 0 if first.seen is None else first.seen.num_image_tokens
    origins = tuple((None,) * len(answer.detections) for answer in first.answers)
    return Revision(0, first, origins, vision_tokens=tokens, final=final)


def _without_doubles(found: list[_Found]) -> list[_Found]:
    """Of boxes of one label that are the same thing the surer one, in the order given."""
    kept: list[int] = []
    for label in {item.label: None for item in found}:
        rows = [row for row, item in enumerate(found) if item.label == label]
        boxes = np.array([found[row].box for row in rows], dtype=np.float32).reshape(-1, 4)
        scores = np.array([found[row].confidence for row in rows], dtype=np.float32)
        alive = non_maximum_suppression(boxes, scores, iou=SAME_BOX_IOU)
        kept += [rows[row] for row in alive.tolist()]
    return [found[row] for row in sorted(kept)]


def _detections(found: Sequence[_Found]) -> Detections:
    return Detections(
        xyxy=np.array([item.box for item in found], dtype=np.float32).reshape(-1, 4),
        confidence=np.array([item.confidence for item in found], dtype=np.float32),
        label=tuple(item.label for item in found),
        region=np.array([item.region for item in found], dtype=np.int64),
    )


def _status(answers: Sequence[Answer], num_found: int) -> AnswerStatus:
    statuses = {answer.status for answer in answers}
    if AnswerStatus.TRUNCATED in statuses:
        return AnswerStatus.TRUNCATED
    if num_found:
        return AnswerStatus.OK
    return AnswerStatus.UNSURE if statuses == {AnswerStatus.UNSURE} else AnswerStatus.NOT_PRESENT


def _renumbered(text: str, offset: int) -> str:
    """Region numbers of a look as numbers of all proposals."""
    return REGION_TOKEN.sub(lambda found: region_token(int(found.group(1)) + offset), text)
