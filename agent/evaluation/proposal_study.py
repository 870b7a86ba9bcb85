"""Experiment: does the language model depend on where its boxes come from? (Paper, section 4.)

The same images and questions with boxes of the model's own network, of another network, of a
detector that learned nothing, the true boxes, and true boxes whose edges were moved. Boxes
other than the network's go in as a client's would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray, Proposals, box_iou, select_proposals
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.average_precision import only_images, resampled_precision
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import LEAST_RANKED, AskedLabels, DetectionCounts
from agent.evaluation.tally import Estimate
from agent.frame import load_frame
from agent.pipeline import Pipeline
from agent.prompts import MAX_REGIONS

JITTERS = (0.05, 0.1, 0.2, 0.3)
"""Deviations of edges, in sides of the box."""

_BLURS_PX = (3, 7)
_THRESHOLDS = (20, 40, 80, 140)
_GAPS_PX = (2, 4, 7)
_LEAST_SIDE_PX = 10.0
_CONTOURS_LONG_PX = 640
"""Contours are sought in pictures of at most this side."""
_MOST_CONTOURS = 2000
_AGREEING_IOU = 0.8
_SUPPRESSION_IOU = 0.6

BoxSource = Callable[[CocoImage], FloatArray]


@dataclass(frozen=True)
class Source:
    """Where boxes come from: a pipeline's own network, or a function of the image."""

    pipeline: Pipeline
    boxes: BoxSource | None = None


def box_sources(pipeline: Pipeline, *, own: BoxSource | None = None) -> dict[str, Source]:
    """Every source that needs no other network, by name.

    Args:
        pipeline: who is asked.
        own: boxes of the pipeline's own network, to be sent as a client's: without their scores.
    """
    sources = {
        "own network": Source(pipeline),
        **({} if own is None else {"own network, boxes alone": Source(pipeline, own)}),
        "true boxes": Source(pipeline, lambda image: image.xyxy),
    }
    for amount in JITTERS:
        sources[f"true boxes, edges off by {amount:.0%}"] = Source(pipeline, jittered(amount))
    return {
        **sources,
        "four boxes a thing, off by 20%": Source(pipeline, repeated),
        "closed contours": Source(pipeline, closed_contours),
    }


def jittered(amount: float) -> BoxSource:
    """True boxes with every edge moved by a share of the box, the same for an image every time."""

    def boxes(image: CocoImage) -> FloatArray:
        rng = np.random.default_rng((23, image.image_id))
        return jitter_boxes(image.xyxy, amount, image.width, image.height, rng)

    return boxes


def repeated(image: CocoImage) -> FloatArray:
    """Four boxes around each thing, edges off by a fifth: as a detector of queries gives, which
    suppresses nothing."""
    rng = np.random.default_rng((29, image.image_id))
    boxes = [jitter_boxes(image.xyxy, 0.2, image.width, image.height, rng) for _ in range(4)]
    return np.concatenate(boxes)[:MAX_REGIONS]


def closed_contours(image: CocoImage) -> FloatArray:
    """Boxes around closed contours of edges, those that most edge detectors agree on first.

    Canny's edges at several smoothings and thresholds, gaps of several widths closed; a box that
    more of these settings give nearly alike is the better one. No learned parameter.
    """
    rgb = load_frame(image.path).rgb()
    scale = min(1.0, _CONTOURS_LONG_PX / max(rgb.shape[:2]))
    if scale < 1.0:
        rgb = cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    found = [
        cv2.boundingRect(contour)
        for blur_px, threshold, gap_px in itertools.product(_BLURS_PX, _THRESHOLDS, _GAPS_PX)
        for contour in _contours(rgb, blur_px, threshold, gap_px)
    ]
    boxes = np.array(found, dtype=np.float32).reshape(-1, 4)
    boxes = boxes[(boxes[:, 2:] >= _LEAST_SIDE_PX).all(axis=1)]
    boxes[:, 2:] += boxes[:, :2]
    # Row by row: the edges of a large photograph close around tens of thousands of boxes.
    rows = [(box_iou(box[None], boxes) > _AGREEING_IOU).sum() for box in boxes]
    best = np.argsort(-np.array(rows), kind="stable")[:_MOST_CONTOURS]
    agreeing, boxes = np.array(rows)[best] / max(len(boxes), 1), boxes[best] / scale
    kept = select_proposals(
        boxes, agreeing.astype(np.float32), width=image.width, height=image.height,
        score_threshold=0.0, nms_iou=_SUPPRESSION_IOU, max_boxes=MAX_REGIONS,
        least_side_px=_LEAST_SIDE_PX,
    )  # fmt: skip
    return kept.xyxy


def _contours(
    rgb: NDArray[np.uint8], blur_px: int, threshold: int, gap_px: int
) -> list[NDArray[np.int32]]:
    smooth = cv2.GaussianBlur(rgb, (blur_px, blur_px), 0)
    edges = cv2.Canny(smooth, threshold, 2 * threshold)
    closed = cv2.morphologyEx(edges, cv2.MORPH_CLOSE, np.ones((gap_px, gap_px), np.uint8))
    contours, _ = cv2.findContours(closed, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    return list(contours)


async def measure_source(
    source: Source, data: CocoFolder, *, title: str, num_resamples: int = 100
) -> dict[str, Estimate]:
    """The boxes themselves (recall, how many an image, which share of them holds something), and
    what the model makes of them."""
    images = {str(image.image_id): image for image in data.images}
    rng = np.random.default_rng(0)
    asked = {name: AskedLabels.draw(image, data, rng) for name, image in images.items()}
    known = {} if source.boxes is None else {n: source.boxes(i) for n, i in images.items()}
    tasks = {name: one.tasks(data, least_confidence=LEAST_RANKED) for name, one in asked.items()}
    pictures = [
        Picture(name, image.path, tuple(tasks[name]), known.get(name))
        for name, image in images.items()
        if name not in known or len(known[name])
    ]
    counts, answered = DetectionCounts(names=data.categories), set()
    counts.least_confidence = source.pipeline.rules.least_confidence
    async for picture, grounding in ask_all(source.pipeline, pictures, title=title):
        answered.add(picture.name)
        counts.add(images[picture.name], asked[picture.name], grounding.answers)
        counts.add_proposals(images[picture.name], grounding.proposals)
        _count_boxes(counts, images[picture.name], grounding.proposals)
    for name in images.keys() - answered:
        counts.add_proposals(images[name], Proposals())
        _count_boxes(counts, images[name], Proposals())
        counts.tally.add(name, "recall", 0, len(images[name].xyxy))
        counts.tally.add(name, "f1", 0, len(images[name].xyxy))
    truth = only_images(data.raw, {image.image_id for image in data.images})
    precision = resampled_precision(truth, counts.detections, num_resamples=num_resamples)
    return {**counts.tally.estimates(), **precision}


def _count_boxes(counts: DetectionCounts, image: CocoImage, proposals: Proposals) -> None:
    name, holding = str(image.image_id), 0
    if len(image.xyxy) and len(proposals):
        holding = int((box_iou(proposals.xyxy, image.xyxy).max(axis=1) >= 0.5).sum())
    counts.tally.add(name, "boxes", len(proposals))
    counts.tally.add(name, "box_precision", holding, len(proposals))


def jitter_boxes(
    xyxy: FloatArray, amount: float, width: int, height: int, rng: np.random.Generator
) -> FloatArray:
    """Boxes with every edge moved by a share of the box, as a proposal network would."""
    sides = np.concatenate([xyxy[:, 2:] - xyxy[:, :2]] * 2, axis=1)
    moved = xyxy + rng.normal(0.0, amount, xyxy.shape) * sides
    limits = np.array([width, height, width, height])
    moved = np.clip(moved, 0, limits)
    bad = (moved[:, 2] - moved[:, 0] < 4) | (moved[:, 3] - moved[:, 1] < 4)
    moved[bad] = xyxy[bad]
    jittered: FloatArray = moved.astype(np.float32)
    return jittered
