"""Detection on a COCO-format folder: asked by name, present and absent, through the pipeline.

For each image every label present is asked and as many absent ones (seeded), or, as COCO's own
protocol has it, every label there is. Average precision comes from faster-coco-eval; the rest is
counted here at IoU 0.5.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import numpy as np

from agent.detections import FloatArray, Proposals, box_iou
from agent.evaluation.average_precision import (
    Rows,
    average_precision,
    only_images,
    result_rows,
    xywh,
)
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.tally import Tally
from agent.evaluation.text_match import same_words
from agent.frame import load_frame
from agent.parsing import Answer
from agent.pipeline import Pipeline
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


@dataclass(frozen=True)
class AskedLabels:
    """The labels one image is asked for, by category."""

    present: tuple[int, ...]
    absent: tuple[int, ...]

    @classmethod
    def draw(
        cls,
        image: CocoImage,
        data: CocoFolder,
        rng: np.random.Generator,
        *,
        every_label: bool = False,
        most: int | None = None,
    ) -> AskedLabels:
        """What is there (at most `most`, at random) and as much, or all, that is not."""
        present = sorted(set(image.category))
        pool = sorted(set(data.categories) - set(present))
        if most is not None and len(present) > most:
            present = sorted(rng.choice(present, size=most, replace=False).tolist())
        num_absent = len(pool) if every_label else min(len(present), len(pool))
        return cls(tuple(present), tuple(rng.choice(pool, size=num_absent, replace=False).tolist()))

    @property
    def categories(self) -> tuple[int, ...]:
        return self.present + self.absent

    def tasks(self, data: CocoFolder) -> list[Task]:
        """One question for each label."""
        return [Task.detect(data.categories[category]) for category in self.categories]


@dataclass
class DetectionCounts:
    """What answers about labels amount to, by image."""

    tally: Tally = field(default_factory=Tally)
    detections: Rows = field(default_factory=list)
    """Result rows of every asked label."""

    def add(self, image: CocoImage, asked: AskedLabels, answers: Sequence[Answer]) -> None:
        """Count the answers to `asked.tasks`: `precision`, `recall`, `f1`, `false_positives`."""
        name, category = str(image.image_id), np.array(image.category)
        for label, answer in zip(asked.categories, answers, strict=True):
            self.detections += result_rows(image.image_id, label, answer)
            found = answer.detections
            if label in asked.absent:
                self.tally.add(name, "false_positives", len(found) > 0)
                continue
            truth = image.xyxy[category == label]
            right = match_count(found.xyxy, found.confidence, truth)
            self.tally.add(name, "precision", right, len(found))
            self.tally.add(name, "recall", right, len(truth))
            self.tally.add(name, "f1", 2 * right, len(found) + len(truth))

    def add_proposals(
        self, image: CocoImage, proposals: Proposals, figure: str = "proposal_recall"
    ) -> None:
        """Count `figure`: objects that some proposal overlaps by at least half."""
        hit = 0
        if len(image.xyxy) and len(proposals):
            hit = int((box_iou(image.xyxy, proposals.xyxy).max(axis=1) >= _IOU).sum())
        self.tally.add(str(image.image_id), figure, hit, len(image.xyxy))


async def evaluate_detection(
    pipeline: Pipeline,
    data: CocoFolder,
    *,
    seed: int = 0,
    name_regions: bool = True,
    every_label: bool = False,
) -> DetectionScores:
    """Ask, match and count over every image of `data`; `seed` chooses the absent labels."""
    counts, proposals, seconds = DetectionCounts(), Rows(), 0.0
    rng = np.random.default_rng(seed)
    for image in data.images:
        asked = AskedLabels.draw(image, data, rng, every_label=every_label)
        frame = load_frame(image.path)
        started = time.perf_counter()
        grounding = await pipeline.ground(frame, asked.tasks(data))
        seconds += time.perf_counter() - started
        counts.add(image, asked, grounding.answers)
        counts.add_proposals(image, grounding.proposals)
        proposals += _agnostic_rows(image, grounding.proposals)
        if name_regions and len(image.xyxy):
            await count_names(counts.tally, pipeline, image, data)
    return _scores(counts, proposals, seconds, data)


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


async def count_names(
    tally: Tally, pipeline: Pipeline, image: CocoImage, data: CocoFolder, *, most: int | None = None
) -> None:
    """Give the true boxes, ask what each (of the first `most`) is, count `region_top1`."""
    frame = load_frame(image.path)
    for start in range(0, len(image.xyxy), MAX_REGIONS):
        boxes = image.xyxy[start : start + MAX_REGIONS]
        tasks = [Task.describe_region(index) for index in range(len(boxes))][:most]
        grounding = await pipeline.ground(frame, tasks, boxes=boxes)
        for label, answer in zip(image.category[start:], grounding.answers, strict=False):
            right = same_words(answer.text, data.categories[label])
            tally.add(str(image.image_id), "region_top1", right)


def _agnostic_rows(image: CocoImage, proposals: Proposals) -> Rows:
    return [
        {"image_id": image.image_id, "category_id": 1, "bbox": xywh(box), "score": float(score)}
        for box, score in zip(proposals.xyxy, proposals.objectness, strict=True)
    ]


def _scores(
    counts: DetectionCounts, proposals: Rows, seconds: float, data: CocoFolder
) -> DetectionScores:
    truth = only_images(data.raw, {image.image_id for image in data.images})
    average = average_precision(truth, counts.detections)
    agnostic = {
        **truth,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**a, "category_id": 1} for a in truth["annotations"]],
    }
    shares = counts.tally.estimates(num_resamples=1)

    def share(name: str) -> float:
        return shares[name].value if name in shares else 0.0

    return DetectionScores(
        images=len(data.images),
        AP=average.AP,
        AP50=average.AP50,
        AR100=average_precision(agnostic, proposals).AR100,
        proposal_recall50=share("proposal_recall"),
        region_top1=share("region_top1"),
        precision=share("precision"),
        recall=share("recall"),
        f1=share("f1"),
        absent_false_positive_rate=share("false_positives"),
        seconds_per_image=seconds / len(data.images) if data.images else 0.0,
    )


def as_dict(scores: DetectionScores) -> dict[str, float]:
    """For JSON, rounded to four places."""
    return {name: round(value, 4) for name, value in asdict(scores).items()}
