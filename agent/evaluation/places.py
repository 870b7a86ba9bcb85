"""Is "leftmost car" answered by the leftmost one? Places and sizes among things alike.

Where a labelled picture has several boxes of one name, each of the forms of `agent.descriptions`
asks for one of them, or for those in a part of the frame; which ones are meant follows from the
labelled boxes. What nearly ties is not asked. Knows no wire and no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from agent.descriptions import PARTS, RANKS
from agent.detections import FloatArray
from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import match_count
from agent.evaluation.tally import Tally
from agent.pipeline import Pipeline
from agent.plain_nouns import plain_noun, plural
from agent.prompts import Task

_LEAST_GAP = 0.03
"""To the next of its like, as a share of the picture's longer side; from a centre to the edge of a
part of the frame, as a share of the picture's width or height."""


@dataclass(frozen=True)
class PlaceQuestion:
    """One of several things, by its place or size, or those in a part of the frame."""

    text: str
    order: str
    """Across, down, size or part."""
    xyxy: FloatArray
    """(n, 4) the boxes that are meant, pixels."""


def questions(image: CocoImage, data: CocoFolder) -> Iterator[PlaceQuestion]:
    """What a picture is asked; nothing where each of its names has one box or a crowd."""
    boxes, numbers = image.sound_boxes()
    categories = [image.category[number] for number in numbers]
    for category in dict.fromkeys(categories):
        alike = boxes[[other == category for other in categories]]
        # A crowd, or a thing that lies at the picture's edge by less than a pixel, has no place.
        if category in image.crowds or len(alike) < max(2, image.category.count(category)):
            continue
        noun = plain_noun(data.categories[category])
        for rank in RANKS:
            place, values = rank.chosen(alike), rank.value(alike)
            if place is None:
                continue
            gap = np.abs(np.delete(values, place) - values[place]).min()
            if gap >= _LEAST_GAP * max(image.width, image.height):
                yield PlaceQuestion(rank.form.format(noun), rank.order, alike[[place]])
        size = image.width, image.height
        for form, part in PARTS.items():
            gap = np.abs(part.centres(alike, size) - np.array([[part.start], [part.end]])).min()
            held = part.holds(alike, size)
            if held.any() and gap >= _LEAST_GAP:
                yield PlaceQuestion(form.format(plural(noun)), "part", alike[held])


async def evaluate_places(pipeline: Pipeline, data: CocoFolder) -> Tally:
    """Precision, recall and F1 at IoU 0.5 of all questions, and F1 by what they compare.

    The count of "recall" is the number of boxes that are meant.
    """
    tally = Tally()
    asked = {str(image.image_id): list(questions(image, data)) for image in data.images}
    pictures = [
        Picture(name, image.path, tuple(Task.detect(one.text) for one in asked[name]))
        for name, image in zip(asked, data.images, strict=True)
    ]
    async for picture, grounding in ask_all(pipeline, pictures, title="places"):
        for one, answer in zip(asked[picture.name], grounding.answers, strict=True):
            found = answer.detections
            right, number = match_count(found.xyxy, found.confidence, one.xyxy), len(found)
            tally.add(picture.name, "precision", right, number)
            tally.add(picture.name, "recall", right, len(one.xyxy))
            for figure in ("f1", f"f1_{one.order}"):
                tally.add(picture.name, figure, 2 * right, number + len(one.xyxy))
    return tally
