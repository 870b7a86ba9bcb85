"""Detection on a COCO-format folder: asked by name, present and absent, through the pipeline.

For each image every label present is asked, and as many absent ones (seeded). Average precision
comes from faster-coco-eval; the rest is counted here at IoU 0.5.
"""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import asdict, dataclass, field

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster

from agent.detections import FloatArray, box_iou
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.frame import load_frame
from agent.parsing import Answer
from agent.pipeline import Grounding, Pipeline
from agent.prompts import MAX_REGIONS, Task

_IOU = 0.5


@dataclass(frozen=True)
class DetectionScores:
    """The benchmark's figures; shares are in 0..1."""

    images: int
    AP: float
    """COCO average precision, IoU 0.50 to 0.95, over asked labels."""
    AP50: float
    AR100: float
    """Class-agnostic average recall of at most 100 proposals, IoU 0.50 to 0.95."""
    proposal_recall50: float
    """Share of objects that some proposal overlaps by at least half."""
    region_top1: float
    """Ground-truth boxes given: share of regions called by their right name."""
    precision: float
    """Of the boxes answered for present labels, at IoU 0.5."""
    recall: float
    f1: float
    absent_false_positive_rate: float
    """Share of questions about absent labels answered with a box."""
    seconds_per_image: float
    """Proposals, encoders and all questions of an image; region naming is not counted."""


@dataclass
class _Counts:
    true_positive: int = 0
    answered: int = 0
    objects: int = 0
    absent_asked: int = 0
    absent_wrong: int = 0
    proposals_hit: int = 0
    regions: int = 0
    regions_right: int = 0
    seconds: float = 0.0
    detections: list[dict[str, object]] = field(default_factory=list)
    proposals: list[dict[str, object]] = field(default_factory=list)


async def evaluate_detection(
    pipeline: Pipeline, data: CocoFolder, *, seed: int = 0, name_regions: bool = True
) -> DetectionScores:
    """Ask, match and count over every image of `data`."""
    counts = _Counts()
    rng = np.random.default_rng(seed)
    for image in data.images:
        present = sorted(set(image.category))
        pool = sorted(set(data.categories) - set(present))
        absent = rng.choice(pool, size=min(len(present), len(pool)), replace=False).tolist()
        frame = load_frame(image.path)
        tasks = [Task.detect(data.categories[c]) for c in [*present, *absent]]
        started = time.perf_counter()
        grounding = await pipeline.ground(frame, tasks)
        counts.seconds += time.perf_counter() - started
        _count_answers(counts, image, grounding, present, absent)
        if name_regions and len(image.xyxy):
            await _count_names(counts, pipeline, image, data)
    return _scores(counts, data)


def _count_answers(
    counts: _Counts, image: CocoImage, grounding: Grounding, present: list[int], absent: list[int]
) -> None:
    category = np.array(image.category)
    for label, answer in zip([*present, *absent], grounding.answers, strict=True):
        counts.detections += _coco_rows(image.image_id, label, answer)
        if label in absent:
            counts.absent_asked += 1
            counts.absent_wrong += len(answer.detections) > 0
            continue
        truth = image.xyxy[category == label]
        counts.objects += len(truth)
        counts.answered += len(answer.detections)
        counts.true_positive += match_count(
            answer.detections.xyxy, answer.detections.confidence, truth
        )
    proposals = grounding.proposals
    if len(image.xyxy) and len(proposals):
        best = box_iou(image.xyxy, proposals.xyxy).max(axis=1)
        counts.proposals_hit += int((best >= _IOU).sum())
    counts.proposals += [
        {"image_id": image.image_id, "category_id": 1, "bbox": _xywh(box), "score": float(score)}
        for box, score in zip(proposals.xyxy, proposals.objectness, strict=True)
    ]


def match_count(boxes: FloatArray, scores: FloatArray, truth: FloatArray) -> int:
    """Greedy one-to-one matches at IoU 0.5, surest box first."""
    free = np.ones(len(truth), dtype=bool)
    matched = 0
    overlap = box_iou(boxes, truth)
    for row in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlap[row], 0.0) if len(truth) else np.zeros(0)
        if len(candidates) and candidates.max() >= _IOU:
            free[int(candidates.argmax())] = False
            matched += 1
    return matched


async def _count_names(
    counts: _Counts, pipeline: Pipeline, image: CocoImage, data: CocoFolder
) -> None:
    """Give the true boxes and ask what each of them is."""
    frame = load_frame(image.path)
    for start in range(0, len(image.xyxy), MAX_REGIONS):
        boxes = image.xyxy[start : start + MAX_REGIONS]
        tasks = [Task.describe_region(index) for index in range(len(boxes))]
        grounding = await pipeline.ground(frame, tasks, boxes=boxes)
        for label, answer in zip(image.category[start:], grounding.answers, strict=False):
            counts.regions += 1
            counts.regions_right += _same_name(answer, data.categories[label])


def _same_name(answer: Answer, label: str) -> bool:
    return answer.text.strip().rstrip(".").casefold() == label.casefold()


def _coco_rows(image_id: int, label: int, answer: Answer) -> list[dict[str, object]]:
    found = answer.detections
    return [
        {"image_id": image_id, "category_id": label, "bbox": _xywh(box), "score": float(score)}
        for box, score in zip(found.xyxy, found.confidence, strict=True)
    ]


def _xywh(box: FloatArray) -> list[float]:
    x1, y1, x2, y2 = (float(v) for v in box)
    return [x1, y1, x2 - x1, y2 - y1]


def _scores(counts: _Counts, data: CocoFolder) -> DetectionScores:
    ids = {image.image_id for image in data.images}
    truth = {
        **data.raw,
        "images": [i for i in data.raw["images"] if i["id"] in ids],
        "annotations": [a for a in data.raw["annotations"] if a["image_id"] in ids],
    }
    average = _average_precision(truth, counts.detections)
    agnostic = {
        **truth,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**a, "category_id": 1} for a in truth["annotations"]],
    }
    recall = _ratio(counts.true_positive, counts.objects)
    precision = _ratio(counts.true_positive, counts.answered)
    return DetectionScores(
        images=len(data.images),
        AP=average["AP"],
        AP50=average["AP50"],
        AR100=_average_precision(agnostic, counts.proposals)["AR100"],
        proposal_recall50=_ratio(counts.proposals_hit, counts.objects),
        region_top1=_ratio(counts.regions_right, counts.regions),
        precision=precision,
        recall=recall,
        f1=_ratio(2 * precision * recall, precision + recall),
        absent_false_positive_rate=_ratio(counts.absent_wrong, counts.absent_asked),
        seconds_per_image=_ratio(counts.seconds, len(data.images)),
    )


def _average_precision(
    truth: dict[str, list[dict[str, object]]], rows: list[dict[str, object]]
) -> dict[str, float]:
    """AP, AP50 and AR100 by faster-coco-eval; zeros when nothing was answered."""
    if not rows or not truth["annotations"]:
        return {"AP": 0.0, "AP50": 0.0, "AR100": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):
        reference = COCO(truth)
        evaluation = COCOeval_faster(reference, reference.loadRes(rows), iouType="bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    return {"AP": float(stats[0]), "AP50": float(stats[1]), "AR100": float(stats[8])}


def _ratio(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def as_dict(scores: DetectionScores) -> dict[str, float]:
    """For JSON, rounded to four places."""
    return {name: round(value, 4) for name, value in asdict(scores).items()}
