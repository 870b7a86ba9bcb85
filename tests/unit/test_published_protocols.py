"""COCO and counting are asked, read and scored as VLM-FO1's authors do it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from agent.detections import Detections, Proposals, published_proposals, select_proposals
from agent.evaluation.coco_folder import load_coco
from agent.evaluation.countbench import load_countbench
from agent.evaluation.counting import CountQuestion
from agent.evaluation.published import (
    counting_question,
    detection_question,
    detection_rows,
    evaluate_published_counting,
    evaluate_published_detection,
    stated_count,
)
from agent.model.checkpoint import load_model
from agent.model.vlm_fo1 import Part
from agent.model_directory import find_model, is_published, longest_answer
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import Task
from deployments.cli.options import ModelChoice, Protocol
from groundstream.errors import InvalidQuery
from tests.pictures import encoded_image
from tests.unit.tiny_model import write_tiny_model

SUFFIX = (
    " Count each instance of the target object. Locate them with object indexes and then answer "
    "the question with the number of objects."
)


# Questions of the authors' files for CountBench and PixMo-Count.
@pytest.mark.parametrize(
    ("question", "words"),
    [
        (CountQuestion("0", b"", "headsets", 10, asked="How many headsets are there in the image?"),
         "How many headsets are there in the image?" + SUFFIX),
        (CountQuestion("1", b"", "x", 3, asked="How many stories does this cottage have?"),
         "How many stories does this cottage have?" + SUFFIX),
        (CountQuestion("2", b"", "airplanes", 5),
         "How many airplanes are there in the image?" + SUFFIX),
    ],
)  # fmt: skip
def test_counting_is_asked_in_the_words_of_the_question_files(
    question: CountQuestion, words: str
) -> None:
    task = counting_question(question.words)
    assert task.text == words
    assert task.max_new_tokens == 4096


def test_countbench_keeps_its_questions(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(encoded_image(1))
    table = tmp_path / "CountBench.json"
    asked = "How many headsets are there in the image?"
    table.write_text(json.dumps([{"image_url": "http://x/0.jpg", "number": 3, "question": asked}]))
    (question,) = load_countbench(table, images=tmp_path)
    assert (question.asked, question.query) == (asked, "headsets")


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("<ground>cat</ground><objects><region12><region3></objects>\nThere are 2.", 2),
        ("<region7> 4 of 5", 4),
        ("<ground>2 dogs</ground><objects><region1></objects> 7", 2),  # labels count
        ("none at all", 0),
        ("region5 and 6", 6),
    ],
)
def test_the_first_number_is_the_count(text: str, count: int) -> None:
    assert stated_count(Answer(Task.chat("?"), text)) == count


@pytest.fixture
def coco(tmp_path: Path):  # type: ignore[no-untyped-def]
    """One picture with a dog; ids in another order than names."""
    (tmp_path / "1.jpg").write_bytes(encoded_image(1))
    annotations = tmp_path / "instances.json"
    box = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 40, 30], "area": 1200,
           "iscrowd": 0}  # fmt: skip
    annotations.write_text(
        json.dumps(
            {
                "images": [{"id": 1, "file_name": "1.jpg", "width": 96, "height": 64}],
                "categories": [{"id": 3, "name": "dog"}, {"id": 1, "name": "traffic light"}],
                "annotations": [box],
            }
        )
    )
    return load_coco(tmp_path, annotations)


class Told:
    """A pipeline that answers what it is told, about boxes it is told."""

    def __init__(self, labels: tuple[str, ...], regions: list[int], text: str = "") -> None:
        self.asked: list[Task] = []
        self._labels, self._regions, self._text = labels, regions, text

    async def ground(self, frame: object, tasks: list[Task], **_more: object) -> Grounding:
        """The same every time."""
        self.asked += tasks
        boxes = Proposals(np.array([[50, 0, 90, 60], [0, 0, 40, 30]]), np.array([0.9, 0.3]))
        found = Detections(
            boxes.xyxy[self._regions], np.ones(len(self._regions), dtype=np.float32),
            self._labels, np.array(self._regions, dtype=np.int64),
        )  # fmt: skip
        return Grounding((Answer(tasks[0], self._text, found),), boxes, False)


async def test_coco_is_one_question_scored_by_the_proposal_network(coco) -> None:  # type: ignore[no-untyped-def]
    told = Told(("dog", "a thing of its own", "dog"), [1, 0, 0])
    figures = await evaluate_published_detection(told, coco)  # type: ignore[arg-type]
    (task,) = told.asked
    assert task.text == (
        "Please detect traffic light, dog in this image. Answer the question with object indexes."
    )
    assert task.max_new_tokens == 4096
    # Right, but behind a wrong one of which the network is surer.
    assert figures["AP"].value == pytest.approx(0.5, abs=0.01)
    grounding = await told.ground(None, [detection_question(coco)])
    rows = detection_rows(1, grounding, coco)
    assert [(row["category_id"], row["score"]) for row in rows] == [
        (3, pytest.approx(0.3)), (3, pytest.approx(0.9))
    ]  # fmt: skip
    assert rows[0]["bbox"] == [0, 0, 40, 30]


async def test_counts_are_compared_with_the_truth() -> None:
    questions = [CountQuestion(str(n), encoded_image(n), "dogs", n) for n in (2, 5)]
    told = Told((), [], "There are 2.")
    tally = await evaluate_published_counting(told, questions)  # type: ignore[arg-type]
    assert tally.estimates()["accuracy"].value == 0.5
    assert tally.estimates()["mean_absolute_error"].value == 1.5


def test_boxes_are_selected_as_upns_wrapper_does() -> None:
    # The second overlaps the first by 0.63; the third is narrower than two pixels.
    xyxy = np.array([[-30, 0, 100, 100], [0, 0, 128, 100], [10.9, 10.9, 11.5, 30.2]], np.float32)
    scores = np.array([0.5, 0.46, 0.777], np.float32)
    limits = {"score_threshold": 0.3, "nms_iou": 0.6, "max_boxes": 100}
    found = published_proposals(xyxy, scores, **limits)  # type: ignore[arg-type]
    assert found.xyxy.tolist() == [[10, 10, 11, 30], [-30, 0, 100, 100]]
    assert found.objectness.tolist() == pytest.approx([0.78, 0.5])
    ours = select_proposals(
        xyxy,
        scores,
        width=100,
        height=100,
        least_side_px=2.0,
        **limits,  # type: ignore[arg-type]
    )
    assert ours.xyxy.tolist() == [[0, 0, 100, 100]]


def test_whole_pictures_and_several_regions_are_asked_in_the_published_words() -> None:
    assert Task.detect_all().text == (
        "Please identify every object in the image and provide their labels along with their "
        "indexes."
    )
    assert Task.describe_regions(3, 0).text == (
        "Provide a brief description for these regions in the image.<region3><region0>"
    )
    assert Task.describe_regions(1, detailed=True).text == (
        "Provide a detailed description for these regions in the image.<region1>"
    )
    assert Task.read_regions(0, 1).text == (
        "Please provide the ocr results of these regions in the image.<region0><region1>"
    )
    with pytest.raises(InvalidQuery, match="name at least one"):
        Task.read_regions()


def test_the_published_model_has_its_own_usual_ways(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    assert is_published(str(folder))
    assert not is_published("pocket")
    assert longest_answer("pocket") == 256
    assert longest_answer(str(folder)) >= 256
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "max_position_embeddings": 128_000}))
    assert longest_answer(str(folder)) == 4096
    assert not Protocol.AUTO.is_published(ModelChoice())
    assert Protocol.PUBLISHED.is_published(ModelChoice())
    assert not Protocol.OWN.is_published(ModelChoice(model=str(folder)))


def test_rotary_tables_are_an_option_and_have_a_digest_of_their_own(tmp_path: Path) -> None:
    folder = write_tiny_model(tmp_path / "model")
    exact, published = (
        load_model(
            folder, parts=frozenset({Part.LANGUAGE}), as_published=option
        ).language_model.model.rotary_emb.inv_freq  # type: ignore[union-attr]
        for option in (False, True)
    )
    assert torch.equal(published, exact.bfloat16().float())
    assert not torch.equal(published, exact)
    digests = {find_model(str(folder), as_published=option).digest for option in (False, True)}
    assert len(digests) == 2
