"""The detection benchmark's figures, on answers whose score is known beforehand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from agent.detections import Detections, Proposals
from agent.errors import SourceError
from agent.evaluation.coco_folder import load_coco
from agent.evaluation.detection import evaluate_detection, match_count
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import TaskKind

BOXES = {"dog": [[10, 10, 40, 50]], "cat": [[60, 20, 90, 60], [5, 70, 45, 95]]}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (100, 100)).save(tmp_path / "images" / "1.jpg")
    annotations = [
        {"id": i, "image_id": 1, "category_id": category, "iscrowd": 0, "area": 900,
         "bbox": [x1, y1, x2 - x1, y2 - y1]}
        for i, (category, (x1, y1, x2, y2)) in enumerate(
            [(1, BOXES["dog"][0]), (2, BOXES["cat"][0]), (2, BOXES["cat"][1])], start=1)
    ]  # fmt: skip
    names = ["dog", "cat", "owl", "bus"]
    (tmp_path / "annotations.json").write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "images/1.jpg", "width": 100, "height": 100}],
                "annotations": annotations,
                "categories": [{"id": i, "name": n} for i, n in enumerate(names, start=1)],
            }
        )
    )
    return tmp_path


class Oracle:
    """Answers from the truth, with mistakes on request."""

    def __init__(self, *, miss_one_cat=False, invent_owls=False):
        self.miss_one_cat, self.invent_owls = miss_one_cat, invent_owls

    async def ground(self, _frame, tasks, *, boxes=None):
        everything = np.array(BOXES["dog"] + BOXES["cat"], dtype=np.float32)
        answers = [self._answer(task, boxes) for task in tasks]
        return Grounding(tuple(answers), Proposals(everything, np.ones(3)), False)

    def _answer(self, task, boxes):
        if task.kind is TaskKind.REGION_CAPTION:
            box = [int(v) for v in boxes[task.region]]
            name = next(name for name, known in BOXES.items() if box in known)
            return Answer(task, name)
        found = list(BOXES.get(task.query, []))
        if task.query == "cat" and self.miss_one_cat:
            found = found[:1]
        if task.query not in BOXES and self.invent_owls:
            found = [[0, 0, 20, 20]]
        count = len(found)
        return Answer(task, "", Detections(
            np.array(found, dtype=np.float32).reshape(-1, 4), np.full(count, 0.9),
            (task.query,) * count, np.arange(count)))  # fmt: skip


async def test_perfect_answers(folder):
    data = load_coco(folder, folder / "annotations.json")
    scores = await evaluate_detection(Oracle(), data)
    assert pytest.approx((1, 1, 1)) == (scores.AP, scores.AP50, scores.AR100)
    assert (scores.precision, scores.recall, scores.region_top1) == (1, 1, 1)
    assert scores.absent_false_positive_rate == 0


async def test_mistakes_by_hand(folder):
    data = load_coco(folder, folder / "annotations.json")
    scores = await evaluate_detection(Oracle(miss_one_cat=True, invent_owls=True), data)
    assert scores.recall == pytest.approx(2 / 3)
    assert scores.precision == 1
    assert scores.f1 == pytest.approx(0.8)
    assert scores.absent_false_positive_rate == 1
    assert pytest.approx((1.0 + 51 / 101) / 2, abs=1e-3) == scores.AP50


def test_one_object_is_matched_once():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=np.float32)
    assert match_count(boxes, np.array([0.9, 0.8]), boxes[:1]) == 1
    assert match_count(boxes, np.array([0.9, 0.8]), boxes[:0]) == 0


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}'])
def test_not_coco(folder, text):
    (folder / "bad.json").write_text(text)
    with pytest.raises(SourceError):
        load_coco(folder, folder / "bad.json")


def test_wrong_image_folder(folder, tmp_path):
    with pytest.raises(SourceError, match="--images"):
        load_coco(tmp_path / "elsewhere", folder / "annotations.json")
