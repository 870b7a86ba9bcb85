"""Experiment: does the language model depend on where its boxes come from? (Paper, section 4.)

The same images and questions with boxes of the model's own network, of another network, of a
detector that learned nothing (MSER), the true boxes, and true boxes whose edges were moved. Boxes
other than the network's go in as a client's would.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from agent.detections import FloatArray, Proposals, select_proposals
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.average_precision import only_images, resampled_precision
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import AskedLabels, DetectionCounts
from agent.evaluation.tally import Estimate
from agent.frame import load_frame
from agent.pipeline import Pipeline
from agent.prompts import MAX_REGIONS
from agent.training.batches import jitter_boxes

JITTERS = (0.05, 0.1, 0.2, 0.3)
"""Deviations of edges, in sides of the box."""

_MSER_AREA_PX = (60, 40_000)
_MSER_NMS_IOU = 0.6
_LEAST_SIDE_PX = 8.0

BoxSource = Callable[[CocoImage], FloatArray]


@dataclass(frozen=True)
class Source:
    """Where boxes come from: a pipeline's own network, or a function of the image."""

    pipeline: Pipeline
    boxes: BoxSource | None = None


def box_sources(pipeline: Pipeline) -> dict[str, Source]:
    """Every source that needs no other network, by name."""
    sources = {
        "own network": Source(pipeline),
        "true boxes": Source(pipeline, lambda image: image.xyxy),
    }
    for amount in JITTERS:
        sources[f"true boxes, edges off by {amount:.0%}"] = Source(pipeline, jittered(amount))
    return {**sources, "MSER": Source(pipeline, stable_regions)}


def jittered(amount: float) -> BoxSource:
    """True boxes with every edge moved by a share of the box, the same for an image every time."""

    def boxes(image: CocoImage) -> FloatArray:
        rng = np.random.default_rng((23, image.image_id))
        return jitter_boxes(image.xyxy, amount, image.width, image.height, rng)

    return boxes


def stable_regions(image: CocoImage) -> FloatArray:
    """Boxes around maximally stable regions of the grey picture, the largest first.

    Matas et al., "Robust Wide Baseline Stereo from Maximally Stable Extremal Regions" (2002), by
    OpenCV: a detector without a learned parameter.
    """
    grey = cv2.cvtColor(load_frame(image.path).rgb(), cv2.COLOR_RGB2GRAY)
    detector = cv2.MSER.create(min_area=_MSER_AREA_PX[0], max_area=_MSER_AREA_PX[1])
    found = np.array(detector.detectRegions(grey)[1], dtype=np.float32).reshape(-1, 4)
    found[:, 2:] += found[:, :2]
    area = np.prod(found[:, 2:] - found[:, :2], axis=1)
    kept = select_proposals(
        found, (area / max(float(area.max(initial=1.0)), 1.0)).astype(np.float32),
        width=image.width, height=image.height, score_threshold=0.0, nms_iou=_MSER_NMS_IOU,
        max_boxes=MAX_REGIONS, least_side_px=_LEAST_SIDE_PX,
    )  # fmt: skip
    return kept.xyxy


async def measure_source(
    source: Source, data: CocoFolder, *, title: str, num_resamples: int = 100
) -> dict[str, Estimate]:
    """Recall of the boxes themselves, and what the model makes of them."""
    images = {str(image.image_id): image for image in data.images}
    rng = np.random.default_rng(0)
    asked = {name: AskedLabels.draw(image, data, rng) for name, image in images.items()}
    known = {} if source.boxes is None else {n: source.boxes(i) for n, i in images.items()}
    pictures = [
        Picture(name, image.path, tuple(asked[name].tasks(data)), known.get(name))
        for name, image in images.items()
        if name not in known or len(known[name])
    ]
    counts, answered = DetectionCounts(), set()
    async for picture, grounding in ask_all(source.pipeline, pictures, title=title):
        answered.add(picture.name)
        counts.add(images[picture.name], asked[picture.name], grounding.answers)
        counts.add_proposals(images[picture.name], grounding.proposals)
    for name in images.keys() - answered:
        counts.add_proposals(images[name], Proposals())
        counts.tally.add(name, "recall", 0, len(images[name].xyxy))
        counts.tally.add(name, "f1", 0, len(images[name].xyxy))
    truth = only_images(data.raw, {image.image_id for image in data.images})
    precision = resampled_precision(truth, counts.detections, num_resamples=num_resamples)
    return {**counts.tally.estimates(), **precision}
