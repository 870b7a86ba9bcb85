"""From generated tokens to boxes: the answer grammar of VLM-FO1, tolerant of what models write.

`<ground>dog</ground><objects><region3><region7></objects>` names a label and the boxes it refers
to. A region that does not exist is dropped and counted, never a crash; repeated labels are united;
an empty list is an answer ("not here"). Knows no tokenizer: it reads token texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from agent.detections import Detections, Proposals
from agent.features import Generation
from agent.prompts import Task, TaskKind

_GROUND = re.compile(r"<ground>(.*?)</ground><objects>(.*?)</objects>")
_REGION = re.compile(r"<region(\d+)>")


class AnswerStatus(Enum):
    """What kind of answer this is; an empty list of boxes alone would not say."""

    OK = "ok"
    NOT_PRESENT = "not_present"
    UNSURE = "unsure"
    TRUNCATED = "truncated"
    EXPIRED = "expired"
    """Streams only: all that is known is older than the client accepts."""
    PENDING = "pending"
    """Streams only: the first key frame of this question is still being answered."""


@dataclass(frozen=True)
class Answer:
    """One question's answer in the frame's own pixels."""

    task: Task
    text: str
    """What the model wrote, control tokens kept."""
    detections: Detections = field(default_factory=Detections)
    status: AnswerStatus = AnswerStatus.OK
    num_unknown_regions: int = 0
    """Region tokens that named no box and were dropped."""
    num_prefix_tokens_reused: int = 0
    num_passes: int = 0


def parse_regions(text: str) -> dict[str, list[int]]:
    """Label to region indices, in order of first mention; no check against existing boxes."""
    labels: dict[str, list[int]] = {}
    for match in _GROUND.finditer(text):
        regions = labels.setdefault(match.group(1).strip(), [])
        for found in _REGION.finditer(match.group(2)):
            index = int(found.group(1))
            if index not in regions:
                regions.append(index)
    return labels


def parse_answer(task: Task, generation: Generation, proposals: Proposals) -> Answer:
    """The answer to `task`, its region tokens resolved against the frame's proposals."""
    text = generation.text
    labels = parse_regions(text)
    confidence = _region_confidence(generation)
    rows = [(label, index) for label, regions in labels.items() for index in regions]
    known = [(label, index) for label, index in rows if index < len(proposals)]
    indices = np.array([index for _, index in known], dtype=np.int64)
    detections = Detections(
        xyxy=proposals.xyxy[indices],
        confidence=np.array([confidence.get(index, 0.0) for index in indices], dtype=np.float32),
        label=tuple(label for label, _ in known),
        region=indices,
    )
    return Answer(
        task=task,
        text=text,
        detections=detections,
        status=_status(task, generation, labels, detections),
        num_unknown_regions=len(rows) - len(known),
        num_prefix_tokens_reused=generation.num_prefix_tokens_reused,
        num_passes=generation.num_passes,
    )


def _region_confidence(generation: Generation) -> dict[int, float]:
    """Best probability with which each region token was written."""
    confidence: dict[int, float] = {}
    for piece, probability in zip(generation.pieces, generation.probabilities, strict=True):
        found = _REGION.fullmatch(piece)
        if found:
            index = int(found.group(1))
            confidence[index] = max(confidence.get(index, 0.0), probability)
    return confidence


def _status(
    task: Task, generation: Generation, labels: dict[str, list[int]], detections: Detections
) -> AnswerStatus:
    if generation.truncated:
        return AnswerStatus.TRUNCATED
    if len(detections) or task.kind is TaskKind.NAME_REGION:
        return AnswerStatus.OK
    # An explicit empty list is a "no"; words without any list are not an answer to "where".
    return AnswerStatus.NOT_PRESENT if labels else AnswerStatus.UNSURE
