"""Benchmarks read from small files in their published forms, counted over a scripted zoomer."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import numpy as np
import pytest

from agent.detections import Detections, Proposals
from agent.evaluation.high_resolution import (
    ChoiceQuestion,
    evaluate_choices,
    load_hr_bench,
    load_mme_realworld,
    load_vstar,
)
from agent.evaluation.high_resolution_scenes import (
    Reply,
    SceneQuestion,
    WayScores,
    Whole,
    compare_ways,
    read_sums,
    with_image_limit,
    write_sums,
)
from agent.frame import read_frame
from agent.model.configuration import VLMFO1Config
from agent.model_directory import find_model
from agent.parsing import Answer
from agent.pipeline import Grounding
from agent.prompts import Task
from agent.revisions import Revision, first_revision
from agent.stages import local_pipeline
from agent.zoom_policy import Zoom
from groundstream.errors import SourceError
from tests.pictures import encoded_image
from tests.unit.tiny_model import write_tiny_model

PICTURE = encoded_image(1)
ENCODED = base64.b64encode(PICTURE).decode()


def write_vstar(folder: Path) -> Path:
    (folder / "direct_attributes").mkdir()
    (folder / "direct_attributes" / "sa_1.jpg").write_bytes(PICTURE)
    rows = [
        {
            "text": "What is the colour of the glove?\n(A) rubber\n(B) cotton\n(C) kevlar\n"
            "(D) leather\nAnswer with the option's letter from the given choices directly.",
            "category": "direct_attributes",
            "image": "direct_attributes/sa_1.jpg",
            "label": "A",
            "question_id": 7,
        },
        {
            "text": "Is the dog left or right of the car?\n(A) right\n(B) left\nAnswer.",
            "category": "relative_position",
            "image": "direct_attributes/sa_1.jpg",
            "label": "B",
            "question_id": 8,
        },
    ]
    path = folder / "test_questions.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    return path


HR_ROW = {
    "index": "0", "question": "What is written on the sign?", "answer": "C", "category": "single",
    "A": "Go", "B": "Halt", "C": "Stop", "D": "Slow", "cycle_category": "0", "image": ENCODED,
}  # fmt: skip
MME_ROW = {
    "Question_id": "Perception/Autonomous_Driving/Objects_Identify/0000",
    "Question Type": "Multiple Choice",
    "Image": "nuScenes/n1.jpg",
    "Text": "What is in front of the car?",
    "Answer choices": ["(A) A bus.", "(B) A tree.", "(C) A dog.", "(D) Rain.", "(E) None of them."],
    "Ground truth": "E",
    "Task": "Perception",
    "Subtask": "Autonomous_Driving",
    "Category": "Objects_Identify",
}


def test_vstar(tmp_path: Path) -> None:
    first, second = load_vstar(write_vstar(tmp_path))
    assert first.question == "What is the colour of the glove?"
    assert first.choices == ("rubber", "cotton", "kevlar", "leather")
    assert (first.answer, first.category, first.id) == ("A", "direct_attributes", "7")
    assert first.frame().width == 96
    assert second.choices == ("right", "left")
    assert second.text.startswith("Is the dog left or right of the car?\n(A) right\n(B) left\n")


def test_hr_bench_as_a_table_of_text(tmp_path: Path) -> None:
    path = tmp_path / "hr_bench_4k.tsv"
    path.write_text("\t".join(HR_ROW) + "\n" + "\t".join(HR_ROW.values()) + "\n")
    (question,) = load_hr_bench(path)
    assert question.choices == ("Go", "Halt", "Stop", "Slow")
    assert (question.answer, question.category) == ("C", "single")
    assert question.frame().height == 64


def test_parquet(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "hr_bench_8k.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([HR_ROW]), path)
    assert load_hr_bench(path)[0].choices == ("Go", "Halt", "Stop", "Slow")
    row = {
        "index": 3, "bytes": ENCODED, "question": "What is it?", "answer": "B",
        "multi-choice options": ["(A) a cat", "(B) a dog"], "category": "Perception/Monitoring",
        "l2-category": "Vehicle/counting",
    }  # fmt: skip
    path = tmp_path / "train-00000-of-00004.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row]), path)
    (question,) = load_mme_realworld(path)
    assert question.choices == ("a cat", "a dog")
    assert (question.answer, question.category) == ("B", "Perception/Monitoring")
    assert question.frame().width == 96
    path.write_bytes(b"no parquet")
    with pytest.raises(SourceError, match="cannot read"):
        load_mme_realworld(path)


def test_mme_realworld(tmp_path: Path) -> None:
    path = tmp_path / "MME_RealWorld_Lite.json"
    path.write_text(json.dumps([MME_ROW]))
    (tmp_path / "imgs" / "nuScenes").mkdir(parents=True)
    (tmp_path / "imgs" / "nuScenes" / "n1.jpg").write_bytes(PICTURE)
    (question,) = load_mme_realworld(path, tmp_path / "imgs")
    assert question.choices[4] == "None of them."
    assert (question.answer, question.category) == ("E", "Perception/Autonomous_Driving")
    assert question.frame().width == 96


@pytest.mark.parametrize(
    ("loader", "name", "text", "message"),
    [
        (load_vstar, "q.jsonl", '{"text": "x"}', "entry 1 lacks 'label'"),
        (load_vstar, "q.jsonl", "{", "is not JSON"),
        (load_hr_bench, "q.tsv", "index\tquestion\n0\tWhat?\n", "entry 1 lacks 'A'"),
        (load_mme_realworld, "q.json", "{}", "must hold a list"),
        (load_mme_realworld, "q.json", '[{"Text": "x"}]', "lacks 'Answer choices'"),
    ],
)
def test_other_files_are_named(loader, name, text, message, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / name
    with pytest.raises(SourceError, match="cannot read"):
        loader(path)
    path.write_text(text)
    with pytest.raises(SourceError, match=message):
        loader(path)


def test_a_picture_that_is_no_base64_is_named(tmp_path: Path) -> None:
    path = tmp_path / "hr.tsv"
    row = {**HR_ROW, "image": "§§"}
    path.write_text("\t".join(row) + "\n" + "\t".join(row.values()) + "\n")
    with pytest.raises(SourceError, match="picture of entry 1"):
        load_hr_bench(path)


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(B) left", "B"),
        ("The answer is (B).", "B"),
        ("left", "B"),
        ("Left.", "B"),
        ("Bright", None),
        ("neither", None),
        ("", None),
    ],
)
def test_letters(reply: str, letter: str | None) -> None:
    question = ChoiceQuestion("Where?", ("right", "left"), "B", "x", PICTURE)
    assert question.chosen(reply) == letter


class Scripted:
    """Answers in turn; every look costs 100 tokens more."""

    def __init__(self, *replies: str) -> None:
        self._replies = iter(replies)

    async def look(self, frame, tasks, zoom):  # type: ignore[no-untyped-def]
        answer = Answer(tasks[0], "", reply=next(self._replies))
        grounding = Grounding((answer,), Proposals(), False)
        for number in range(2):
            yield Revision(number, grounding, ((),), (), 100 * (number + 1), number == 1)


async def test_accuracy_by_category_beside_its_price(tmp_path: Path) -> None:
    questions = load_vstar(write_vstar(tmp_path)) * 2
    scores = await evaluate_choices(Scripted("A", "A", "?", "(B)"), questions, Zoom())
    assert (scores.num, scores.accuracy, scores.num_without_answer) == (4, 0.5, 1)
    assert {name: score.accuracy for name, score in scores.categories.items()} == {
        "direct_attributes": 0.5,
        "relative_position": 0.5,
    }
    assert scores.vision_tokens == 200
    assert scores.seconds > 0


BOX = np.array([[10, 10, 40, 40]], dtype=np.float32)


def scene_question(task: Task, truth: np.ndarray = BOX) -> SceneQuestion:
    return SceneQuestion(read_frame(PICTURE), task, None, BOX, truth, "dog")


def answered(task: Task, boxes: np.ndarray, **more: object) -> Answer:
    num = len(boxes)
    found = Detections(boxes, np.ones(num, np.float32), ("dog",) * num, np.arange(num))
    return Answer(task, "", found, **more)  # type: ignore[arg-type]


async def test_what_counts_as_right_and_what_it_costs(tmp_path: Path) -> None:
    nothing = np.zeros((0, 4), dtype=np.float32)
    detect, count, name = Task.detect("dog"), Task.count("dog"), Task.describe_region(0)
    two = np.concatenate([BOX, BOX + 40])
    assert scene_question(detect).is_right(answered(detect, BOX + 1))
    assert not scene_question(detect).is_right(answered(detect, two))
    assert not scene_question(detect).is_right(answered(detect, nothing))
    assert scene_question(detect, nothing).is_right(answered(detect, nothing))
    assert scene_question(count).is_right(answered(count, BOX, count=1))
    assert not scene_question(count).is_right(answered(count, BOX, count=2))
    assert scene_question(name).is_right(answered(name, nothing, reply="Dog."))
    assert not scene_question(name).is_right(answered(name, nothing, reply="cat"))

    class Questions:
        def question(self, number: int) -> SceneQuestion:
            return scene_question(detect)

    async def way(question: SceneQuestion) -> Reply:
        grounding = Grounding((answered(detect, two),), Proposals(), False)
        return Reply(first_revision(grounding, final=True), spared_s=100.0)

    ways, path = {"way": way}, tmp_path / "sums.json"
    for num in (2, 3):  # Interrupted after two.
        scores = read_sums(path, ways)
        compared = compare_ways(Questions(), ways, scores, num=num)  # type: ignore[arg-type]
        assert [done async for done in compared][-1] == num
        write_sums(path, scores)
    assert scores["way"].num == 3
    figures = scores["way"].as_dict()
    assert 100.0 <= figures["seconds"] < 101.0
    assert (figures["accuracy"], figures["accuracy_detect"]) == (0.0, 0.0)
    assert figures["grounding_f1"] == pytest.approx(2 / 3)
    assert WayScores().as_dict()["accuracy"] == 0.0
    with pytest.raises(SourceError, match="compared way"):
        read_sums(path, ["coarse"])
    path.write_text("[]")
    with pytest.raises(SourceError, match="no sums"):
        read_sums(path, ways)


async def test_the_full_pass_encodes_a_scene_once_and_is_charged_for_it(tmp_path: Path) -> None:
    pipeline = local_pipeline(str(write_tiny_model(tmp_path / "tiny")))
    calls = 0

    async def features(*arguments, **more):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        return await type(pipeline).features(pipeline, *arguments, **more)

    pipeline.features = features  # type: ignore[method-assign]
    way, frame = Whole(pipeline), read_frame(PICTURE)
    about_region = SceneQuestion(frame, Task.describe_region(0), BOX, BOX, BOX, "dog")
    search = SceneQuestion(frame, Task.detect("dog"), None, BOX, BOX, "dog")
    first, second = await way(about_region), await way(search)
    assert calls == 1
    assert len(first.revision.grounding.proposals) == 1
    assert len(second.revision.grounding.proposals) > 1
    # The first scouted for the second; the second was spared encoding and scouting.
    assert first.spared_s < 0.0 < second.spared_s
    whole = second.revision.grounding
    by_itself = await pipeline.ground(frame, [search.task], boxes=whole.proposals.xyxy)
    assert by_itself.answers[0].text == whole.answers[0].text


def test_full_resolution_is_the_same_model_with_another_limit(tmp_path: Path) -> None:
    source = write_tiny_model(tmp_path / "tiny")
    raised = with_image_limit(str(source), 2048, tmp_path)
    assert VLMFO1Config.from_file(raised / "config.json").image.max_long_side == 2048
    assert {p.name for p in raised.iterdir()} == {p.name for p in source.iterdir()}
    assert find_model(str(raised)).digest != find_model(str(source)).digest
