"""COCO average precision by faster-coco-eval, and how sure it is. Knows no model.

Metric: https://cocodataset.org/#detection-eval. Rows are COCO result entries: `image_id`,
`category_id`, `bbox` as x, y, width, height, and `score`.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from agent.detections import FloatArray
from agent.evaluation.tally import Estimate, interval, resampling_weights
from agent.parsing import Answer

Rows = list[dict[str, Any]]
Truth = dict[str, list[dict[str, Any]]]
"""A COCO annotation file, parsed."""

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
_CHUNK = 1 << 21
"""Numbers that are worked on at once."""


@dataclass(frozen=True)
class AveragePrecision:
    """What COCO's summary names; 0 where nothing was answered."""

    AP: float = 0.0
    """IoU 0.50 to 0.95."""
    AP50: float = 0.0
    AR100: float = 0.0
    """Average recall of at most 100 boxes an image, IoU 0.50 to 0.95."""


def average_precision(truth: Truth, rows: Rows) -> AveragePrecision:
    """Average precision of result rows; zeros when nothing was answered."""
    if not rows or not truth["annotations"]:
        return AveragePrecision()
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = _evaluation(truth, rows)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats
    return AveragePrecision(float(stats[0]), float(stats[1]), float(stats[8]))


def _evaluation(truth: Truth, rows: Rows) -> COCOeval_faster:
    reference = COCO(truth)
    # The library writes areas and ids into the rows it is given.
    results = reference.loadRes([dict(row) for row in rows])
    return COCOeval_faster(reference, results, iouType="bbox")


def resampled_precision(
    truth: Truth, rows: Rows, *, num_resamples: int = 500, seed: int = 0
) -> dict[str, Estimate]:
    """AP and AP50 with bootstrap intervals; an image drawn twice counts as two images."""
    whole = average_precision(truth, rows)
    images = {int(image["id"]): place for place, image in enumerate(truth["images"])}
    weights = resampling_weights(len(images), num_resamples, seed)
    drawn = weighted_precision(truth, rows, images, weights)
    count = len(truth["annotations"])
    return {
        "AP": interval(whole.AP, drawn[:, 0], count=count, centred=True),
        "AP50": interval(whole.AP50, drawn[:, 1], count=count, centred=True),
    }


def weighted_precision(
    truth: Truth, rows: Rows, images: dict[int, int], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AP and AP50 where images count as often as `weights` say: (num_weightings, 2).

    Boxes are matched once, as COCO does it; what an image's boxes match does not depend on how
    often the image is counted. COCO's ranges of object size are left out.

    Args:
        truth: an annotation file.
        rows: result rows.
        images: image id to column of `weights`.
        weights: (num_weightings, num_images), each at least 0.
    """
    totals, known = np.zeros((len(weights), 2)), np.zeros(len(weights))
    for category in _matched(truth, rows, images):
        objects = weights @ category.num_objects
        there = objects > 0
        known += there
        if not len(category.score) or not there.any():
            continue
        found = np.zeros((int(there.sum()), 2))
        step = max(1, _CHUNK // len(category.score))
        for start in range(0, len(found), step):
            part = slice(start, start + step)
            found[part] = _interpolated(category, weights[there][part], objects[there][part])
        totals[there] += found
    return np.asarray(totals / np.maximum(known, 1.0)[:, None])


@dataclass(frozen=True)
class _Matched:
    """The result rows of one category, surest first, and what they are worth."""

    score: NDArray[np.float64]
    image: NDArray[np.int64]
    """Column of the image's weight."""
    right: NDArray[np.bool_]
    """(num_thresholds, num_rows)."""
    counted: NDArray[np.bool_]
    """False where only a crowd was hit."""
    num_objects: NDArray[np.float64]
    """(num_images,)."""


def _matched(truth: Truth, rows: Rows, images: dict[int, int]) -> Iterator[_Matched]:
    objects: dict[tuple[int, int], list[dict[str, Any]]] = {}
    answers: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for entries, groups in ((truth["annotations"], objects), (rows, answers)):
        for entry in entries:
            groups.setdefault((entry["category_id"], entry["image_id"]), []).append(entry)
    for category in dict.fromkeys(number for number, _ in objects):
        scores, columns, number = [], [], np.zeros(len(images))
        right: list[NDArray[np.bool_]] = []
        counted: list[NDArray[np.bool_]] = []
        for image, column in images.items():
            there = objects.get((category, image), [])
            said = sorted(answers.get((category, image), []), key=lambda row: -row["score"])[:100]
            number[column] = sum(not entry.get("iscrowd", 0) for entry in there)
            hit, whole = _hits(said, there)
            scores += [row["score"] for row in said]
            columns += [column] * len(said)
            right.append(hit)
            counted.append(whole)
        score = np.array(scores, dtype=np.float64)
        order = np.argsort(-score, kind="stable")
        yield _Matched(
            score[order],
            np.array(columns, dtype=np.int64)[order],
            np.concatenate(right, axis=1)[:, order],
            np.concatenate(counted, axis=1)[:, order],
            number,
        )


def _hits(said: Rows, there: Rows) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which rows of one image, surest first, are right at each threshold, and which count."""
    right = np.zeros((len(_THRESHOLDS), len(said)), dtype=bool)
    counted = np.ones_like(right)
    if not said or not there:
        return right, counted
    found, true = _corners(said), _corners(there)
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in there])
    overlap = _overlap(found, true, crowd)
    for level, least in enumerate(_THRESHOLDS):
        free = ~crowd
        for row in range(len(said)):
            single = np.where(free, overlap[row], -1.0)
            best = int(single.argmax())
            if single[best] >= least:
                right[level, row], free[best] = True, False
            elif (overlap[row][crowd] >= least).any():
                counted[level, row] = False
    return right, counted


def _corners(entries: Rows) -> NDArray[np.float64]:
    boxes = np.array([entry["bbox"] for entry in entries], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _overlap(
    found: NDArray[np.float64], true: NDArray[np.float64], crowd: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Intersection over union; over the found box alone where a crowd is hit."""
    low = np.maximum(found[:, None, :2], true[None, :, :2])
    high = np.minimum(found[:, None, 2:], true[None, :, 2:])
    shared = np.clip(high - low, 0.0, None).prod(axis=2)
    own = (found[:, 2:] - found[:, :2]).prod(axis=1)[:, None]
    other = (true[:, 2:] - true[:, :2]).prod(axis=1)[None]
    whole = np.where(crowd[None], own, own + other - shared)
    return np.asarray(shared / np.maximum(whole, 1e-9))


def _interpolated(
    category: _Matched, weights: NDArray[np.float64], objects: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Mean of the 101-point precisions over all thresholds, and that at 0.5: (num, 2)."""
    times = weights[:, category.image]
    levels = np.zeros((len(_THRESHOLDS), len(weights)))
    for level, (right, counted) in enumerate(zip(category.right, category.counted, strict=True)):
        rights = np.cumsum(times * right, axis=1)
        wrongs = np.cumsum(times * (counted & ~right), axis=1)
        recall = rights / objects[:, None]
        precision = rights / np.maximum(rights + wrongs, np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        for row in range(len(weights)):
            places = np.searchsorted(recall[row], _RECALLS, side="left")
            reached = places < recall.shape[1]
            levels[level, row] = best[row, places[reached]].sum() / len(_RECALLS)
    return np.stack([levels.mean(axis=0), levels[0]], axis=1)


def only_images(truth: Truth, ids: Collection[int]) -> Truth:
    """The part of an annotation file about some images, with the fields COCO's code needs."""
    kept = [a for a in truth["annotations"] if a["image_id"] in ids]
    needed = [{"iscrowd": 0, "area": a["bbox"][2] * a["bbox"][3], **a} for a in kept]
    return {
        **truth,
        "images": [i for i in truth["images"] if i["id"] in ids],
        "annotations": [{**a, "id": number} for number, a in enumerate(needed, start=1)],
    }


def result_rows(image_id: int, category_id: int, answer: Answer) -> Rows:
    """An answer's boxes as result entries of one category."""
    found = answer.detections
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": xywh(box), "score": float(score)}
        for box, score in zip(found.xyxy, found.confidence, strict=True)
    ]


def xywh(box: FloatArray) -> list[float]:
    """x, y, width, height of corners, as COCO writes boxes."""
    x1, y1, x2, y2 = (float(value) for value in box)
    return [x1, y1, x2 - x1, y2 - y1]
