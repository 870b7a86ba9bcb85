"""Guesses from where things are expected to be."""

from __future__ import annotations

import numpy as np
import pytest

from agent.carried_answers import carried_answers
from agent.detections import Proposals
from agent.prompts import Task

PROPOSALS = Proposals(
    np.array(
        [[0, 0, 10, 10], [20, 20, 40, 40], [50, 0, 60, 10], [70, 0, 80, 11], [70, 4, 80, 12]],
        dtype=np.float32,
    ),
    np.ones(5, dtype=np.float32),
)


@pytest.mark.parametrize(
    ("expected", "regions"),
    [
        # Both; without the second; without the first.
        ([[51, 0, 60, 10], [0, 0, 10, 11]], [(0, 2), (0,), (2,)]),
        ([[21, 20, 40, 40], [20, 21, 40, 40]], [(1,), ()]),
        ([], [()]),
        # What no proposal shows is left out.
        ([[80, 80, 90, 90]], [()]),
        ([[80, 80, 90, 90], [0, 0, 10, 11]], [(0,), ()]),
        # Two proposals for one thing: the nearest, nothing, the other.
        ([[70, 0, 80, 10]], [(3,), (), (4,)]),
    ],
)
def test_expected_boxes_become_the_nearest_regions(expected, regions):
    boxes = np.array(expected, dtype=np.float32).reshape(-1, 4)
    assert carried_answers(Task.detect("dog"), boxes, PROPOSALS) == tuple(
        f"<ground>dog</ground><objects>{''.join(f'<region{r}>' for r in some)}</objects>"
        for some in regions
    )


def test_other_tasks_are_not_guessed():
    nothing = np.zeros((0, 4), dtype=np.float32)
    assert carried_answers(Task.describe_region(0), nothing, PROPOSALS) == ()
    assert carried_answers(Task.find_similar(0), nothing, PROPOSALS) == ()


def test_a_frame_without_proposals_shows_nothing():
    boxes = np.ones((1, 4), dtype=np.float32)
    assert carried_answers(Task.detect("dog"), boxes, Proposals()) == (
        "<ground>dog</ground><objects></objects>",
    )
