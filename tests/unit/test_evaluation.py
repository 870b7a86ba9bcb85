"""The detection benchmark's figures, on answers whose score is known beforehand."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
from PIL import Image

from agent.answer_rules import AnswerRules
from agent.detections import Detections, Proposals
from agent.evaluation.coco_folder import check_pictures, load_coco
from agent.evaluation.detection import (
    AskedLabels,
    as_dict,
    clear_cases,
    evaluate_detection,
    match_count,
)
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import TaskKind
from groundstream.errors import SourceError

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

    def __init__(self, *, miss_one_cat=False, invent_owls=False, least_confidence=0.0):
        self.miss_one_cat, self.invent_owls = miss_one_cat, invent_owls
        self.rules = AnswerRules(least_confidence=least_confidence)

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
    # Two boxes are right; two for an owl and a bus that are not there are wrong.
    assert scores.precision_all == pytest.approx(2 / 4)
    assert scores.f1_all == pytest.approx(2 * 2 / (4 + 3))
    assert (scores.present_labels, scores.absent_labels, scores.objects) == (2, 2, 3)


async def test_boxes_of_little_confidence_are_ranked_and_not_detected(folder):
    data = load_coco(folder, folder / "annotations.json")
    # The oracle is 0.9 sure of everything.
    scores = await evaluate_detection(Oracle(least_confidence=0.95, invent_owls=True), data)
    assert scores.AP50 == 1
    assert scores.recall == scores.absent_false_positive_rate == 0


async def test_intervals_hold_their_figures(folder):
    data = load_coco(folder, folder / "annotations.json")
    oracle = Oracle(miss_one_cat=True, invent_owls=True)
    scores = await evaluate_detection(oracle, data, num_resamples=20)
    figures = as_dict(scores)
    assert set(figures["intervals"]) >= {
        "AP", "AP50", "precision", "recall", "f1", "absent_false_positive_rate", "region_top1",
        "proposal_recall50", "proposal_recall50_at_10", "proposal_recall70_at_100",
    }  # fmt: skip
    for name, (low, high) in figures["intervals"].items():
        assert low <= figures[name] <= high


async def test_proposal_recall_of_the_best_boxes(folder):
    data = load_coco(folder, folder / "annotations.json")
    dog, cat = BOXES["dog"][0], BOXES["cat"][0]
    # Ten boxes of nothing, then the dog's; a cat's, moved by a quarter of its width (IoU 0.6).
    best = [[0, 0, 5, 5]] * 10 + [dog, [cat[0] + 7.5, cat[1], cat[2] + 7.5, cat[3]]]
    proposals = Proposals(np.array(best), np.linspace(1, 0, len(best)))
    scores = await evaluate_detection(Oracle(), data, propose=lambda _frame: proposals)
    assert scores.proposal_recall == pytest.approx(
        {"proposal_recall50_at_10": 0, "proposal_recall50_at_30": 2 / 3,
         "proposal_recall50_at_100": 2 / 3, "proposal_recall70_at_10": 0,
         "proposal_recall70_at_30": 1 / 3, "proposal_recall70_at_100": 1 / 3}
    )  # fmt: skip
    assert scores.proposal_recall50 == 1  # those shown are the true boxes


def rewritten(folder, **changes):
    """The annotation file with other fields: `image` and `annotation_1` and so on are updated."""
    raw = json.loads((folder / "annotations.json").read_text())
    raw["images"][0] |= changes.pop("image", {})
    for name, change in changes.items():
        raw["annotations"][int(name.removeprefix("annotation_")) - 1] |= change
    file = folder / "rewritten.json"
    file.write_text(json.dumps(raw))
    return file


async def test_listed_absent_names_are_asked(folder):
    file = rewritten(folder, image={"absent": ["horse", "owl", "tree"]})
    data = load_coco(folder, file)
    drawn = AskedLabels.draw(data.images[0], data, np.random.default_rng(0))
    asked = [data.name_of(label) for label in drawn.absent]
    assert len(asked) == 2
    assert set(asked) <= {"horse", "owl", "tree"}
    assert [task.query for task in drawn.tasks(data)] == ["dog", "cat", *asked]
    scores = await evaluate_detection(Oracle(invent_owls=True), data)
    assert scores.absent_false_positive_rate == 1
    assert pytest.approx(1.0) == scores.AP50


def test_what_may_be_called_so_is_not_drawn_as_absent(folder):
    data = load_coco(folder, rewritten(folder, annotation_1={"also": ["bus"]}))
    (image,) = data.images
    assert image.also_of(0) == {"bus"}
    for seed in range(5):
        drawn = AskedLabels.draw(image, data, np.random.default_rng(seed))
        assert drawn.absent == (3,)
    drawn = [
        AskedLabels.draw(image, data, np.random.default_rng(seed), arguable=True).absent
        for seed in range(5)
    ]
    assert {label for absent in drawn for label in absent} == {3, 4}
    everything = AskedLabels.draw(image, data, np.random.default_rng(0), every_label=True)
    assert set(everything.categories) == {1, 2, 3, 4}


def test_a_crowd_is_not_absent(folder):
    data = load_coco(folder, rewritten(folder, annotation_1={"iscrowd": 1}))
    for seed in range(5):
        drawn = AskedLabels.draw(data.images[0], data, np.random.default_rng(seed))
        assert drawn.present == (2,)
        assert 1 not in drawn.absent


def test_a_box_that_is_right_under_another_name_does_not_count():
    truth, others = np.array([[0, 0, 10, 10]]), np.array([[20, 0, 30, 10], [0, 0, 10, 11]])
    boxes = np.array([[0, 0, 10, 10], [20, 0, 30, 9], [50, 0, 60, 10]], dtype=np.float32)
    assert clear_cases(boxes, truth, others).tolist() == [True, False, True]
    assert clear_cases(boxes, truth, others[:0]).all()
    assert clear_cases(boxes, truth[:0], others).tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("said", "expected"),
    [("cat", (1, 1, 1)), ("a grey kitten", (1, 0, 0)), ("The cats", (1, 1, 0)),
     ("a small animal", (1, 0, 0)), ("a brown moggy", (1, 1, 0)), ("cat food", (0, 0, 0))],
)  # fmt: skip
async def test_names_of_given_boxes(folder, said, expected):
    """Exact is word for word, narrow takes synonyms and what is listed, top-1 also wider words."""

    class Namer(Oracle):
        def _answer(self, task, boxes):
            answer = super()._answer(task, boxes)
            return Answer(task, said) if answer.text == "cat" else answer

    file = rewritten(folder, annotation_2={"also": ["moggy"]}, annotation_3={"also": ["moggy"]})
    data = load_coco(folder, file)
    scores = await evaluate_detection(Namer(), data)
    counted = (scores.region_top1, scores.region_top1_narrow, scores.region_top1_exact)
    # The dog is always called a dog; there are two cats.
    assert counted == pytest.approx([(1 + 2 * right) / 3 for right in expected])


def test_one_object_is_matched_once():
    boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=np.float32)
    assert match_count(boxes, np.array([0.9, 0.8]), boxes[:1]) == 1
    assert match_count(boxes, np.array([0.9, 0.8]), boxes[:0]) == 0


def test_annotations_without_areas_are_enough(folder):
    raw = json.loads((folder / "annotations.json").read_text())
    for row in raw["annotations"]:
        del row["area"], row["iscrowd"], row["id"]
    (folder / "bare.json").write_text(json.dumps(raw))
    data = load_coco(folder, folder / "bare.json")
    scores = asyncio.run(evaluate_detection(Oracle(), data, num_resamples=3))
    assert pytest.approx((1, 1)) == (scores.AP, scores.AP50)


@pytest.mark.parametrize("text", ["", "[]", '{"images": []}'])
def test_not_coco(folder, text):
    (folder / "bad.json").write_text(text)
    with pytest.raises(SourceError):
        load_coco(folder, folder / "bad.json")


def test_wrong_image_folder(folder, tmp_path):
    with pytest.raises(SourceError, match="--images"):
        load_coco(tmp_path / "elsewhere", folder / "annotations.json")
    with pytest.raises(SourceError, match="does not exist"):
        load_coco(tmp_path / "images" / "..", rewritten(folder, image={"file_name": "2.jpg"}))
    with pytest.raises(SourceError, match="cannot be read"):
        load_coco(folder, folder / "missing.json")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"annotation_1": {"category_id": 9}}, "category 9"),
     ({"annotation_1": {"bbox": [1, 2, 3]}}, "not a COCO"),
     ({"annotation_1": {"bbox": ["1", "2", "3", "4"]}}, "four numbers"),
     ({"annotation_1": {"bbox": [1, 2, 3], "iscrowd": 1}}, "four numbers"),
     ({"annotation_1": {"bbox": [1, 2, 3, float("nan")]}}, "four numbers"),
     ({"annotation_1": {"also": "pet"}}, "list of names"),
     ({"image": {"absent": ["cat"]}}, "'cat' as absent"),
     ({"image": {"absent": ["pet"]}, "annotation_1": {"also": ["pet"]}}, "'pet' as absent")],
)  # fmt: skip
def test_a_file_that_contradicts_itself(folder, change, message):
    with pytest.raises(SourceError, match=message):
        load_coco(folder, rewritten(folder, **change))


def test_two_images_of_one_id(folder):
    raw = json.loads((folder / "annotations.json").read_text())
    raw["images"] *= 2
    (folder / "twice.json").write_text(json.dumps(raw))
    with pytest.raises(SourceError, match="of one id"):
        load_coco(folder, folder / "twice.json")


def test_pictures_are_looked_at_before_the_model_is(folder):
    check_pictures(load_coco(folder, folder / "annotations.json"))
    with pytest.raises(SourceError, match="100x100"):
        check_pictures(load_coco(folder, rewritten(folder, image={"width": 50})))
    (folder / "images" / "1.jpg").write_bytes(b"no picture")
    with pytest.raises(SourceError, match=r"1\.jpg"):
        check_pictures(load_coco(folder, folder / "annotations.json"))
    with pytest.raises(SourceError, match="no pictures"):
        check_pictures(load_coco(folder, folder / "annotations.json", limit=0))
