"""Experiment: recall against the number of objects in a picture, with and without paging.

A prompt holds 100 regions. Without paging the best 100 boxes are all the model ever sees; with
paging (`agent.paging`) every box stands on some page. Both are measured with the proposal
network's boxes, whose limit is lifted for this, and with the true boxes, which shows what of the
loss is the network's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from agent.detections import FloatArray
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.composed_sets import ComposedSet
from agent.evaluation.detection import AskedLabels, DetectionCounts
from agent.evaluation.tally import Estimate
from agent.frame import Frame, load_frame
from agent.pipeline import Grounding, Pipeline
from agent.prompts import MAX_REGIONS
from agent.proposer import Proposer
from agent.training.scenes import SceneSettings

NUMBERS = (10, 30, 60, 100, 150, 200, 300)
"""Objects aimed at; the fullest pictures end up with fewer."""

_SIDE_PX = 896
_OBJECT_PX = (20.0, 90.0)
_MOST_LABELS = 8
_LEAST_PX = 8.0


@dataclass(frozen=True)
class Clutter:
    """Pictures with about `num_objects` each, and their figures by source and paging."""

    num_objects: float
    """Mean number that found room."""
    figures: dict[str, dict[str, Estimate]]


def crowded_set(num_objects: int, settings: SceneSettings) -> ComposedSet:
    """Large pictures with a fixed number of small objects, otherwise as `settings`."""
    return ComposedSet(
        f"clutter{num_objects}",
        replace(
            settings,
            size=(_SIDE_PX, _SIDE_PX),
            num_objects=(num_objects, num_objects),
            object_px=_OBJECT_PX,
            overlap_probability=0.05,
            min_visible=0.5,
        ),
    )


async def measure_clutter(pipeline: Pipeline, proposer: Proposer, data: CocoFolder) -> Clutter:
    """Recall of asked objects, of at most `_MOST_LABELS` labels an image.

    `proposal_recall` is the share of all objects that some box the model saw overlaps by half;
    `boxes` how many it saw.
    """
    return await _measured(pipeline, data, lambda frame, image: _sources(proposer, frame, image))


async def measure_distractors(
    pipeline: Pipeline, proposer: Proposer, data: CocoFolder
) -> dict[str, dict[str, Estimate]]:
    """Photographs with their own boxes among so many at random that there are `NUMBERS`."""

    def sources(frame: Frame, image: CocoImage) -> dict[str, FloatArray]:
        proposed = proposer.propose([frame])[0].xyxy
        return {str(n): _among_random(proposed, n, image) for n in NUMBERS}

    return (await _measured(pipeline, data, sources)).figures


def _among_random(proposed: FloatArray, number: int, image: CocoImage) -> FloatArray:
    """The best boxes, and any of the picture where they are fewer, in no order."""
    rng = np.random.default_rng((31, image.image_id))
    size = np.array([image.width, image.height] * 2)
    corners = rng.uniform(0, 1, (2 * max(NUMBERS), 2, 2))
    corners.sort(axis=1)
    any_boxes = (corners.reshape(-1, 4) * size).astype(np.float32)
    any_boxes = any_boxes[(any_boxes[:, 2:] - any_boxes[:, :2] >= _LEAST_PX).all(axis=1)]
    boxes = np.concatenate([proposed[:number], any_boxes])[:number]
    return boxes[rng.permutation(len(boxes))]


async def _measured(
    pipeline: Pipeline,
    data: CocoFolder,
    sources: Callable[[Frame, CocoImage], dict[str, FloatArray]],
) -> Clutter:
    counts: dict[str, DetectionCounts] = {}
    rng = np.random.default_rng(0)
    for image in data.images:
        asked = AskedLabels.draw(image, data, rng, most=_MOST_LABELS)
        frame = load_frame(image.path)
        # Up to 100 boxes, paging changes nothing: asked once, not answered from the cache.
        done: dict[bytes, tuple[Grounding, float]] = {}
        for name, boxes in sources(frame, image).items():
            if boxes.tobytes() not in done:
                started = time.perf_counter()
                answered = await pipeline.ground(frame, asked.tasks(data), boxes=boxes)
                done[boxes.tobytes()] = (answered, time.perf_counter() - started)
            grounding, seconds = done[boxes.tobytes()]
            counted = counts.setdefault(name, DetectionCounts(names=data.categories))
            counted.add(image, asked, grounding.answers)
            counted.add_proposals(image, grounding.proposals)
            counted.tally.add(str(image.image_id), "seconds", seconds)
            counted.tally.add(str(image.image_id), "boxes", len(boxes))
    mean = float(np.mean([len(image.xyxy) for image in data.images]))
    return Clutter(mean, {name: counted.tally.estimates() for name, counted in counts.items()})


def _sources(proposer: Proposer, frame: Frame, image: CocoImage) -> dict[str, FloatArray]:
    """Boxes by what they are and whether all of them are looked at."""
    proposed = proposer.propose([frame])[0].xyxy
    # The order of truth is that of drawing; which 100 are shown must not follow from it.
    true = image.xyxy[np.random.default_rng(image.image_id).permutation(len(image.xyxy))]
    return {
        "proposals, best 100": proposed[:MAX_REGIONS],
        "proposals, paged": proposed,
        "true boxes, any 100": true[:MAX_REGIONS],
        "true boxes, paged": true,
    }
