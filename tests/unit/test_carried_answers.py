"""A guess from where things are expected to be."""

from __future__ import annotations

import numpy as np
import pytest

from agent.carried_answers import carried_answer
from agent.detections import Proposals
from agent.prompts import Task

PROPOSALS = Proposals(
    np.array([[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10]], dtype=np.float32),
    np.ones(3, dtype=np.float32),
)


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        ([[51, 0, 60, 10], [0, 0, 10, 11]],
         "<ground>dog</ground><objects><region0><region2></objects>"),
        ([[21, 20, 40, 40], [20, 21, 40, 40]], "<ground>dog</ground><objects><region1></objects>"),
        ([], "<ground>dog</ground><objects></objects>"),
        ([[80, 80, 90, 90]], ""),
    ],
)  # fmt: skip
def test_expected_boxes_become_the_nearest_regions(expected, text):
    boxes = np.array(expected, dtype=np.float32).reshape(-1, 4)
    assert carried_answer(Task.detect("dog"), boxes, PROPOSALS) == text


def test_other_tasks_are_not_guessed():
    nothing = np.zeros((0, 4), dtype=np.float32)
    assert carried_answer(Task.describe_region(0), nothing, PROPOSALS) == ""
    assert carried_answer(Task.find_similar(0), nothing, PROPOSALS) == ""


def test_nothing_is_expected_of_a_frame_without_proposals():
    boxes = np.ones((1, 4), dtype=np.float32)
    assert carried_answer(Task.detect("dog"), boxes, Proposals()) == ""
