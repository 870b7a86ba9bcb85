"""Asking in other words: what is asked, and shares that were worked out by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from agent.detections import Detections, Proposals
from agent.evaluation.coco_folder import load_coco
from agent.evaluation.words import evaluate_words, num_present_ways, questions
from agent.parsing import Answer, AnswerStatus
from agent.pipeline import Grounding
from agent.training.scene_questions import held_out

BOXES = {"car": [10, 10, 40, 40], "cat": [60, 20, 90, 60]}
REGION = {"car": 0, "cat": 1}


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (100, 100)).save(tmp_path / "1.jpg")
    names = ["car", "cat", "horse", "pizza"]
    raw = {
        "images": [{"id": 1, "file_name": "1.jpg", "width": 100, "height": 100,
                    "absent": ["horse", "dog", "boat"]}],
        "annotations": [
            {"id": k, "image_id": 1, "category_id": names.index(name) + 1,
             "bbox": [x1, y1, x2 - x1, y2 - y1], "also": also}
            for k, (name, (x1, y1, x2, y2), also) in enumerate(
                [("car", BOXES["car"], ["automobile", "vehicle"]),
                 ("cat", BOXES["cat"], ["animal", "kitty"])], start=1)
        ],
        "categories": [{"id": k, "name": name} for k, name in enumerate(names, start=1)],
    }  # fmt: skip
    (tmp_path / "annotations.json").write_text(json.dumps(raw))
    return load_coco(tmp_path, tmp_path / "annotations.json")


class Finder:
    """Finds what `known` says, by the text of the question; several labels one after the other."""

    def __init__(self, known, *, at_once=None):
        self.known, self.at_once, self.asked = known, at_once, []

    async def ground(self, _frame, tasks, *, boxes=None):
        self.asked += [task.query for task in tasks]
        return Grounding(tuple(map(self._answer, tasks)), Proposals(), False)

    def _answer(self, task):
        labels = task.query.split(", ")
        if len(labels) > 1 and self.at_once is not None:
            labels = self.at_once
        found = [(label, name) for label in labels for name in self.known.get(label, ())]
        detections = Detections(
            np.array([BOXES[name] for _, name in found]).reshape(-1, 4),
            np.full(len(found), 0.9), tuple(label for label, _ in found),
            np.array([REGION[name] for _, name in found], dtype=np.int64))  # fmt: skip
        status = AnswerStatus.TRUNCATED if len(labels) == 1 != task.query.count(",") + 1 else (
            AnswerStatus.OK)  # fmt: skip
        return Answer(task, "", detections, status)


def by_kind(asked, *, present):
    return {(one.kind, one.text) for one in asked if bool(one.names) is present}


def test_what_is_asked(data):
    (asked,) = questions(data, labels=6)
    assert asked.present == ("car", "cat")
    assert asked.absent == ("horse", "dog", "boat", "pizza")
    ways = by_kind(asked.asked, present=True)
    assert ways == {
        ("plural", "cars"), ("article", "a car"), ("capital", "Car"), ("full_stop", "car."),
        ("plural", "cats"), ("article", "a cat"), ("capital", "Cat"), ("full_stop", "cat."),
        ("synonym", "automobile"), ("synonym", "kitty"), ("wider", "vehicle"), ("wider", "animal"),
    }  # fmt: skip
    assert num_present_ways([asked]) == 12
    absent = by_kind(asked.asked, present=False)
    # As many, two of every kind; "watercraft" is the only wider word: "animal" and "vehicle" are
    # there, and so may "pet" and "mammal" be.
    assert len(absent) == 12 == len(asked.asked) - 12
    assert {text for kind, text in absent if kind == "wider"} == {"watercraft"}
    assert {text for kind, text in absent if kind == "synonym"} == {"ship", "vessel"}
    # The plain names, the other ways one by one, and the plain names at once.
    assert [task.query for task in asked.tasks()][-1] == "car, cat, horse, dog, boat, pizza"
    assert len(asked.tasks()) == 6 + 24 + 1


def test_labels_at_once_are_bounded(data):
    (asked,) = questions(data, labels=3)
    assert asked.plain == ("car", "cat", "horse")
    (asked,) = questions(data, labels=1)
    assert asked.plain == ("car",)
    assert {names for one in asked.asked if (names := one.names)} == {("car",)}


async def test_shares_by_hand(data):
    known = {
        "car": ["car"], "cars": ["car"], "a car": ["car"], "Car": [], "car.": ["car", "cat"],
        "cats": [], "a cat": ["cat"],  # the plain cat is not found at all
        "automobile": ["car"], "vehicle": ["car"], "kitty": [], "animal": ["cat"],
        "watercraft": ["cat"], "pizza": ["cat"],
    }  # fmt: skip
    asked = questions(data, labels=6)
    scores = await evaluate_words(Finder(known, at_once=["car"]), data, asked)
    found = scores.figures()
    assert (found["asked_present"], found["asked_absent"]) == (12, 12)
    value = {name: getattr(figure, "value", figure) for name, figure in found.items()}
    assert value["same_plural"] == 1.0  # one right, and nothing where nothing was found plainly
    assert value["same_article"] == 0.5
    assert value["same_capital"] == 0.5
    assert value["same_full_stop"] == 0.5
    assert value["same_spelled"] == 5 / 8
    assert value["same_spelled_found"] == 2 / 4
    assert value["same_synonym"] == 1.0
    assert value["same_wider"] == 0.5
    assert value["same_wider_found"] == 1.0
    assert value["false_boxes"] == pytest.approx(1 / 12)
    assert value["false_boxes_wider"] == 1.0
    assert value["f1"] == pytest.approx(2 / 3)
    # One by one the pizza is a cat, too: 2 * 1 of 2 boxes and 2 objects. At once only the car.
    assert value["f1_one_by_one"] == pytest.approx(2 / 4)
    assert value["f1_together"] == pytest.approx(2 / 3)
    assert value["together_to_one_by_one"] == pytest.approx(4 / 3)
    ratio = found["together_to_one_by_one"]
    assert ratio.low <= ratio.value <= ratio.high
    assert value["together_truncated"] == 1.0
    assert value["labels_at_once"] == 6
    counted = sum(
        found[name].count
        for name in ("f1_trained_word", "f1_held_out_word", "f1_unknown_word")
        if name in found
    )
    # car, cat, automobile, kitty: four objects, and the boxes that were answered.
    assert counted == 4 + 2
    assert ("f1_held_out_word" in found) == any(
        map(held_out, ("car", "cat", "automobile", "kitty"))
    )


async def test_wider_words_mean_everything_below_them(data, tmp_path):
    raw = dict(data.raw)
    raw["annotations"] = [{**a, "also": ["thing"]} for a in raw["annotations"]]
    for annotation in raw["annotations"]:
        annotation["also"] = ["vehicle"]
    (tmp_path / "other.json").write_text(json.dumps(raw))
    other = load_coco(tmp_path, tmp_path / "other.json")
    (asked,) = questions(other, labels=2)
    (wider,) = [one for one in asked.asked if one.kind == "wider" and one.names]
    assert wider.names == ("car", "cat")
    known = {"car": ["car"], "cat": ["cat"], "vehicle": ["cat", "car"]}
    found = (await evaluate_words(Finder(known), other, [asked])).figures()
    assert found["same_wider"].value == 1.0
    assert found["together_to_one_by_one"].value == 1.0
