"""`eval likeness`: which boxes are references, and what the figures count."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agent.detections import Detections, FloatArray, Proposals
from agent.evaluation.likeness import evaluate_likeness
from agent.frame import Frame
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.prompts import Task
from tests.unit.test_places import CARS, folder

SHEEP = [5, 75, 25, 95]
PROPOSALS = Proposals(
    np.array([CARS[1], SHEEP, CARS[0]], dtype=np.float32), np.ones(3, dtype=np.float32)
)


class Answering:
    """Answers the visual prompt of each box with `found`."""

    def __init__(self, found: dict[int, list[list[float]]]) -> None:
        self._found = found
        self.asked: list[int | None] = []

    async def propose(self, _frame: Frame) -> Proposals:
        return PROPOSALS

    async def ground(self, _frame: Frame, tasks: list[Task]) -> Grounding:
        self.asked += [task.region for task in tasks]
        return Grounding(tuple(map(self._answer, tasks)), PROPOSALS, False)

    def _answer(self, task: Task) -> Answer:
        boxes: FloatArray = np.array(self._found.get(task.region, []), dtype=np.float32)
        count, boxes = len(boxes), boxes.reshape(-1, 4)
        detections = Detections(
            boxes, np.full(count, 0.9), ("",) * count, np.arange(count, dtype=np.int64)
        )
        return Answer(task, "", detections, AnswerStatus.OK)


async def test_figures_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    data = folder(tmp_path, [("car", CARS[0]), ("car", CARS[1]), ("sheep", SHEEP)])
    # Of the first car the other is found, and a sheep; of the other nothing; of the sheep a car.
    pipeline = Answering({2: [CARS[1], SHEEP], 1: [CARS[0]]})
    found = (await evaluate_likeness(pipeline, data)).estimates()  # type: ignore[arg-type]
    assert pipeline.asked == [2, 0, 1]
    assert found["precision"].value == pytest.approx(1 / 2)
    assert (found["recall"].value, found["recall"].count) == (pytest.approx(1 / 2), 2)
    assert found["f1"].value == pytest.approx(2 / 4)
    assert (found["alone_with_a_box"].value, found["alone_with_a_box"].count) == (1.0, 1)


async def test_things_without_a_box_and_crowds_are_not_asked(tmp_path: Path) -> None:
    data = folder(tmp_path, [("car", CARS[0]), ("car", [0, 80, 9, 99])])
    pipeline = Answering({})
    await evaluate_likeness(pipeline, data)  # type: ignore[arg-type]
    assert pipeline.asked == [2]
    crowd = folder(tmp_path, [("car", CARS[0]), ("car", CARS[1])], iscrowd=1)
    assert (await evaluate_likeness(pipeline, crowd)).estimates() == {}  # type: ignore[arg-type]
    assert pipeline.asked == [2]
