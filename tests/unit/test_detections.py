"""Boxes: validation, overlap, suppression."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.detections import (
    Detections,
    Proposals,
    box_iou,
    claims,
    non_maximum_suppression,
    validate_boxes,
)
from groundstream.errors import InvalidBoxes


@pytest.mark.parametrize(
    "boxes",
    [
        [[0, 0, float("nan"), 5]],
        [[0, 0, float("inf"), 5]],
        [[5, 5, 1, 9]],  # reversed
        [[3, 3, 3, 9]],  # empty
        [[200, 0, 300, 50]],  # outside
        [[1, 2, 3]],  # not four numbers
    ],
)
def test_refused(boxes):
    with pytest.raises(InvalidBoxes):
        validate_boxes(np.array(boxes, dtype=np.float32), width=100, height=100)


def test_clipped_to_the_frame():
    boxes = validate_boxes(np.array([[-5, 2, 150, 50]], dtype=np.float32), width=100, height=100)
    assert boxes.tolist() == [[0, 2, 100, 50]]


def test_iou_by_hand():
    a = np.array([[0, 0, 10, 10]], dtype=np.float32)
    b = np.array([[5, 0, 15, 10], [20, 20, 30, 30], [0, 0, 10, 10]], dtype=np.float32)
    np.testing.assert_allclose(box_iou(a, b), [[1 / 3, 0, 1]], atol=1e-6)


corner = st.floats(0, 90, width=32)
side = st.floats(1, 30, width=32)
boxes_strategy = st.lists(st.tuples(corner, corner, side, side), min_size=1, max_size=20).map(
    lambda rows: np.array([(x, y, x + w, y + h) for x, y, w, h in rows], dtype=np.float32)
)


@given(boxes_strategy, st.floats(0.1, 0.9))
def test_suppression_keeps_the_best_and_no_overlaps(boxes, limit):
    scores = np.linspace(0, 1, len(boxes), dtype=np.float32)
    kept = non_maximum_suppression(boxes, scores, iou=limit)
    assert kept[0] == len(boxes) - 1
    assert list(scores[kept]) == sorted(scores[kept], reverse=True)
    overlap = box_iou(boxes[kept], boxes[kept]) - np.eye(len(kept))
    assert (overlap <= limit + 1e-6).all()


def test_an_object_is_claimed_by_its_surest_box():
    boxes = np.array(
        [[0, 0, 10, 10], [1, 0, 11, 10], [2, 2, 5, 5], [0, 0, 40, 40], [20, 0, 30, 10]], np.float32
    )
    scores = np.array([0.6, 0.9, 0.8, 0.5, 0.4], np.float32)
    left = claims(boxes, scores, iou=0.5, containment=0.85, held=0.6)
    # Box 1 overlaps box 0 and holds box 2. Box 3 is around both and pays for it once, and by then
    # box 4, inside it, is the surer one.
    np.testing.assert_allclose(left, [0, 0.9, 0.48, 0.3, 0.4])
    assert scores[0] == np.float32(0.6), "what was given stays"
    assert claims(boxes[:0], scores[:0], iou=0.5, containment=0.85, held=0.6).shape == (0,)


@given(boxes_strategy, st.floats(0.1, 0.9), st.floats(0, 1))
def test_claims_are_suppression_where_nested_boxes_keep_nothing(boxes, limit, held):
    scores = np.linspace(0.1, 1, len(boxes), dtype=np.float32)
    left = claims(boxes, scores, iou=limit, containment=2.0, held=held)
    kept = non_maximum_suppression(boxes, scores, iou=limit)
    assert set(np.flatnonzero(left)) == set(kept)
    nested = claims(boxes, scores, iou=limit, containment=0.5, held=held)
    assert (nested <= scores).all()
    assert nested.max() == scores.max()


def test_lengths_must_agree():
    with pytest.raises(InvalidBoxes):
        Proposals(np.zeros((2, 4)), np.zeros(3))
    with pytest.raises(InvalidBoxes):
        Detections(np.zeros((1, 4)), np.zeros(1), (), np.zeros(1, dtype=np.int64))
