"""From generated tokens to boxes: the answer grammar of VLM-FO1, tolerant of what models write.

`<ground>dog</ground><objects><region3><region7></objects>` names a label and the boxes it refers
to. A region that does not exist is dropped and counted, never a crash; repeated labels are united;
an empty list is an answer ("not here"). Knows no tokenizer: it reads token texts.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate

import numpy as np

from agent.answer_rules import AnswerRules
from agent.descriptions import Description
from agent.detections import Detections, Proposals, claims
from agent.features import Generation
from agent.paging import Page
from agent.prompts import REGION_TOKEN, Task, TaskKind
from groundstream.enums import AnswerStatus as AnswerStatus

_GROUND = re.compile(r"<ground>(.*?)</ground><objects>(.*?)</objects>")
_THINK = re.compile(r"<think>(.*?)</think>", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.DOTALL)
_LABEL = re.compile(r"<ground>.*?</ground>")
_MARKUP = re.compile(r"<objects>.*?</objects>|</?ground>|<region\d+>|</?(?:think|answer)>")
_SAME_IOU = 0.5
"""Boxes of one label that overlap more than this are of one object."""
_NESTED, _HELD = 0.7, 0.6
"""A box of which this share lies in a surer one of its label, or around it, keeps this share of its
confidence (docs/decisions/embedded_model.md)."""
_Row = tuple[str, int, float]
"""Label, number of a box, confidence."""
_NUMBER = re.compile(r"(?<![0-9])[0-9]{1,6}(?![0-9])")
"""Nobody counts further; what is longer was written in error."""


@dataclass(frozen=True)
class Answer:
    """One question's answer in the frame's own pixels."""

    task: Task
    text: str
    """What the model wrote, control tokens kept."""
    detections: Detections = field(default_factory=Detections)
    status: AnswerStatus = AnswerStatus.OK
    reply: str = ""
    """The words alone: what stands in `<answer>`, or everything but tags and region lists."""
    thought: str = ""
    """What stands in `<think>`."""
    count: int | None = None
    """COUNT: the number the model states, summed over pages, or how many boxes it lists."""
    num_proposals: int = 0
    """Boxes that were looked at for this answer."""
    num_unknown_regions: int = 0
    """Region tokens that named no box and were dropped."""
    num_prefix_tokens_reused: int = 0
    num_passes: int = 0
    num_drafted_tokens: int = 0
    placed: frozenset[str] = frozenset()
    """Labels whose boxes were chosen by their place in the whole frame: no part of it gives that
    answer."""

    @property
    def is_placed(self) -> bool:
        """Whether all labels were."""
        return bool(self.placed) and self.placed.issuperset(self.task.labels)


def parse_regions(text: str) -> dict[str, list[int]]:
    """Label to region indices, in order of first mention; no check against existing boxes."""
    return {label: list(regions) for label, regions in _mentions(text).items()}


def _mentions(text: str) -> dict[str, dict[int, list[int]]]:
    """Label to region indices to where in `text` each is written behind the label."""
    labels: dict[str, dict[int, list[int]]] = {}
    for match in _GROUND.finditer(text):
        regions = labels.setdefault(match.group(1).strip(), {})
        for found in REGION_TOKEN.finditer(match.group(2)):
            place = match.start(2) + found.start()
            regions.setdefault(int(found.group(1)), []).append(place)
    return labels


def parse_answer(task: Task, generation: Generation, proposals: Proposals) -> Answer:
    """The answer to `task`, its region tokens resolved against the frame's proposals."""
    return join_pages(task, [(Page(np.arange(len(proposals))), generation)], proposals)


def join_pages(
    task: Task,
    pages: Sequence[tuple[Page, Generation]],
    proposals: Proposals,
    *,
    rules: AnswerRules | None = None,
    size: tuple[int, int] | None = None,
) -> Answer:
    """One answer from what the model wrote about each page of the frame's proposals.

    Boxes are named by their number in `proposals` wherever the page numbered them otherwise.

    Args:
        task: the question.
        pages: what was shown together, and what was written about it.
        proposals: all boxes of the frame.
        rules: how the model's answers are read; None: as the published one's.
        size: (width, height) of the frame in pixels; rules that read descriptions need it.
    """
    rules = rules or AnswerRules()
    rows: list[_Row] = []
    texts: list[str] = []
    labelled = False
    num_unknown = 0
    for page, generation in pages:
        labels = _chances(generation)
        labelled = labelled or bool(labels)
        texts.append(_renumbered(generation.text, page))
        for label, regions in labels.items():
            known = [(index, chance) for index, chance in regions.items() if index < len(page)]
            num_unknown += len(regions) - len(known)
            label = _renumbered(label, page)
            rows += [(label, int(page.indices[index]), chance) for index, chance in known]
    if rules.objectness_power:
        weights = proposals.objectness**rules.objectness_power
        rows = [(label, box, score * float(weights[box])) for label, box, score in rows]
    # A reference box stands on every page and may be found on several.
    rows = list({(label, box): (label, box, score) for label, box, score in rows}.values())
    if rules.one_per_object and task.kind.searches:
        rows = _claimed(rows, proposals, task.region)
    least = rules.detects_from(task)
    is_sure = labelled and all(score >= least for *_, score in rows)
    understood = {label: rules.understood(task, label) for label in task.labels}
    placed = {label: meant for label, meant in understood.items() if meant.is_placed}
    if placed:
        assert size is not None
        rows = _placed(rows, placed, proposals, rules.least_confidence, size)
    rows = [row for row in rows if row[2] >= least]
    indices = np.array([box for _, box, _ in rows], dtype=np.int64)
    detections = Detections(
        xyxy=proposals.xyxy[indices],
        confidence=np.array([score for _, _, score in rows], dtype=np.float32),
        label=tuple(label for label, _, _ in rows),
        region=indices,
    )
    generations = [generation for _, generation in pages]
    text = "\n".join(texts)
    return Answer(
        task=task,
        text=text,
        detections=detections,
        status=_status(task, generations, detections, sure=is_sure),
        reply=_reply(text),
        thought=_tagged(_THINK, text),
        count=_count(task, generations, detections),
        num_proposals=len({int(box) for page, _ in pages for box in page.indices}),
        num_unknown_regions=num_unknown,
        num_prefix_tokens_reused=sum(g.num_prefix_tokens_reused for g in generations),
        num_passes=sum(g.num_passes for g in generations),
        num_drafted_tokens=sum(g.num_drafted_tokens for g in generations),
        placed=frozenset(placed),
    )


def _claimed(rows: list[_Row], proposals: Proposals, reference: int | None) -> list[_Row]:
    """Rows in their order, what each claims of its label's objects.

    The box that a visual prompt refers to has the first claim, and is no other one of its like.
    """
    if reference is not None:
        others = [row for row in rows if row[1] != reference]
        rows = [(label, reference, 1.0) for label in {label for label, _, _ in rows}] + others
    left = np.array([score for _, _, score in rows], dtype=np.float32)
    for label in {label for label, _, _ in rows}:
        own = [number for number, row in enumerate(rows) if row[0] == label]
        boxes = proposals.xyxy[[rows[number][1] for number in own]]
        left[own] = claims(boxes, left[own], iou=_SAME_IOU, containment=_NESTED, held=_HELD)
    claimed = zip(rows, left.tolist(), strict=True)
    return [
        (label, box, score) for (label, box, _), score in claimed if score > 0 and box != reference
    ]


def _placed(
    rows: list[_Row],
    placed: Mapping[str, Description],
    proposals: Proposals,
    least: float,
    size: tuple[int, int],
) -> list[_Row]:
    """Rows in their order; of a label with a place only those that have it, among those with at
    least the confidence of a detection."""
    for label, meant in placed.items():
        alike = [row for row in rows if row[0] == label and row[2] >= least]
        boxes = proposals.xyxy[[box for _, box, _ in alike]]
        if meant.rank is not None:
            place = meant.rank.chosen(boxes)
            alike = [] if place is None else [alike[place]]
        if meant.part is not None:
            alike = [
                row for row, held in zip(alike, meant.part.holds(boxes, size), strict=True) if held
            ]
        rows = [row for row in rows if row[0] != label or row in alike]
    return rows


def _renumbered(text: str, page: Page) -> str:
    """The text with the page's region numbers replaced by the frame's."""

    def number(match: re.Match[str]) -> str:
        index = int(match.group(1))
        return f"<region{page.indices[index]}>" if index < len(page) else match.group()

    return REGION_TOKEN.sub(number, text)


def _tagged(pattern: re.Pattern[str], text: str) -> str:
    found = pattern.search(text)
    return found.group(1).strip() if found else ""


def _reply(text: str) -> str:
    answer = _tagged(_ANSWER, text)
    plain = _MARKUP.sub("", answer or _THINK.sub("", text))
    return " ".join(plain.split())


def _count(task: Task, generations: Sequence[Generation], detections: Detections) -> int | None:
    """The last number each page states outside labels and region lists, summed; else the boxes
    listed."""
    if task.kind is not TaskKind.COUNT:
        return None
    stated = [_NUMBER.findall(_MARKUP.sub(" ", _LABEL.sub(" ", g.text))) for g in generations]
    numbers = [int(found[-1]) for found in stated if found]
    if numbers:
        return sum(numbers)
    listed = any(parse_regions(g.text) for g in generations)
    return len(detections) if listed else None


def _chances(generation: Generation) -> dict[str, dict[int, float]]:
    """What `parse_regions` finds, and the best probability with which each region was written
    behind its label."""
    ends = list(accumulate(len(piece) for piece in generation.pieces))
    return {
        label: {
            index: max(generation.probabilities[bisect_right(ends, place)] for place in places)
            for index, places in regions.items()
        }
        for label, regions in _mentions(generation.text).items()
    }


def _status(
    task: Task, generations: Sequence[Generation], detections: Detections, *, sure: bool
) -> AnswerStatus:
    if any(generation.truncated for generation in generations):
        return AnswerStatus.TRUNCATED
    if len(detections) or not task.kind.searches:
        return AnswerStatus.OK
    # An explicit empty list is a "no"; words without any list are not an answer to "where", nor are
    # boxes that the model hardly believes in.
    return AnswerStatus.NOT_PRESENT if sure else AnswerStatus.UNSURE
