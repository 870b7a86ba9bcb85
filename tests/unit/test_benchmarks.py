"""Every benchmark on a few lines of its published format, its score worked out by hand."""

from __future__ import annotations

import base64
import csv
import io
import json
import pickle

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from agent.answer_rules import AnswerRules
from agent.detections import Detections, Proposals
from agent.evaluation.cocotext import evaluate_cocotext, load_cocotext
from agent.evaluation.countbench import load_countbench, what_is_counted
from agent.evaluation.counting import evaluate_counting
from agent.evaluation.ferret_bench import evaluate_ferret_bench, load_ferret_bench
from agent.evaluation.multiple_choice import evaluate_multiple_choice, load_multiple_choice
from agent.evaluation.odinw import DATASETS, evaluate_odinw, load_odinw, mean_scores
from agent.evaluation.ovdeval import evaluate_ovdeval, load_ovdeval, suppressed
from agent.evaluation.pixmo_count import load_pixmo_count
from agent.evaluation.pope import evaluate_pope, load_pope
from agent.evaluation.refcoco import evaluate_refcoco, load_refcoco
from agent.evaluation.region_names import evaluate_named_regions, load_named_regions
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import TaskKind
from groundstream.errors import SourceError

SIDE = 100


class Scripted:
    """Answers from a script: words to boxes with scores, words to a number, boxes to names."""

    rules = AnswerRules()

    def __init__(self, *, boxes=None, counts=None, names=None, replies=None):
        self.boxes, self.counts = boxes or {}, counts or {}
        self.names, self.replies = names or {}, replies or {}
        self.asked = []

    async def ground(self, _frame, tasks, *, boxes=None):
        self.asked += [task.text for task in tasks]
        answers = tuple(self._answer(task, boxes) for task in tasks)
        return Grounding(answers, Proposals(), False)

    def _answer(self, task, boxes):
        if task.region is not None:
            name = self.names[tuple(boxes[task.region].round().astype(int).tolist())]
            return Answer(task, name, reply=name)
        if task.kind is TaskKind.CHAT:
            reply = self.replies[task.text]
            return Answer(task, reply, reply=reply)
        found = self.boxes.get(task.query, [])
        detections = Detections(
            np.array([box for box, _ in found], dtype=np.float32).reshape(-1, 4),
            np.array([score for _, score in found], dtype=np.float32),
            (task.query,) * len(found), np.arange(len(found)))  # fmt: skip
        return Answer(task, "", detections, count=self.counts.get(task.query))


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (SIDE, SIDE), (90, 120, 60)).save(path)
    return path


def encoded():
    buffer = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE)).save(buffer, "PNG")
    return buffer.getvalue()


def coco(annotations, categories, **image):
    return {
        "images": [{"id": 7, "file_name": "7.jpg", "width": SIDE, "height": SIDE, **image}],
        "annotations": [
            {"id": i, "image_id": 7, "category_id": c, "bbox": box, "iscrowd": 0,
             "area": box[2] * box[3]}
            for i, (c, box) in enumerate(annotations, start=1)
        ],
        "categories": [{"id": i, "name": n} for i, n in enumerate(categories)],
    }  # fmt: skip


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def values(tally):
    return {name: estimate.value for name, estimate in tally.estimates().items()}


async def test_odinw_is_the_mean_over_sets(tmp_path):
    for name in ("Raccoon", "pistols"):
        file = tmp_path / DATASETS[name]
        picture(file.parent / "7.jpg")
        write(file, coco([(0, [10, 10, 30, 30])], [name.lower(), "nothing"]))
    sets = load_odinw(tmp_path)
    pipeline = Scripted(boxes={"raccoon": [([10, 10, 40, 40], 0.9)]})
    scores = mean_scores(await evaluate_odinw(pipeline, sets))
    assert scores["Raccoon AP"] == pytest.approx(1.0)
    assert scores["mean AP"] == pytest.approx(0.5)
    assert scores["sets"] == 2
    # Every label of a set is asked, not only those that are there.
    assert len(pipeline.asked) == 4
    with pytest.raises(SourceError, match="no set"):
        load_odinw(tmp_path / "elsewhere")


async def test_ovdeval_punishes_one_box_with_every_label(tmp_path):
    picture(tmp_path / "images" / "color" / "7.jpg")
    write(
        tmp_path / "annotations" / "color.json",
        coco([(0, [10, 10, 40, 40])], ["red car", "blue car"],
             text=["red car"], neg_text=["blue car"]),
    )  # fmt: skip
    (data,) = load_ovdeval(tmp_path).values()
    same = [10, 10, 50, 50]
    sure = Scripted(boxes={"red car": [(same, 0.9)], "blue car": [(same, 0.6)]})
    scores = await evaluate_ovdeval(sure, data)
    assert pytest.approx((1.0, 1.0)) == (scores.NMS_AP, scores.AP)
    mistaken = Scripted(boxes={"red car": [(same, 0.6)], "blue car": [(same, 0.9)]})
    scores = await evaluate_ovdeval(mistaken, data)
    # Plain AP does not see it: "blue car" has no true box, so it is no category of the mean.
    assert pytest.approx((0.0, 1.0)) == (scores.NMS_AP, scores.AP)


def test_suppression_by_hand():
    truth = [{"image_id": 1, "bbox": box} for box in ([0, 0, 10, 10], [1, 0, 10, 10])]

    def row(x, score):
        return {"image_id": 1, "category_id": 0, "bbox": [x, 0, 10, 10], "score": score}

    shifted, exact, elsewhere = row(3, 0.8), row(0, 0.5), row(50, 0.1)
    # On the first true box `exact` and `shifted` (IoU 7/13 > 0.5) compete, on the second too.
    assert suppressed(truth, [shifted, exact, elsewhere]) == [shifted, elsewhere]
    # 4 pixels off, `shifted` (IoU 6/14) leaves the first to `exact` and keeps the second.
    assert suppressed(truth, [row(4, 0.8), exact]) == [row(4, 0.8), exact]


@pytest.mark.parametrize("kind", ["p", "json"])
async def test_refcoco_accuracy(tmp_path, kind):
    picture(tmp_path / "7.jpg")
    instances = write(tmp_path / "instances.json", coco(
        [(0, [10, 10, 20, 20]), (0, [50, 50, 40, 40])], ["dog"]))  # fmt: skip
    refs = [
        {"ref_id": i, "ann_id": i, "image_id": 7, "split": split, "category_id": 0,
         "sentences": [{"sent_id": 10 * i + k, "sent": s} for k, s in enumerate(sentences)]}
        for i, split, sentences in ((1, "val", ["left dog", "small dog"]), (2, "val", ["big dog"]),
                                    (1, "testA", ["other split"]))
    ]  # fmt: skip
    file = tmp_path / f"refs(unc).{kind}"
    file.write_bytes(pickle.dumps(refs, 2) if kind == "p" else json.dumps(refs).encode())
    data = load_refcoco(file, instances, tmp_path, split="val")
    pipeline = Scripted(boxes={
        "left dog": [([50, 50, 90, 90], 0.3), ([10, 10, 30, 30], 0.7)],  # the surest one counts
        "small dog": [([10, 10, 30, 30], 0.3), ([50, 50, 90, 90], 0.7)],
    })  # fmt: skip
    assert values(await evaluate_refcoco(pipeline, data)) == pytest.approx(
        {"accuracy": 1 / 3, "answered": 2 / 3}
    )
    with pytest.raises(SourceError, match="testB"):
        load_refcoco(file, instances, tmp_path, split="testB")


def test_a_pickle_that_would_run_something_is_refused(tmp_path):
    class Harmful:
        def __reduce__(self):
            return print, ("ran",)

    file = tmp_path / "refs(unc).p"
    file.write_bytes(pickle.dumps([Harmful()]))
    instances = write(tmp_path / "instances.json", coco([], ["dog"]))
    with pytest.raises(SourceError, match="plain data"):
        load_refcoco(file, instances, tmp_path)


async def test_countbench_from_parquet(tmp_path):
    rows = [
        {"text": "three dogs", "number": 3, "image": {"bytes": encoded(), "path": None},
         "question": "How many dogs are there in the image?"},
        {"text": "two cats", "number": 2, "image": {"bytes": encoded(), "path": None},
         "question": "How many cats are in the picture?"},
        {"text": "gone", "number": 4, "image": None, "question": "How many owls can you see?"},
    ]  # fmt: skip
    file = tmp_path / "countbench.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    data = load_countbench(file)
    assert [question.query for question in data] == ["dogs", "cats"]
    boxes = {"dogs": [([0, 0, 9, 9], 1.0)] * 3, "cats": [([0, 0, 9, 9], 1.0)]}
    scores = values(await evaluate_counting(
        Scripted(boxes=boxes, counts={"dogs": 3, "cats": 5}), data))  # fmt: skip
    assert scores == {"accuracy": 0.5, "mean_absolute_error": 1.5, "accuracy_by_boxes": 0.5}


def test_countbench_from_json_and_paired_questions(tmp_path):
    picture(tmp_path / "images" / "dogs.jpg")
    table = write(tmp_path / "CountBench.json", [
        {"image_url": "http://example.org/a/dogs.jpg", "text": "three dogs", "number": 3},
        {"image_url": "http://example.org/gone.jpg", "text": "two cats", "number": 2}])  # fmt: skip
    asked = {"0": "How many dogs are there?", "1": "How many cats are there?"}
    questions = write(tmp_path / "q.json", {"question": asked})
    (one,) = load_countbench(table, questions=questions, images=tmp_path / "images")
    assert (one.query, one.count) == ("dogs", 3)
    with pytest.raises(SourceError, match="--questions"):
        load_countbench(table, images=tmp_path / "images")


@pytest.mark.parametrize(
    ("question", "query"),
    [
        ("How many headsets are there in the image?", "headsets"),
        ("how many red apples can you see", "red apples"),
        ("How many wooden chairs?", "wooden chairs"),
        ("Count the birds.", "Count the birds."),
    ],
)
def test_what_is_counted(question, query):
    assert what_is_counted(question) == query


async def test_pixmo_count(tmp_path):
    digest = "ab" * 32
    picture(tmp_path / "images" / f"{digest}.jpg")
    rows = [
        {"image_url": "http://e.org/1", "image_sha256": digest, "label": "wheels", "count": 2,
         "points": [{"x": 1.0, "y": 2.0}, {"x": 3.0, "y": 4.0}]},
        {"image_url": "http://e.org/gone", "image_sha256": "cd" * 32, "label": "people",
         "count": 9, "points": []},
    ]  # fmt: skip
    file = tmp_path / "test.parquet"
    parquet.write_table(pa.Table.from_pylist(rows), file)
    data = load_pixmo_count(file, images=tmp_path / "images")
    scores = values(await evaluate_counting(Scripted(), data))
    # Neither a number nor a box: two wheels away from the truth.
    assert scores == {"accuracy": 0.0, "mean_absolute_error": 2.0, "accuracy_by_boxes": 0.0}


REGIONS = {(10, 10, 40, 50): "red cap", (60, 20, 90, 60): "The Mug."}


async def test_named_regions_in_osprey_s_sample(tmp_path):
    picture(tmp_path / "7.jpg")
    rows = [{
        "file_name": "7.jpg", "height": SIDE, "width": SIDE,
        "categories": ["bottle:cap", "mug"],
        "annotations": [{"segmentation": [[10, 10, 40, 10, 40, 50]]},
                        {"segmentation": {"size": [SIDE, SIDE], "counts": rle((60, 20, 90, 60))}}],
    }]  # fmt: skip
    data = load_named_regions(write(tmp_path / "paco.json", rows), tmp_path)
    vectors = {"red cap": [1, 0], "bottle cap": [0.6, 0.8], "the mug": [0, 1], "mug": [0, 1]}
    scores = values(await evaluate_named_regions(
        Scripted(names=REGIONS), data,
        encoder=lambda texts: np.array([vectors[t] for t in texts])))  # fmt: skip
    # Words {red, cap} and {bottle, cap} share 1 of 3; {the, mug} and {mug} 1 of 2.
    assert scores == pytest.approx(
        {"exact": 0.0, "semantic_iou": (1 / 3 + 1 / 2) / 2, "semantic_similarity": 0.8}
    )


def rle(box):
    """Column-major run lengths of a rectangle, as COCO writes them."""
    mask = np.zeros((SIDE, SIDE), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    return np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()


async def test_named_regions_in_lvis_itself(tmp_path):
    picture(tmp_path / "val2017" / "7.jpg")
    raw = coco([(0, [10, 10, 30, 40]), (1, [60, 20, 30, 40])], ["red_cap", "mug"],
               coco_url="http://images.cocodataset.org/val2017/7.jpg")  # fmt: skip
    del raw["images"][0]["file_name"]
    data = load_named_regions(write(tmp_path / "lvis_v1_val.json", raw), tmp_path)
    scores = values(await evaluate_named_regions(Scripted(names=REGIONS), data))
    assert scores == {"exact": 0.5, "semantic_iou": 0.75}


async def test_cocotext(tmp_path):
    picture(tmp_path / "7.jpg")
    word = {"image_id": 7, "legibility": "legible", "class": "machine printed",
            "language": "english"}  # fmt: skip
    raw = {
        "imgs": {"7": {"id": 7, "file_name": "7.jpg", "set": "val", "width": SIDE, "height": SIDE},
                 "8": {"id": 8, "file_name": "8.jpg", "set": "train", "width": SIDE,
                       "height": SIDE}},
        "anns": {
            "1": {**word, "id": 1, "bbox": [10, 10, 30, 40], "utf8_string": "STOP"},
            "2": {**word, "id": 2, "bbox": [60, 20, 30, 40], "utf8_string": "cafe"},
            "3": {**word, "id": 3, "bbox": [0, 0, 9, 9], "utf8_string": "x",
                  "legibility": "illegible"},
        },
        "imgToAnns": {"7": [1, 2, 3], "8": []},
    }  # fmt: skip
    data = load_cocotext(write(tmp_path / "cocotext.v2.json", raw), tmp_path)
    pipeline = Scripted(names={(10, 10, 40, 50): "Stop", (60, 20, 90, 60): "cave"})
    # "Stop" against "STOP": three of four letters differ; "cave" against "cafe": one.
    assert values(await evaluate_cocotext(pipeline, data)) == pytest.approx(
        {"exact": 0.0, "exact_caseless": 0.5, "edit_similarity": (0.25 + 0.75) / 2}
    )


async def test_ferret_bench(tmp_path):
    picture(tmp_path / "7.jpg")
    questions = [
        {"question_id": 0, "image": "7.jpg", "category": "refer_desc",
         "text": "What is the object [0.100, 0.100, 0.400, 0.500]?"},
        {"question_id": 1, "image": "7.jpg", "category": "refer_desc",
         "text": "Is [0.1, 0.1, 0.4, 0.5] left of [0.6, 0.2, 0.9, 0.6]?"},
    ]  # fmt: skip
    lines(tmp_path / "question.jsonl", questions)
    lines(tmp_path / "answer.jsonl", [{"question_id": 0, "text": "dog"},
                                      {"question_id": 1, "text": "yes"}])  # fmt: skip
    lines(tmp_path / "context.jsonl", [{"image": "7.jpg", "text": "a dog and a cat"}])
    pipeline = Scripted(replies={
        "What is the object <region0>?": "A dog.",
        "Is <region0> left of <region1>?": "Yes.",
    })  # fmt: skip
    data = load_ferret_bench(tmp_path, tmp_path)
    answers = tmp_path / "answers.jsonl"
    scores = values(await evaluate_ferret_bench(pipeline, data, answers=answers))
    assert scores == {"exact": 0.5, "contains": 1.0}
    first = json.loads(answers.read_text().splitlines()[0])
    assert (first["question_id"], first["text"], first["reference"], first["context"]) == (
        0, "A dog.", "dog", "a dog and a cat")  # fmt: skip
    np.testing.assert_allclose(data[1].relative[1], [0.6, 0.2, 0.9, 0.6])


def choices(path):
    image = base64.b64encode(encoded()).decode()
    rows = [
        {"index": 0, "question": "What is it?", "hint": "Look.", "A": "dog", "B": "cat",
         "answer": "B", "category": "animals", "image": image},
        # MMBench repeats a picture by the index of the row that has it.
        {"index": 1, "question": "And this?", "hint": "", "A": "owl", "B": "fox", "answer": "A",
         "category": "animals", "image": "0"},
    ]  # fmt: skip
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


REPLIES = {
    "Look.\nWhat is it?\nA. dog\nB. cat\nAnswer with the letter of the right option.": "B",
    "Look.\nWhat is it?\nA. cat\nB. dog\nAnswer with the letter of the right option.": "The cat",
    "And this?\nA. owl\nB. fox\nAnswer with the letter of the right option.": "(A) owl",
    "And this?\nA. fox\nB. owl\nAnswer with the letter of the right option.": "A. fox",
}


@pytest.mark.parametrize(("circular", "accuracy"), [(False, 1.0), (True, 0.0)])
async def test_multiple_choice(tmp_path, circular, accuracy):
    data = load_multiple_choice(choices(tmp_path / "mmbench.tsv"))
    tally = await evaluate_multiple_choice(Scripted(replies=REPLIES), data, circular=circular)
    assert values(tally) == {"accuracy": accuracy, "accuracy: animals": accuracy}


async def test_circular_counts_an_option_named_in_words(tmp_path):
    data = load_multiple_choice(choices(tmp_path / "mmbench.tsv"), limit=1)
    replies = {**REPLIES, next(text for text in REPLIES if "A. cat" in text): "cat"}
    tally = await evaluate_multiple_choice(Scripted(replies=replies), data, circular=True)
    assert values(tally)["accuracy"] == 1.0


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("B", True), ("b.", True), ("(B) cat", True), ("The answer is B", True), ("Cat.", True),
        ("A", False), ("a cat", False), ("be", False), ("", False), ("Beaver", False),
    ],
)  # fmt: skip
def test_which_option_a_reply_names(tmp_path, reply, right):
    (choice,) = load_multiple_choice(choices(tmp_path / "mmbench.tsv"), limit=1)
    assert choice.is_right(reply, 0) == right


async def test_pope(tmp_path):
    picture(tmp_path / "7.jpg")
    asked = [("dog", "yes", "Yes, there is."), ("cat", "yes", "No."), ("owl", "no", "yes"),
             ("bus", "no", "There is not a bus. Yes."), ("car", "no", "a car")]  # fmt: skip
    file = lines(tmp_path / "coco_pope_random.json", [
        {"question_id": i, "image": "7.jpg", "text": f"Is there a {thing} in the image?",
         "label": label} for i, (thing, label, _) in enumerate(asked)])  # fmt: skip
    replies = {f"Is there a {thing} in the image?": reply for thing, _, reply in asked}
    scores = values(await evaluate_pope(Scripted(replies=replies), load_pope(file, tmp_path)))
    # Taken for yes: dog, owl, car; right: dog, bus.
    assert scores == pytest.approx({
        "accuracy": 2 / 5, "precision": 1 / 3, "recall": 1 / 2, "f1": 2 / 5, "yes_share": 3 / 5,
        "strict_accuracy": 1 / 5,
    })  # fmt: skip
