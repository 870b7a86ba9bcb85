"""Results in other people's words: ROS vision_msgs, COCO, supervision. Pure functions.

None of those packages is imported: what comes out are plain dictionaries and arrays with their
field names, so that a caller who has them needs one line more and one who has not needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from groundstream.types import Detection, FrameResult

_NS_PER_S = 1_000_000_000


def to_header(stamp_ns: int, frame_id: str) -> dict[str, Any]:
    """Fields of a `std_msgs/msg/Header`: a time in nanoseconds, and the camera's name."""
    seconds, nanoseconds = divmod(stamp_ns, _NS_PER_S)
    return {"stamp": {"sec": seconds, "nanosec": nanoseconds}, "frame_id": frame_id}


def to_detection2d_array(
    result: FrameResult, *, frame_id: str = "camera", stamp_ns: int | None = None
) -> dict[str, Any]:
    """Fields of a `vision_msgs/msg/Detection2DArray`.

    The stamp is the capture time, as the package demands: the source's own, to the nanosecond.

    Args:
        result: one frame.
        frame_id: the camera's name in the robot's frame tree.
        stamp_ns: when the picture was taken, where its capture time says something else.
    """
    taken_ns = result.capture_time_ns if stamp_ns is None else stamp_ns
    header = to_header(taken_ns, frame_id)
    return {
        "header": header,
        "detections": [_detection2d(detection, header) for _, detection in _all(result)],
    }


def _detection2d(detection: Detection, header: Mapping[str, Any]) -> dict[str, Any]:
    x1, y1, x2, y2 = detection.box
    hypothesis = {"class_id": detection.label, "score": detection.confidence}
    return {
        "header": header,
        "results": [{"hypothesis": hypothesis}],
        "bbox": {
            "center": {"position": {"x": (x1 + x2) / 2, "y": (y1 + y2) / 2}, "theta": 0.0},
            "size_x": x2 - x1,
            "size_y": y2 - y1,
        },
        "id": "" if detection.track_id is None else str(detection.track_id),
    }


def to_coco(results: Iterable[FrameResult]) -> dict[str, list[dict[str, Any]]]:
    """A COCO detection file: images by sequence number, categories by label.

    `annotations` carry `score` and, where there is one, `track_id` beside COCO's own fields.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    for result in results:
        images.append({"id": result.sequence, "width": result.width, "height": result.height})
        for _, detection in _all(result):
            x1, y1, x2, y2 = detection.box
            annotation = {
                "id": len(annotations) + 1,
                "image_id": result.sequence,
                "category_id": categories.setdefault(detection.label, len(categories) + 1),
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
                "score": detection.confidence,
            }
            if detection.track_id is not None:
                annotation["track_id"] = detection.track_id
            annotations.append(annotation)
    named = [{"id": number, "name": label} for label, number in categories.items()]
    return {"images": images, "annotations": annotations, "categories": named}


def to_supervision(result: FrameResult, labels: Mapping[str, int]) -> dict[str, Any]:
    """Arguments of `supervision.Detections`: `Detections(**to_supervision(result, labels))`.

    Args:
        result: one frame.
        labels: class id of each label.

    Raises:
        KeyError: a label that `labels` lacks.
    """
    import numpy as np  # Only who has supervision needs arrays.

    found = [detection for _, detection in _all(result)]
    tracked = [detection.track_id for detection in found if detection.track_id is not None]
    return {
        "xyxy": np.array([d.box for d in found], dtype=np.float32).reshape(-1, 4),
        "confidence": np.array([d.confidence for d in found], dtype=np.float32),
        "class_id": np.array([labels[d.label] for d in found], dtype=int),
        "tracker_id": np.array(tracked, dtype=int) if len(tracked) == len(found) else None,
        "data": {
            "class_name": np.array([d.label for d in found]),
            "query_id": np.array([query for query, _ in _all(result)]),
        },
    }


def _all(result: FrameResult) -> Iterator[tuple[str, Detection]]:
    """Every detection of a frame with the query it answers."""
    for answer in result.results:
        for detection in answer.detections:
            yield answer.query_id, detection
