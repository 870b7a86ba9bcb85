"""OVDEval: detection by fine-grained labels with hard negatives, scored by NMS-AP.

Benchmark and metric: Yao et al., "How to Evaluate the Generalization of Detection?" (arXiv
2308.13177); file format and rules from om-ai-lab/OVDEval (Evaluation.md, eval.py). A sub-task is
`annotations/NAME.json`, COCO with two more fields per image, `text` (labels that are there) and
`neg_text` (labels made to be mistaken for them), and pictures in `images/NAME`. AP alone rewards
answering every label with the same box; NMS-AP first keeps, of all boxes on one true object
whatever their label, the surest.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.detections import FloatArray, box_iou
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.average_precision import (
    Rows,
    average_precision,
    only_images,
    result_rows,
)
from agent.evaluation.coco_folder import CocoFolder, load_coco
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError

_IOU = 0.5


@dataclass(frozen=True)
class NmsScores:
    """One sub-task's figures."""

    NMS_AP: float
    NMS_AP50: float
    AP: float
    """Without the suppression: what plain COCO AP would have said."""
    AP50: float


def load_ovdeval(folder: Path, *, limit: int | None = None) -> dict[str, CocoFolder]:
    """The sub-tasks of a benchmark folder.

    Raises:
        SourceError: no sub-task is there, or one cannot be read.
    """
    files = sorted((folder / "annotations").glob("*.json"))
    if not files:
        raise SourceError(f"{folder / 'annotations'} holds no sub-task (NAME.json)")
    return {
        file.stem: load_coco(folder / "images" / file.stem, file, limit=limit) for file in files
    }


async def evaluate_ovdeval(pipeline: Pipeline, data: CocoFolder, *, title: str = "") -> NmsScores:
    """One sub-task: every image is asked for its own labels, right and wrong."""
    number = {name: category for category, name in reversed(data.categories.items())}
    entries = {int(entry["id"]): entry for entry in data.raw["images"]}
    labels = {
        image.image_id: [*_texts(entries[image.image_id], "text"),
                         *_texts(entries[image.image_id], "neg_text")]
        for image in data.images
    }  # fmt: skip
    pictures = [
        Picture(str(image.image_id), image.path,
                tuple(Task.detect(label) for label in labels[image.image_id]))
        for image in data.images
    ]  # fmt: skip
    rows: Rows = []
    async for picture, grounding in ask_all(pipeline, pictures, title=title):
        image_id = int(picture.name)
        for label, answer in zip(labels[image_id], grounding.answers, strict=True):
            if label in number:
                rows += result_rows(image_id, number[label], answer)
    truth = only_images(data.raw, set(labels))
    kept = average_precision(truth, suppressed(truth["annotations"], rows))
    plain = average_precision(truth, rows)
    return NmsScores(kept.AP, kept.AP50, plain.AP, plain.AP50)


def _texts(entry: Mapping[str, object], name: str) -> list[str]:
    texts = entry.get(name, [])
    if not isinstance(texts, list):
        raise SourceError(f"field {name!r} of image {entry.get('id')} is not a list of labels")
    return [str(text) for text in texts]


def suppressed(annotations: Rows, rows: Rows, *, iou: float = _IOU) -> Rows:
    """The result rows without those that lose a true object to a surer row.

    For each true box, of the rows of its image that overlap it by more than `iou` the surest
    stays; the others go, unless another true box keeps them. Rows on no true box stay.
    """
    truth = defaultdict(list)
    for annotation in annotations:
        truth[annotation["image_id"]].append(annotation["bbox"])
    answers = defaultdict(list)
    for number, row in enumerate(rows):
        answers[row["image_id"]].append(number)
    lost: set[int] = set()
    for image_id, numbers in answers.items():
        overlap = box_iou(_xyxy([rows[n]["bbox"] for n in numbers]), _xyxy(truth[image_id]))
        score = np.array([rows[n]["score"] for n in numbers])
        winners: set[int] = set()
        losers: set[int] = set()
        for column in overlap.T:
            near = np.flatnonzero(column > iou)
            if len(near):
                best = int(near[score[near].argmax()])
                winners.add(best)
                losers.update(int(row) for row in near if row != best)
        lost.update(numbers[row] for row in losers - winners)
    return [row for number, row in enumerate(rows) if number not in lost]


def _xyxy(boxes: list[list[float]]) -> FloatArray:
    array = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    array[:, 2:] += array[:, :2]
    return array


def mean_scores(scores: Mapping[str, NmsScores]) -> dict[str, float]:
    """NMS-AP of each sub-task, and the means over sub-tasks the benchmark is quoted by."""
    names = ("NMS_AP", "NMS_AP50", "AP", "AP50")
    means = {
        f"mean {name}": math.fsum(getattr(s, name) for s in scores.values()) / len(scores)
        for name in names
    }
    return {**{f"{task} NMS_AP": score.NMS_AP for task, score in scores.items()}, **means}
