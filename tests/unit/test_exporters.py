"""Results in other people's words."""

from __future__ import annotations

import numpy as np
import pytest

from groundstream.exporters import to_coco, to_detection2d_array, to_supervision
from groundstream.types import AnswerStatus, Detection, FrameResult, QueryResult, StageTimings


def result(sequence: int, *detections: Detection) -> FrameResult:
    """One frame with one answered query and one that found nothing."""
    found = QueryResult("q", 1, AnswerStatus.OK, "", detections)
    nothing = QueryResult("none", 1, AnswerStatus.NOT_PRESENT, "", ())
    return FrameResult(
        sequence, 1, 1_700_000_001_234_567_891, 0, 0, 640, 480, (found, nothing), False, 9,
        StageTimings(),
    )  # fmt: skip


DOG = Detection((10.0, 20.0, 40.0, 60.0), "dog", 0.75, 3, 0.5, track_id=7)
CAT = Detection((0.0, 0.0, 5.0, 5.0), "cat", 0.5, 1, 0.5)


def test_ros_gets_centres_and_the_capture_time() -> None:
    message = to_detection2d_array(result(4, DOG, CAT), frame_id="front")
    assert message["header"] == {
        "stamp": {"sec": 1_700_000_001, "nanosec": 234_567_891},
        "frame_id": "front",
    }
    dog, cat = message["detections"]
    assert dog["bbox"] == {
        "center": {"position": {"x": 25.0, "y": 40.0}, "theta": 0.0},
        "size_x": 30.0,
        "size_y": 40.0,
    }
    assert dog["results"] == [{"hypothesis": {"class_id": "dog", "score": 0.75}}]
    assert (dog["id"], cat["id"]) == ("7", "")


def test_coco_counts_on_over_frames() -> None:
    data = to_coco([result(0, DOG), result(1, CAT, DOG)])
    assert [image["id"] for image in data["images"]] == [0, 1]
    assert data["categories"] == [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}]
    assert [a["id"] for a in data["annotations"]] == [1, 2, 3]
    assert [a["category_id"] for a in data["annotations"]] == [1, 2, 1]
    assert data["annotations"][0]["bbox"] == [10.0, 20.0, 30.0, 40.0]
    assert data["annotations"][0]["area"] == 1200.0
    assert "track_id" not in data["annotations"][1]


def test_supervision_gets_aligned_arrays() -> None:
    arguments = to_supervision(result(0, DOG), {"dog": 5})
    np.testing.assert_array_equal(arguments["xyxy"], [[10, 20, 40, 60]])
    assert arguments["class_id"].tolist() == [5]
    assert arguments["tracker_id"].tolist() == [7]
    assert arguments["data"]["query_id"].tolist() == ["q"]
    # One number for every box, or none at all.
    assert to_supervision(result(0, DOG, CAT), {"dog": 0, "cat": 1})["tracker_id"] is None
    assert to_supervision(result(0), {})["xyxy"].shape == (0, 4)
    with pytest.raises(KeyError):
        to_supervision(result(0, CAT), {"dog": 0})
