"""The answer grammar: the published cases, and what models write when they go wrong."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.detections import Proposals
from agent.features import Generation
from agent.paging import Page
from agent.parsing import AnswerStatus, join_pages, parse_answer, parse_regions
from agent.prompts import Task

CASES = json.loads((Path(__file__).parents[1] / "golden" / "parse_cases.json").read_text())


@pytest.mark.parametrize("case", CASES["cases"], ids=lambda case: case["text"][:40])
def test_published_cases(case):
    # The published parser sorts by the accident of a set; ours keeps the order of mention.
    parsed = {label: sorted(regions) for label, regions in parse_regions(case["text"]).items()}
    assert parsed == case["indexes"]


def generation(*pieces, truncated=False):
    return Generation(pieces, tuple(0.5 for _ in pieces), truncated, 10, 0, 1)


def proposals(count):
    corners = np.arange(count, dtype=np.float32)[:, None] * 10
    return Proposals(np.concatenate([corners, corners, corners + 8, corners + 8], 1),
                     np.ones(count, dtype=np.float32))  # fmt: skip


TASK = Task.detect("dog")


@pytest.mark.parametrize(
    ("pieces", "status", "regions", "unknown"),
    [
        (("<ground>dog</ground><objects>", "<region2>", "<region0>", "</objects>"),
         AnswerStatus.OK, [2, 0], 0),
        # an explicit empty list is a no
        (("<ground>dog</ground><objects></objects>",), AnswerStatus.NOT_PRESENT, [], 0),
        # a region that does not exist is dropped and counted
        (("<ground>dog</ground><objects>", "<region1>", "<region77>", "</objects>"),
         AnswerStatus.OK, [1], 1),
        (("<ground>dog</ground><objects>", "<region77>", "</objects>"),
         AnswerStatus.NOT_PRESENT, [], 1),
        # words without a list do not answer the question
        (("I see ", "nothing"), AnswerStatus.UNSURE, [], 0),
        ((), AnswerStatus.UNSURE, [], 0),
        # the closing tag never came
        (("<ground>dog</ground><objects>", "<region1>"), AnswerStatus.UNSURE, [], 0),
    ],
)  # fmt: skip
def test_answers(pieces, status, regions, unknown):
    answer = parse_answer(TASK, generation(*pieces), proposals(3))
    assert answer.status is status
    assert answer.detections.region.tolist() == regions
    assert answer.num_unknown_regions == unknown
    assert answer.detections.xyxy.tolist() == proposals(3).xyxy[regions].tolist()


def test_truncated_answers_say_so():
    pieces = ("<ground>dog</ground><objects>", "<region1>", "</objects>")
    answer = parse_answer(TASK, generation(*pieces, truncated=True), proposals(3))
    assert answer.status is AnswerStatus.TRUNCATED
    assert len(answer.detections) == 1


def test_confidence_is_the_probability_of_the_region_token():
    pieces = ("<ground>", "dog", "</ground>", "<objects>", "<region1>", "</objects>")
    written = Generation(pieces, (1.0, 1.0, 1.0, 1.0, 0.25, 1.0), False, 10, 0, 1)
    answer = parse_answer(TASK, written, proposals(3))
    assert answer.detections.confidence.tolist() == [0.25]


def test_a_box_of_two_labels_has_a_confidence_for_each():
    """The surer label's would make "wolf" a detection wherever "dog" is one."""
    pieces = ("<ground>", "wolf", "</ground>", "<objects>", "<region1>", "</objects>",
              "<ground>", "dog", "</ground>", "<objects>", "<region0>", "<region1>", "</objects>",
              "<ground>", "wolf", "</ground>", "<objects>", "<region1>", "</objects>")  # fmt: skip
    sureness = (1.0,) * 4 + (0.1,) + (1.0,) * 5 + (0.4, 0.9) + (1.0,) * 5 + (0.2,) + (1.0,)
    answer = parse_answer(TASK, Generation(pieces, sureness, False, 10, 0, 1), proposals(3))
    assert answer.detections.label == ("wolf", "dog", "dog")
    assert answer.detections.region.tolist() == [1, 0, 1]
    assert answer.detections.confidence.tolist() == pytest.approx([0.2, 0.4, 0.9])


@pytest.mark.parametrize(
    ("least", "regions", "status"),
    [
        (0.0, [0, 2], AnswerStatus.OK),
        (0.5, [2], AnswerStatus.OK),
        (0.95, [], AnswerStatus.UNSURE),
    ],
)
def test_boxes_the_model_hardly_believes_in_are_left_out(least, regions, status):
    pieces = ("<ground>", "dog", "</ground>", "<objects>", "<region0>", "<region2>", "</objects>")
    written = Generation(pieces, (1.0, 1.0, 1.0, 1.0, 0.3, 0.9, 1.0), False, 10, 0, 1)
    page = Page(np.arange(3))
    answer = join_pages(
        TASK, [(page, written)], proposals(3), rules=AnswerRules(least_confidence=least)
    )
    assert answer.detections.region.tolist() == regions
    assert answer.status is status
    assert answer.text == "".join(pieces), "what was written stays to be read"


def test_an_object_is_claimed_once():
    boxes = np.array(
        [[0, 0, 10, 10], [1, 0, 11, 10], [2, 2, 5, 5], [20, 0, 30, 10], [0, 0, 40, 40]], np.float32
    )
    numbered = Proposals(boxes, np.ones(5, np.float32))
    pieces = ("<ground>", "dog", "</ground>", "<objects>", "<region0>", "<region1>", "<region2>",
              "<region3>", "</objects>", "<ground>", "cat", "</ground>", "<objects>", "<region2>",
              "</objects>")  # fmt: skip
    sureness = (1.0,) * 4 + (0.6, 0.9, 0.8, 0.7) + (1.0,) * 5 + (0.8,) + (1.0,)
    written = Generation(pieces, sureness, False, 10, 0, 1)
    page = (Page(np.arange(5)), written)
    every = join_pages(TASK, [page], numbered)
    assert every.detections.region.tolist() == [0, 1, 2, 3, 2]
    once = join_pages(TASK, [page], numbered, rules=AnswerRules(one_per_object=True))
    # Box 1 is surer than the box it overlaps and than the one it holds; a cat is no dog.
    assert once.detections.region.tolist() == [1, 2, 3, 2]
    assert once.detections.label == ("dog", "dog", "dog", "cat")
    assert once.detections.confidence.tolist() == pytest.approx([0.9, 0.6 * 0.8, 0.7, 0.8])
    rules = AnswerRules(one_per_object=True, least_confidence=0.5)
    sure = join_pages(TASK, [page], numbered, rules=rules)
    assert sure.detections.region.tolist() == [1, 3, 2], "what is left of box 2 is no detection"
    doubtful = Proposals(boxes, np.array([0.81, 0.25, 0.81, 0.04, 0.01], np.float32))
    rules = AnswerRules(one_per_object=True, objectness_power=0.5)
    weighed = join_pages(TASK, [page], doubtful, rules=rules)
    # 0.6 x 0.9 is more than 0.9 x 0.5, which overlaps it; it holds a box of 0.8 x 0.9.
    assert weighed.detections.region.tolist() == [0, 2, 3, 2]
    assert weighed.detections.confidence.tolist() == pytest.approx([0.324, 0.72, 0.14, 0.72])


@pytest.mark.parametrize(
    ("task", "text", "reply", "thought", "count"),
    [
        (Task.count("dog"), "<ground>dog</ground><objects><region0><region2></objects> There are 2",
         "dog There are 2", "", 2),
        (Task.count("dog"), "<ground>dog</ground><objects><region0></objects>", "dog", "", 1),
        (Task.count("dog"), "no dogs", "no dogs", "", None),
        (Task.count("seat 61"), "I count 3 of seat 61: 4.", "I count 3 of seat 61: 4.", "", 4),
        (Task.reason("Why?"), "<think>Look at <region1>.\nIt runs.</think><answer> It is late"
         "</answer>", "It is late", "Look at <region1>.\nIt runs.", None),
        (Task.read_region(1), "EXIT 4", "EXIT 4", "", None),
        (Task.chat("Hi"), "Hello <region1>!", "Hello !", "", None),
    ],
)  # fmt: skip
def test_replies(task, text, reply, thought, count):
    answer = parse_answer(task, generation(text), proposals(3))
    assert (answer.reply, answer.thought, answer.count) == (reply, thought, count)
    assert answer.num_proposals == 3


def test_grounded_captions_keep_every_label():
    text = (
        "A <ground>dog</ground><objects><region1></objects> chases "
        "<ground>two cats</ground><objects><region0><region2></objects>."
    )
    answer = parse_answer(Task.describe_image(), generation(text), proposals(3))
    assert answer.reply == "A dog chases two cats."
    assert answer.detections.label == ("dog", "two cats", "two cats")
    assert answer.detections.region.tolist() == [1, 0, 2]


def test_text_answers_need_no_boxes():
    answer = parse_answer(Task.chat("Hi"), generation("Hello"), proposals(0))
    assert answer.status is AnswerStatus.OK
