"""Detection on a COCO-format folder: asked by name, present and absent, through the pipeline.

For each image every label present is asked and as many absent ones, one label at a time: those its
entry lists as `absent`, otherwise seeded draws from the file's other names, or, as COCO's own
protocol has it, every label there is. Average precision is COCO's,
over all boxes that the model gives any chance; the rest is counted here at IoU 0.5, over its
detections. A box that is right under another name (`also`) is neither right nor wrong.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, Proposals, box_iou
from agent.evaluation.average_precision import (
    Rows,
    average_precision,
    only_images,
    resampled_precision,
    result_rows,
    xywh,
)
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.names import is_named, is_wider, synonyms, true_names
from agent.evaluation.tally import Estimate, Tally
from agent.evaluation.text_match import same_words
from agent.frame import Frame, load_frame
from agent.parsing import Answer
from agent.pipeline import Pipeline
from agent.prompts import MAX_REGIONS, Task

MATCHING_IOU = 0.5
LEAST_RANKED = 0.001
"""Boxes with less confidence are not ranked. COCO's average precision takes 100 boxes an image, and
at 0.01 it was 0.07 too low on photographs (docs/decisions/embedded_model.md)."""
_RECALLED = ((0.5, 10), (0.5, 30), (0.5, 100), (0.7, 10), (0.7, 30), (0.7, 100))
"""Overlap and number of best proposals."""

Propose = Callable[[Frame], Proposals]
"""The best boxes of a frame, however sure the network is of them."""


@dataclass(frozen=True)
class DetectionScores:
    """The benchmark's figures; shares are in 0..1."""

    images: int
    objects: int
    """Boxes of present labels."""
    present_labels: int
    """Questions about what is there."""
    absent_labels: int
    """Questions about what is not."""
    AP: float
    """COCO average precision, IoU 0.50 to 0.95, mean over labels that are there somewhere; boxes
    are ranked by confidence over the pictures in which the label was asked."""
    AP50: float
    AR100: float
    """Class-agnostic average recall of at most 100 proposals, IoU 0.50 to 0.95."""
    proposal_recall50: float
    """Share of objects that some proposal shown to the language model overlaps by at least half."""
    proposals_per_image: float
    """Boxes shown to the language model."""
    region_top1: float
    """True boxes given: share of regions called by their name, a synonym or a wider word."""
    region_top1_narrow: float
    """The same without wider words."""
    region_top1_exact: float
    """The category's name, word for word."""
    precision: float
    """Of the boxes answered for present labels, at IoU 0.5."""
    recall: float
    f1: float
    precision_all: float
    """Of all boxes answered: those for absent labels are wrong."""
    f1_all: float
    absent_false_positive_rate: float
    """Share of questions about absent labels answered with a box."""
    seconds_per_image: float
    """Proposals, encoders and all questions of an image; region naming is not counted."""
    proposal_recall: dict[str, float] = field(default_factory=dict)
    """Share of objects that one of the network's best 10, 30 or 100 proposals overlaps by 0.5 or
    0.7, however sure it is of them: `proposal_recall50_at_10` and so on."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """95 % bootstrap intervals over images, by figure."""


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
        arguable: bool = False,
    ) -> AskedLabels:
        """What is there (at most `most`, at random) and as much, or all, that is not.

        Absent names come from the image's own list where it has one. Of the file's other names
        those by which something there may rightly be called are drawn only if `arguable` says so.
        """
        present = sorted(set(image.category))
        pool = sorted(set(data.categories) - set(present))
        if image.absent and not every_label:
            pool = sorted(data.numbers_of(image.absent))
        elif not every_label:
            names = frozenset() if arguable else arguable_names(image, data)
            pool = [category for category in pool if category not in image.crowds]
            pool = [category for category in pool if data.categories[category] not in names]
        if most is not None and len(present) > most:
            present = sorted(rng.choice(present, size=most, replace=False).tolist())
        num_absent = len(pool) if every_label else min(len(present), len(pool))
        return cls(tuple(present), tuple(rng.choice(pool, size=num_absent, replace=False).tolist()))

    @property
    def categories(self) -> tuple[int, ...]:
        return self.present + self.absent

    def tasks(self, data: CocoFolder, *, least_confidence: float | None = None) -> list[Task]:
        """One question for each label."""
        return [
            replace(Task.detect(data.name_of(category)), least_confidence=least_confidence)
            for category in self.categories
        ]


@dataclass
class DetectionCounts:
    """What answers about labels amount to, by image."""

    tally: Tally = field(default_factory=Tally)
    detections: Rows = field(default_factory=list)
    """Result rows of every asked label."""
    names: dict[int, str] = field(default_factory=dict)
    """Category names, where annotations say what else their boxes may be called."""
    least_confidence: float = 0.0
    """Boxes with less are ranked, and are no detections."""

    def add(self, image: CocoImage, asked: AskedLabels, answers: Sequence[Answer]) -> None:
        """Count the answers to `asked.tasks`: `precision`, `recall`, `f1`, `false_positives`, and
        `precision_all` and `f1_all`, in which boxes of absent labels are wrong ones."""
        name, category = str(image.image_id), np.array(image.category)
        for label, answer in zip(asked.categories, answers, strict=True):
            found = answer.detections.at_least(self.least_confidence)
            if label in asked.absent:
                self.detections += result_rows(image.image_id, label, answer)
                self.tally.add(name, "false_positives", len(found) > 0)
                self.tally.add(name, "precision_all", 0, len(found))
                self.tally.add(name, "f1_all", 0, len(found))
                continue
            truth, others = image.xyxy[category == label], self._also(image, label)
            rows = result_rows(image.image_id, label, answer)
            ranked = clear_cases(answer.detections.xyxy, truth, others)
            self.detections += [row for row, kept in zip(rows, ranked, strict=True) if kept]
            clear = clear_cases(found.xyxy, truth, others)
            right = match_count(found.xyxy[clear], found.confidence[clear], truth)
            for figure in ("precision", "precision_all"):
                self.tally.add(name, figure, right, int(clear.sum()))
            self.tally.add(name, "recall", right, len(truth))
            for figure in ("f1", "f1_all"):
                self.tally.add(name, figure, 2 * right, int(clear.sum()) + len(truth))

    def _also(self, image: CocoImage, label: int) -> FloatArray:
        """Boxes of other labels that may be called so, too."""
        word = self.names.get(label, "")
        rows = [
            index
            for index, category in enumerate(image.category)
            if category != label and word in image.also_of(index)
        ]
        return image.xyxy[rows]

    def add_proposals(
        self, image: CocoImage, proposals: Proposals, figure: str = "proposal_recall"
    ) -> None:
        """Count `figure`: objects that some proposal overlaps by at least half."""
        hit = 0
        if len(image.xyxy) and len(proposals):
            hit = int((box_iou(image.xyxy, proposals.xyxy).max(axis=1) >= MATCHING_IOU).sum())
        self.tally.add(str(image.image_id), figure, hit, len(image.xyxy))

    def add_best_proposals(self, image: CocoImage, best: Proposals) -> None:
        """Count `proposal_recall50_at_10` and the like, of the network's best boxes."""
        for least, number in _RECALLED:
            hit = 0
            if len(image.xyxy) and len(best):
                overlap = box_iou(image.xyxy, best.top(number).xyxy).max(axis=1)
                hit = int((overlap >= least).sum())
            figure = f"proposal_recall{100 * least:.0f}_at_{number}"
            self.tally.add(str(image.image_id), figure, hit, len(image.xyxy))


async def evaluate_detection(
    pipeline: Pipeline,
    data: CocoFolder,
    *,
    seed: int = 0,
    name_regions: bool = True,
    every_label: bool = False,
    propose: Propose | None = None,
    num_resamples: int = 0,
) -> DetectionScores:
    """Ask, match and count over every image of `data`.

    Args:
        pipeline: who is asked.
        data: images with their boxes.
        seed: chooses the absent labels.
        name_regions: also give the true boxes and ask what each is.
        every_label: ask each image for all labels of the file.
        propose: the network's best boxes, to measure their recall; without it, those shown.
        num_resamples: of the intervals; 0: none.
    """
    counts, proposals, seconds = DetectionCounts(names=data.categories), Rows(), 0.0
    counts.least_confidence = pipeline.rules.least_confidence
    rng = np.random.default_rng(seed)
    for image in data.images:
        asked = AskedLabels.draw(image, data, rng, every_label=every_label)
        frame = load_frame(image.path)
        started = time.perf_counter()
        tasks = asked.tasks(data, least_confidence=LEAST_RANKED)
        grounding = await pipeline.ground(frame, tasks)
        seconds += time.perf_counter() - started
        counts.add(image, asked, grounding.answers)
        counts.add_proposals(image, grounding.proposals)
        counts.add_best_proposals(image, propose(frame) if propose else grounding.proposals)
        proposals += _agnostic_rows(image, grounding.proposals)
        name = str(image.image_id)
        counts.tally.add(name, "proposals_per_image", len(grounding.proposals))
        counts.tally.add(name, "present_labels", len(asked.present))
        counts.tally.add(name, "absent_labels", len(asked.absent))
        if name_regions and len(image.xyxy):
            await count_called(counts.tally, pipeline, image, data)
    return _scores(counts, proposals, seconds, data, num_resamples)


def arguable_names(image: CocoImage, data: CocoFolder) -> frozenset[str]:
    """Every word by which something in the image may rightly be called."""
    return frozenset().union(
        *(
            true_names(data.categories[category], image.also_of(index))
            for index, category in enumerate(image.category)
        )
    )


def clear_cases(boxes: FloatArray, truth: FloatArray, others: FloatArray) -> NDArray[np.bool_]:
    """Which boxes count: not those on nothing of the label, but on what may be called so, too."""
    if not len(others) or not len(boxes):
        return np.ones(len(boxes), dtype=bool)
    on_truth = box_iou(boxes, truth).max(axis=1, initial=0.0) >= MATCHING_IOU
    on_others = box_iou(boxes, others).max(axis=1) >= MATCHING_IOU
    return np.asarray(on_truth | ~on_others)


def match_count(boxes: FloatArray, scores: FloatArray, truth: FloatArray) -> int:
    """Greedy one-to-one matches at IoU 0.5, surest box first."""
    free = np.ones(len(truth), dtype=bool)
    matched = 0
    overlap = box_iou(boxes, truth)
    for row in np.argsort(-scores, kind="stable"):
        candidates = np.where(free, overlap[row], 0.0) if len(truth) else np.zeros(0)
        if len(candidates) and candidates.max() >= MATCHING_IOU:
            free[int(candidates.argmax())] = False
            matched += 1
    return matched


async def count_called(
    tally: Tally, pipeline: Pipeline, image: CocoImage, data: CocoFolder, *, most: int | None = None
) -> None:
    """Give the true boxes, ask what each (of the first `most`) is, count `region_top1` (name,
    synonym or wider word), `region_top1_narrow` (no wider word) and `region_top1_exact`."""
    for index, said in await _called(pipeline, image, most):
        name, also = data.categories[image.category[index]], image.also_of(index)
        narrow = {name, *synonyms(name), *(word for word in also if not is_wider(word))}
        for figure, right in (
            ("region_top1", is_named(said, true_names(name, also))),
            ("region_top1_narrow", is_named(said, narrow)),
            ("region_top1_exact", same_words(said, name)),
        ):
            tally.add(str(image.image_id), figure, right)


async def _called(pipeline: Pipeline, image: CocoImage, most: int | None) -> list[tuple[int, str]]:
    """Objects, and what the model calls them when it is given their boxes."""
    frame, found = load_frame(image.path), []
    sound, numbers = image.sound_boxes()
    for start in range(0, len(sound), MAX_REGIONS):
        boxes = sound[start : start + MAX_REGIONS]
        tasks = [Task.describe_region(index) for index in range(len(boxes))][:most]
        grounding = await pipeline.ground(frame, tasks, boxes=boxes)
        said = [answer.reply or answer.text for answer in grounding.answers]
        found += list(zip(numbers[start:], said, strict=False))
    return found


def _agnostic_rows(image: CocoImage, proposals: Proposals) -> Rows:
    return [
        {"image_id": image.image_id, "category_id": 1, "bbox": xywh(box), "score": float(score)}
        for box, score in zip(proposals.xyxy, proposals.objectness, strict=True)
    ]


def _scores(
    counts: DetectionCounts, proposals: Rows, seconds: float, data: CocoFolder, num_resamples: int
) -> DetectionScores:
    truth = only_images(data.raw, {image.image_id for image in data.images})
    average = average_precision(truth, counts.detections)
    agnostic = {
        **truth,
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [{**a, "category_id": 1} for a in truth["annotations"]],
    }
    shares = counts.tally.estimates(num_resamples=max(1, num_resamples))
    if num_resamples:
        known = resampled_precision(truth, counts.detections, num_resamples=num_resamples)
        shares |= {name: known[name] for name in ("AP", "AP50")}

    def share(name: str) -> float:
        return shares[name].value if name in shares else 0.0

    def total(name: str) -> int:
        return round(sum(row.get(name, (0.0, 0.0))[0] for row in counts.tally.images.values()))

    best = [f"proposal_recall{100 * least:.0f}_at_{number}" for least, number in _RECALLED]
    return DetectionScores(
        images=len(data.images),
        objects=sum(len(image.xyxy) for image in data.images),
        present_labels=total("present_labels"),
        absent_labels=total("absent_labels"),
        AP=average.AP,
        AP50=average.AP50,
        AR100=average_precision(agnostic, proposals).AR100,
        proposal_recall50=share("proposal_recall"),
        proposals_per_image=share("proposals_per_image"),
        region_top1=share("region_top1"),
        region_top1_narrow=share("region_top1_narrow"),
        region_top1_exact=share("region_top1_exact"),
        precision=share("precision"),
        recall=share("recall"),
        f1=share("f1"),
        precision_all=share("precision_all"),
        f1_all=share("f1_all"),
        absent_false_positive_rate=share("false_positives"),
        seconds_per_image=seconds / len(data.images) if data.images else 0.0,
        proposal_recall={name: share(name) for name in best},
        intervals=_intervals(shares) if num_resamples else {},
    )


_CALLED = {"proposal_recall": "proposal_recall50", "false_positives": "absent_false_positive_rate"}
"""Counted name to reported one, where they differ."""


def _intervals(shares: dict[str, Estimate]) -> dict[str, tuple[float, float]]:
    return {
        _CALLED.get(name, name): (share.low, share.high)
        for name, share in shares.items()
        if name not in ("present_labels", "absent_labels", "proposals_per_image")
    }


def as_dict(scores: DetectionScores) -> dict[str, object]:
    """For JSON, rounded to four places; intervals stand by themselves, under `intervals`."""
    flat = {
        entry.name: round(getattr(scores, entry.name), 4)
        for entry in fields(scores)
        if entry.name not in ("proposal_recall", "intervals")
    }
    recalls = {name: round(value, 4) for name, value in scores.proposal_recall.items()}
    intervals = {
        name: [round(low, 4), round(high, 4)] for name, (low, high) in scores.intervals.items()
    }
    return {**flat, **recalls, "intervals": intervals}
