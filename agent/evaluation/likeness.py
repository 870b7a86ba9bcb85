"""Is more of what stands in a box found? Visual prompts on a folder of labelled pictures.

Of each labelled object the network's own best box refers to it (`Task.find_similar`); right are the
labelled boxes of the same name. Objects that are the only one of their name show what is taken for
another. Knows no wire and no model.
"""

from __future__ import annotations

from agent.detections import box_iou
from agent.evaluation.asking import frame_of
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import MATCHING_IOU, match_count
from agent.evaluation.tally import Tally
from agent.pipeline import Pipeline
from agent.prompts import Task


async def evaluate_likeness(pipeline: Pipeline, data: CocoFolder) -> Tally:
    """Precision, recall and F1 at IoU 0.5 where there are others of the name, and the share of
    objects without another that are answered with a box (`alone_with_a_box`).

    Raises:
        InvalidFrame: a picture cannot be read.
    """
    tally = Tally()
    for image in data.images:
        await _ask(tally, pipeline, image)
    return tally


async def _ask(tally: Tally, pipeline: Pipeline, image: CocoImage) -> None:
    boxes, numbers = image.sound_boxes()
    categories = [image.category[number] for number in numbers]
    # In a crowd nobody can say how many others there are.
    objects = [k for k, category in enumerate(categories) if category not in image.crowds]
    if not objects:
        return
    frame, name = frame_of(image.path), str(image.image_id)
    overlap = box_iou(boxes, (await pipeline.propose(frame)).xyxy)
    best = {
        k: int(overlap[k].argmax()) for k in objects if overlap[k].max(initial=0.0) >= MATCHING_IOU
    }
    grounding = await pipeline.ground(frame, [Task.find_similar(box) for box in best.values()])
    for (own, _), answer in zip(best.items(), grounding.answers, strict=True):
        others = [k for k in objects if k != own and categories[k] == categories[own]]
        found = answer.detections
        if not others:
            tally.add(name, "alone_with_a_box", len(found) > 0)
            continue
        right = match_count(found.xyxy, found.confidence, boxes[others])
        tally.add(name, "precision", right, len(found))
        tally.add(name, "recall", right, len(others))
        tally.add(name, "f1", 2 * right, len(found) + len(others))
