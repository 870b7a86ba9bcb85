"""The embedded model: complete, within its size, and of use on a photograph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from agent.detections import box_iou
from agent.frame import load_frame
from agent.model_directory import find_model
from agent.pipeline import Pipeline
from agent.prompts import Task, TaskKind
from agent.stages import local_pipeline

PHOTOGRAPH = Path(__file__).parents[1] / "assets" / "cat.jpg"
WHERE = np.array([[5, 0, 445, 295]], dtype=np.float32)
FOLDER = find_model().path

pytestmark = pytest.mark.skipif(
    not (FOLDER / "language.safetensors").is_file(),
    reason="the embedded model's language weights are not in this checkout",
)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[Pipeline]:
    return local_pipeline()


def test_the_weights_are_small() -> None:
    sizes = [file.stat().st_size for file in FOLDER.rglob("*.safetensors")]
    assert max(sizes) < 25_000_000
    assert sum(sizes) < 30_000_000


def test_its_configuration_names_what_it_was_trained_for() -> None:
    tasks = find_model().tasks
    assert {"DETECT", "COUNT", "REGION_CAPTION"} <= set(tasks) <= set(TaskKind.__members__)


async def test_what_is_there_is_found_and_what_is_not_is_not(pipeline: Pipeline) -> None:
    absent = ["car", "person", "pizza", "bicycle", "laptop", "banana"]
    asked = [Task.detect(label) for label in ("cat", "animal", *absent)]
    answers = (await pipeline.ground(load_frame(PHOTOGRAPH), asked)).answers
    for answer in answers[:2]:
        assert box_iou(WHERE, answer.detections.xyxy).max(initial=0.0) > 0.8, answer.text
    wrong = [answer.task.query for answer in answers[2:] if len(answer.detections)]
    assert len(wrong) <= 1, wrong


async def test_it_says_what_it_sees_and_comes_to_an_end(pipeline: Pipeline) -> None:
    frame = load_frame(PHOTOGRAPH)
    asked = [Task.describe_region(0), Task.describe_image(), Task.chat("Why is the sky blue?")]
    found = await pipeline.ground(frame, asked, boxes=WHERE)
    assert "cat" in found.answers[0].reply.lower()
    for answer in found.answers[:2]:
        assert answer.text
        assert len(answer.text) < 1000
    # A question that needs no picture gets words, and no more of them than were asked for.
    chat = found.answers[2]
    assert len(chat.text.split()) >= 2
    assert "<" not in chat.text
