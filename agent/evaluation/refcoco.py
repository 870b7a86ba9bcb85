"""RefCOCO, RefCOCO+ and RefCOCOg: one object by an expression; accuracy at IoU 0.5.

Benchmark: Yu et al., "Modeling Context in Referring Expressions" (arXiv 1608.00272); format of
lichengunc/refer (refer.py): `instances.json`, as COCO's, and `refs(SPLITTER).p`, a pickled list of
`{ref_id, ann_id, image_id, split, sentences: [{sent_id, sent}]}`. The same list as JSON
(`refs(SPLITTER).json`) is read too. Pickles may name no class, so they can hold data and nothing
else.
"""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agent.detections import FloatArray, box_iou
from agent.evaluation.asking import Picture, ask_all, corners
from agent.evaluation.tally import Tally
from agent.parsing import Answer
from agent.pipeline import Pipeline
from agent.prompts import Task
from groundstream.errors import SourceError

_IOU = 0.5


@dataclass(frozen=True)
class Expression:
    """One sentence and the object it means."""

    sent_id: int
    words: str
    xyxy: FloatArray
    """(4,) pixels."""


@dataclass(frozen=True)
class ReferredImage:
    """An image and every expression about it."""

    path: Path
    expressions: tuple[Expression, ...]


class _DataOnly(pickle.Unpickler):
    """Reads lists, dictionaries, strings and numbers; refuses everything that could run."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}, but a list of refs is plain data")


def load_refcoco(
    refs: Path, instances: Path, images: Path, *, split: str = "val", limit: int | None = None
) -> tuple[ReferredImage, ...]:
    """The first `limit` images of a split ("val", "testA", "testB", "test").

    Raises:
        SourceError: a file cannot be read or is not what it should be, or the split is empty.
    """
    try:
        listed = read_refs(refs)
        raw = json.loads(instances.read_text())
        boxes = {annotation["id"]: annotation["bbox"] for annotation in raw["annotations"]}
        entries = {entry["id"]: entry for entry in raw["images"]}
        found: dict[int, list[Expression]] = defaultdict(list)
        for ref in listed:
            entry = entries[ref["image_id"]]
            box = corners(boxes[ref["ann_id"]], entry["width"], entry["height"])
            if ref["split"] == split and box is not None:
                found[ref["image_id"]] += [
                    Expression(int(sentence["sent_id"]), str(sentence["sent"]), box)
                    for sentence in ref["sentences"]
                ]
    except (OSError, ValueError, KeyError, TypeError, pickle.UnpicklingError, EOFError) as error:
        raise SourceError(f"{refs} or {instances} is not in refer's format ({error!r})") from error
    if not found:
        splits = sorted({str(ref["split"]) for ref in listed})
        raise SourceError(f"{refs} has no expression of split {split!r}, only of {splits}")
    return tuple(
        ReferredImage(images / str(entries[image_id]["file_name"]), tuple(expressions))
        for image_id, expressions in list(found.items())[:limit]
    )


def read_refs(path: Path) -> list[dict[str, Any]]:
    """refer's list, pickled or as JSON; raises what reading and unpickling raise."""
    if path.suffix == ".json":
        refs: list[dict[str, Any]] = json.loads(path.read_text())
        return refs
    with path.open("rb") as file:
        # Written by Python 2: its strings are bytes to Python 3 unless told otherwise.
        refs = _DataOnly(file, encoding="utf-8").load()
    return refs


async def evaluate_refcoco(pipeline: Pipeline, data: tuple[ReferredImage, ...]) -> Tally:
    """`accuracy`: expressions whose surest box overlaps the meant object by at least half."""
    pictures = [
        Picture(str(number), image.path, tuple(Task.refer(e.words) for e in image.expressions))
        for number, image in enumerate(data)
    ]
    tally = Tally()
    async for picture, grounding in ask_all(pipeline, pictures, title="expressions"):
        expressions = data[int(picture.name)].expressions
        for expression, answer in zip(expressions, grounding.answers, strict=True):
            tally.add(picture.name, "accuracy", is_hit(answer, expression.xyxy))
            tally.add(picture.name, "answered", len(answer.detections) > 0)
    return tally


def is_hit(answer: Answer, truth: FloatArray) -> bool:
    """Whether the surest box of an answer overlaps (4,) `truth` by at least half."""
    found = answer.detections
    if not len(found):
        return False
    best = found.xyxy[int(np.argmax(found.confidence))]
    return bool(box_iou(best[None], truth[None])[0, 0] >= _IOU)
