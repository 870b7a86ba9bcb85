"""A textured object on a textured ground, both moved as the test says: pictures without files."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray
from agent.streaming.view import GreyArray, View

WIDTH, HEIGHT = 320, 240
_MARGIN = 160


def _texture(seed: int, width: int, height: int) -> NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.asarray(cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX), dtype=np.uint8)


class MovingPicture:
    """One object of 60 x 50 pixels in front of a ground."""

    size = (60, 50)

    def __init__(self, seed: int = 0) -> None:
        self._ground = _texture(seed, WIDTH + 2 * _MARGIN, HEIGHT + 2 * _MARGIN)
        self._object = _texture(seed + 1, *self.size)

    def grey(
        self, *, camera: tuple[int, int] = (0, 0), at: tuple[int, int] | None = None
    ) -> GreyArray:
        """The picture when the camera has moved by `camera` and the object is at `at`."""
        left, top = _MARGIN + camera[0], _MARGIN + camera[1]
        picture = self._ground[top : top + HEIGHT, left : left + WIDTH].copy()
        if at is not None:
            x, y = at
            x1, y1, x2, y2 = max(x, 0), max(y, 0), min(x + 60, WIDTH), min(y + 50, HEIGHT)
            if x2 > x1 and y2 > y1:
                picture[y1:y2, x1:x2] = self._object[y1 - y : y2 - y, x1 - x : x2 - x]
        return picture

    def view(self, *, camera: tuple[int, int] = (0, 0), at: tuple[int, int] | None = None) -> View:
        """The same, as the tracker sees it."""
        return View.of_grey(self.grey(camera=camera, at=at), WIDTH, HEIGHT, longest_px=400)

    def box(self, at: tuple[int, int]) -> FloatArray:
        """(4,) where the object is."""
        x, y = at
        return np.array([x, y, x + 60, y + 50], dtype=np.float32)
