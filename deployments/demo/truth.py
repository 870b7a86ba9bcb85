"""What is really in the demo videos, frame by labelled frame, and how much of it was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.detections import FloatArray, box_iou
from groundstream.types import Box

_MATCH_IOU = 0.5


@dataclass(frozen=True)
class Score:
    """Boxes that were asked for, that were answered, and that were both."""

    num_true: int = 0
    num_answered: int = 0
    num_right: int = 0

    def __add__(self, other: Score) -> Score:
        return Score(
            self.num_true + other.num_true,
            self.num_answered + other.num_answered,
            self.num_right + other.num_right,
        )

    @property
    def recall(self) -> float:
        """Share of the true boxes that was found."""
        return self.num_right / self.num_true if self.num_true else 1.0

    @property
    def precision(self) -> float:
        """Share of the answered boxes that is right."""
        return self.num_right / self.num_answered if self.num_answered else 1.0


class Truth:
    """What a video shows in the frames that somebody labelled by hand; the others count nothing."""

    def __init__(self, frames: dict[int, dict[str, list[Box]]]) -> None:
        """`frames`: of each labelled frame the boxes of each name, xyxy pixels."""
        self._frames = frames

    @classmethod
    def read(cls, path: Path) -> Truth:
        """A file in COCO's form for videos: images with `frame_index`, boxes as x, y, w, h."""
        loaded = json.loads(path.read_text(encoding="utf-8"))
        names = {category["id"]: category["name"] for category in loaded["categories"]}
        number = {image["id"]: image["frame_index"] for image in loaded["images"]}
        frames: dict[int, dict[str, list[Box]]] = {index: {} for index in number.values()}
        for item in loaded["annotations"]:
            x, y, width, height = item["bbox"]
            boxes = frames[number[item["image_id"]]].setdefault(names[item["category_id"]], [])
            boxes.append((x, y, x + width, y + height))
        return cls(frames)

    def score(self, frame: int, label: str, boxes: Sequence[Box]) -> Score:
        """One answer against the truth; each true box may be found once."""
        if frame not in self._frames:
            return Score()
        true = self._frames[frame].get(label, [])
        num_right = 0
        if true and boxes:
            overlap = box_iou(np.array(true, dtype=np.float32), np.array(boxes, dtype=np.float32))
            num_right = _greedy_matches(overlap)
        return Score(len(true), len(boxes), num_right)


def _greedy_matches(overlap: FloatArray) -> int:
    """Pairs with enough overlap, best first, no row or column twice."""
    left = overlap.copy()
    count = 0
    while left.size and left.max() >= _MATCH_IOU:
        row, column = np.unravel_index(int(left.argmax()), left.shape)
        left[row, :] = 0.0
        left[:, column] = 0.0
        count += 1
    return count
