"""What is really in the demo videos, and how much of it was found."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from agent.detections import FloatArray, box_iou
from client.types import Box

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
    """The objects of every frame of one composed video."""

    def __init__(self, frames: list[dict[str, list[Box]]]) -> None:
        self._frames = frames

    @classmethod
    def beside(cls, video: Path) -> Truth:
        """Read the JSON file that was written together with the video."""
        loaded = json.loads(video.with_suffix(".json").read_text(encoding="utf-8"))
        frames: list[dict[str, list[Box]]] = []
        for frame in loaded["frames"]:
            boxes: dict[str, list[Box]] = {}
            for item in frame["objects"]:
                boxes.setdefault(item["label"], []).append(tuple(item["xyxy"]))
            frames.append(boxes)
        return cls(frames)

    def score(self, frame: int, label: str, boxes: Sequence[Box]) -> Score:
        """One answer against the truth; each true box may be found once."""
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
