"""COCO and counting as VLM-FO1's authors ran them (om-ai-lab/VLM-FO1, its evaluation scripts).

Each protocol says what is asked, how an answer is read, and how it is scored; the project's own
ways stand in `detection` and `counting`. What cannot be known without the authors' files is named
where it is decided. The figures to reach are the newest published: COCO 44.4, CountBench 89.73,
PixMo-Count 85.07, all with UPN's boxes (`--as-published --proposals upn_large.pth`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from agent.evaluation.asking import Picture, ask_all
from agent.evaluation.average_precision import (
    Rows,
    average_precision,
    only_images,
    resampled_precision,
    xywh,
)
from agent.evaluation.coco_folder import CocoFolder
from agent.evaluation.counting import CountQuestion
from agent.evaluation.tally import Estimate, Tally
from agent.parsing import Answer
from agent.pipeline import Grounding, Pipeline
from agent.prompts import Task

NEW_TOKENS = 4096
"""Longest answer when the published scores were measured."""
_HOW_TO_COUNT = (
    "Count each instance of the target object. Locate them with object indexes and then answer the "
    "question with the number of objects."
)
_REGION = re.compile(r"<region\d+>")
_NUMBER = re.compile(r"(?<!region)\d+")


def counting_question(question: str) -> Task:
    """ "How many dogs are there in the image?", with how to count behind it.

    The words of the authors' question files, in which CountBenchQA's questions stand as they are,
    and which say "the image" where the template for users says "this image".
    """
    return replace(Task.chat(f"{question} {_HOW_TO_COUNT}"), max_new_tokens=NEW_TOKENS)


def stated_count(answer: Answer) -> int:
    """The first number of the answer that is no region's, labels included; 0 without one."""
    found = _NUMBER.search(_REGION.sub("", answer.text))
    return int(found.group()) if found else 0


async def evaluate_published_counting(
    pipeline: Pipeline, questions: Sequence[CountQuestion]
) -> Tally:
    """`accuracy` and `mean_absolute_error`."""
    tally = Tally()
    pictures = [
        Picture(str(number), question.source, (counting_question(question.words),))
        for number, question in enumerate(questions)
    ]
    async for picture, grounding in ask_all(pipeline, pictures, title="counting"):
        stated, truth = stated_count(grounding.answers[0]), questions[int(picture.name)].count
        tally.add(picture.name, "accuracy", stated == truth)
        tally.add(picture.name, "mean_absolute_error", abs(stated - truth))
    return tally


def detection_question(data: CocoFolder) -> Task:
    """All names of the file in one question, in its order.

    The authors' questions for COCO are in a file that was not at hand; names are separated as in
    their examples ("orange, apple").
    """
    names = [data.categories[number] for number in sorted(data.categories)]
    return replace(Task.detect(*names), max_new_tokens=NEW_TOKENS)


def detection_rows(image_id: int, grounding: Grounding, data: CocoFolder) -> Rows:
    """Boxes under names of the file, scored by what the proposal network gave them."""
    numbers = {name: number for number, name in data.categories.items()}
    found = grounding.answers[0].detections
    return [
        {
            "image_id": image_id,
            "category_id": numbers[label],
            "bbox": xywh(grounding.proposals.xyxy[region]),
            "score": float(grounding.proposals.objectness[region]),
        }
        for label, region in zip(found.label, found.region, strict=True)
        if label in numbers
    ]


async def evaluate_published_detection(
    pipeline: Pipeline, data: CocoFolder, *, num_resamples: int = 0
) -> dict[str, Estimate]:
    """`AP` and `AP50` as COCO has them, over all names and images.

    Args:
        pipeline: who is asked.
        data: images with their boxes.
        num_resamples: of the intervals; 0: none.
    """
    by_name = {str(image.image_id): image for image in data.images}
    task, rows = detection_question(data), Rows()
    pictures = [Picture(name, image.path, (task,)) for name, image in by_name.items()]
    async for picture, grounding in ask_all(pipeline, pictures, title="detection"):
        rows += detection_rows(by_name[picture.name].image_id, grounding, data)
    truth = only_images(data.raw, {image.image_id for image in data.images})
    if num_resamples:
        known = resampled_precision(truth, rows, num_resamples=num_resamples)
        return {name: known[name] for name in ("AP", "AP50")}
    average = average_precision(truth, rows)
    return {
        "AP": Estimate(average.AP, average.AP, average.AP),
        "AP50": Estimate(average.AP50, average.AP50, average.AP50),
    }
