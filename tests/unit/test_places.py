"""`eval places`: what is asked of labelled boxes, and what its figures count."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from agent.detections import Detections, FloatArray, Proposals
from agent.evaluation.coco_folder import CocoFolder, load_coco
from agent.evaluation.places import evaluate_places, questions
from agent.frame import Frame
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import Task

CARS = ([10, 10, 30, 20], [50, 40, 90, 70])
"""Apart from left to right, from top to bottom and in size."""


def folder(path: Path, boxes: list[tuple[str, list[float]]], **extra: int) -> CocoFolder:
    Image.new("RGB", (100, 100)).save(path / "1.jpg")
    names = ["car", "sheep"]
    raw = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": names.index(name) + 1,
             "bbox": [x1, y1, x2 - x1, y2 - y1], **extra}
            for k, (name, (x1, y1, x2, y2)) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }  # fmt: skip
    (path / "annotations.json").write_text(json.dumps(raw))
    return load_coco(path, path / "annotations.json")


def asked(data: CocoFolder) -> dict[str, list[float]]:
    return {one.text: one.xyxy[0].tolist() for one in questions(data.images[0], data)}


class Answering:
    """Answers each question with the boxes of `found`, or with none."""

    def __init__(self, found: dict[str, FloatArray]) -> None:
        self._found = found

    async def ground(self, _frame: Frame, tasks: list[Task], *, boxes: None = None) -> Grounding:
        return Grounding(tuple(map(self._answer, tasks)), Proposals(), False)

    def _answer(self, task: Task) -> Answer:
        boxes = self._found.get(task.query, np.zeros((0, 4)))
        count = len(boxes)
        detections = Detections(
            boxes, np.full(count, 0.9), (task.query,) * count, np.arange(count, dtype=np.int64)
        )
        return Answer(task, "", detections, AnswerStatus.OK)


def test_what_the_labelled_boxes_say_is_asked(tmp_path: Path) -> None:
    found = asked(folder(tmp_path, [("car", CARS[1]), ("car", CARS[0]), ("sheep", [0, 0, 5, 5])]))
    first, last = CARS
    assert found["leftmost car"] == found["topmost car"] == found["smallest car"] == first
    assert found["car on the right"] == found["largest car"] == last
    assert found["second car from the left"] == found["first car from the right"] == last
    assert not {"middle car", "third car from the left", "leftmost sheep"} & set(found)


def test_several_are_asked_for_by_the_part_of_the_frame_they_lie_in(tmp_path: Path) -> None:
    data = folder(tmp_path, [("car", CARS[0]), ("car", CARS[1]), ("car", [49, 0, 53, 9])])
    found = {one.text: one.xyxy.tolist() for one in questions(data.images[0], data)}
    # The centre of the last lies at the border between the halves.
    assert not {"cars on the left", "right cars"} & set(found)
    assert found["cars at the top"] == [CARS[0], [49, 0, 53, 9]]
    assert found["cars at the bottom"] == [CARS[1]]
    assert found["middle cars"] == [[49, 0, 53, 9]]


def test_ties_crowds_and_slivers_are_not_asked(tmp_path: Path) -> None:
    below = [11, 50, 31, 60]
    found = asked(folder(tmp_path, [("car", CARS[0]), ("car", below)]))
    assert "topmost car" in found
    assert not {"leftmost car", "largest car", "second car from the left"} & set(found)
    assert (
        asked(folder(tmp_path, [("car", CARS[0]), ("car", CARS[1]), ("car", [0, 0, 9, 0.2])])) == {}
    )
    assert asked(folder(tmp_path, [("car", CARS[0]), ("car", CARS[1])], iscrowd=1)) == {}


async def test_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    data = folder(tmp_path, [("car", CARS[0]), ("car", CARS[1])])
    number = len(asked(data))
    first, both = np.array([CARS[0]], dtype=np.float32), np.array(CARS, dtype=np.float32)
    pipeline = Answering({"leftmost car": first, "largest car": both, "topmost car": both[1:]})
    tally = await evaluate_places(pipeline, data)  # type: ignore[arg-type]
    found = tally.estimates()
    assert found["recall"].count == number
    assert found["recall"].value == pytest.approx(2 / number)
    assert found["precision"].value == pytest.approx(2 / 4)
    assert found["f1"].value == pytest.approx(4 / (4 + number))
    num_sizes = 3
    assert found["f1_size"].value == pytest.approx(2 / (2 + num_sizes))
    assert found["f1_down"].value == 0
