"""Keeps which object owns each pixel of a picture, and from it what can be seen of each.

Knows masks and windows. It does not know what the objects are or how they look.
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.training.sprites import Patch, clip

MAX_OBJECTS = 255


class Occupancy:
    """Pixel ownership of up to 255 objects, numbered from 0 in the order they were added."""

    def __init__(self, width: int, height: int) -> None:
        self.width = width
        self.height = height
        self.num_px: list[int] = []
        """Pixels of each object, inside the frame or not."""
        self.num_visible: list[int] = []
        """Pixels of each object that are inside the frame and not covered."""
        self._owner = np.zeros((height, width), np.uint8)
        self._windows = np.zeros((MAX_OBJECTS, 4), np.float64)
        self._areas = np.zeros(MAX_OBJECTS, np.float64)
        self._rows: list[tuple[int, int, int, int]] = []

    def __len__(self) -> int:
        return len(self.num_px)

    def window(self, index: int) -> tuple[int, int, int, int]:
        """Return the xyxy of a whole object, covered parts and parts outside included."""
        return self._rows[index]

    def crowding(self, corners: NDArray[np.float64], size: tuple[int, int]) -> NDArray[np.float64]:
        """Return the worst overlap with any object of a (w, h) box at each (P, 2) top left corner.

        Overlap is between boxes, over the area of the smaller of the two.
        """
        boxes = self._windows[: len(self)]
        x, y = corners[:, :1], corners[:, 1:]
        across = np.minimum(x + size[0], boxes[:, 2]) - np.maximum(x, boxes[:, 0])
        down = np.minimum(y + size[1], boxes[:, 3]) - np.maximum(y, boxes[:, 1])
        inside = np.maximum(across, 0.0) * np.maximum(down, 0.0)
        smaller = np.minimum(self._areas[: len(self)], size[0] * size[1])
        worst: NDArray[np.float64] = (inside / smaller).max(axis=1)
        return worst

    def try_add(self, patch: Patch, num_px: int, min_visible: float) -> bool:
        """Add an object on top unless it, or one below, would be less than `min_visible` seen.

        `num_px` is the number of true pixels of the patch's mask.
        """
        window = clip(patch, self.width, self.height)
        if window is None or len(self) == MAX_OBJECTS:
            return False
        target, source = window
        mask = patch.mask[source]
        owner = self._owner[target]
        num_inside = int(np.count_nonzero(mask))
        if num_inside < min_visible * num_px:
            return False
        # Most objects stand free, and counting owners is the dearest step.
        lost = np.bincount(owner[mask], minlength=1).tolist() if owner.any() else []
        for index, count in enumerate(lost[1:]):
            if count and self.num_visible[index] - count < min_visible * self.num_px[index]:
                return False
        for index, count in enumerate(lost[1:]):
            self.num_visible[index] -= count
        owner[mask] = len(self) + 1
        x0, y0, x1, y1 = patch.box
        row = (patch.left + x0, patch.top + y0, patch.left + x1, patch.top + y1)
        self._windows[len(self)] = row
        self._areas[len(self)] = (x1 - x0) * (y1 - y0)
        self._rows.append(row)
        self.num_px.append(num_px)
        self.num_visible.append(num_inside)
        return True

    def visible_fraction(self) -> NDArray[np.float32]:
        """Return (N,) the fraction of each object's pixels that can be seen."""
        fraction = np.array(self.num_visible, np.float64) / np.array(self.num_px, np.float64)
        return fraction.astype(np.float32)

    def visible_boxes(self) -> NDArray[np.float32]:
        """Return (N, 4) xyxy around the visible pixels; zeros where there are none."""
        boxes = np.zeros((len(self), 4), np.float32)
        for index, (x0, y0, x1, y1) in enumerate(self._rows):
            x0, y0 = max(x0, 0), max(y0, 0)
            own = self._owner[y0 : max(y1, 0), x0 : max(x1, 0)] == index + 1
            if own.size and self.num_visible[index]:
                x, y, w, h = cv2.boundingRect(own.view(np.uint8))
                boxes[index] = (x0 + x, y0 + y, x0 + x + w, y0 + y + h)
        return boxes
