"""What the tracker sees of a frame: a small grey picture. Knows no tracks and no time."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray
from agent.frame import Picture

GreyArray = NDArray[np.uint8]

_SKETCH_SIZE = (64, 48)
_LOOK_SIZE = (12, 24)
"""Width and height; most things that are followed stand upright."""
_LEAST_LOOK_PX = 4
_PLAIN = 20.0
"""Length of a look below which it is noise, grey levels."""


def rows_and_columns(box: FloatArray) -> tuple[slice, slice]:
    """All pixels of a grey picture that a (4,) box in its pixels touches."""
    x1, y1 = np.maximum(np.floor(box[:2]), 0).astype(int).tolist()
    x2, y2 = np.maximum(np.ceil(box[2:]), 0).astype(int).tolist()
    return slice(y1, y2), slice(x1, x2)


@dataclass(frozen=True)
class View:
    """A grey picture and how to get from its pixels to the frame's."""

    grey: GreyArray
    """(height, width) uint8."""
    scale: FloatArray
    """(2,) frame pixels per view pixel, x and y."""

    @classmethod
    def of(cls, frame: Picture, *, longest_px: int) -> View:
        """The view of a frame, its longer side at most `longest_px`; takes a few milliseconds.

        Raises:
            InvalidFrame: the body of the image is damaged.
        """
        return cls.of_grey(frame.grey(longest_px), frame.width, frame.height, longest_px=longest_px)

    @classmethod
    def of_grey(cls, grey: GreyArray, width: int, height: int, *, longest_px: int) -> View:
        """The view of a frame of that size that has been decoded, to whatever size."""
        factor = longest_px / max(grey.shape)
        if factor < 1.0:
            rows, columns = (max(1, round(side * factor)) for side in grey.shape)
            resized = cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA)
            grey = np.asarray(resized, dtype=np.uint8)
        scale = np.array([width / grey.shape[1], height / grey.shape[0]], dtype=np.float32)
        return cls(grey, scale)

    def look(self, box: FloatArray) -> FloatArray | None:
        """What stands in a box, to be compared with what stands there later.

        Args:
            box: (4,) frame pixels.

        Returns:
            (288,) of zero mean and unit length, so that a product of two is their correlation;
            zeros where it is plain, None where too little of the box is in the picture.
        """
        here = np.asarray(box / np.tile(self.scale, 2), dtype=np.float32)
        rows, columns = rows_and_columns(here)
        part = self.grey[rows, columns]
        if min(part.shape) < _LEAST_LOOK_PX:
            return None
        small = cv2.resize(np.ascontiguousarray(part), _LOOK_SIZE, interpolation=cv2.INTER_AREA)
        look = np.asarray(small, dtype=np.float32).ravel()
        look -= look.mean()
        length = float(np.linalg.norm(look))
        return np.zeros_like(look) if length < _PLAIN else look / length

    def sketch(self) -> Sketch:
        """The view boiled down to a few blocks."""
        blocks = cv2.resize(self.grey, _SKETCH_SIZE, interpolation=cv2.INTER_AREA)
        size = self.scale * np.array(self.grey.shape[::-1], dtype=np.float32)
        return Sketch(np.asarray(blocks, dtype=np.float32), size)


@dataclass(frozen=True)
class Sketch:
    """Mean grey of each block of a picture; cheap to keep and to compare."""

    blocks: FloatArray
    """(48, 64), 0..255."""
    size: FloatArray
    """(2,) the frame's width and height in pixels."""

    def moved(self, camera: NDArray[np.float64]) -> tuple[Sketch, NDArray[np.bool_]]:
        """The sketch after a camera movement, and which blocks are known then.

        Args:
            camera: (2, 3) affine map of frame pixels.
        """
        to_block = np.array(_SKETCH_SIZE) / self.size
        warp = camera.copy()
        warp[0, 1] *= to_block[0] / to_block[1]
        warp[1, 0] *= to_block[1] / to_block[0]
        warp[:, 2] *= to_block
        ones = np.ones_like(self.blocks)
        blocks = cv2.warpAffine(self.blocks, warp, _SKETCH_SIZE)
        known = cv2.warpAffine(ones, warp, _SKETCH_SIZE) > 0.99
        return Sketch(np.asarray(blocks, dtype=np.float32), self.size), np.asarray(known)

    def is_like(self, other: Sketch) -> bool:
        """Whether the two are of frames of one size, so that they can be compared."""
        return bool(np.array_equal(self.size, other.size))

    def largest_difference(self, other: Sketch) -> float:
        """The largest change of any block, 0..1."""
        return float(np.abs(self.blocks - other.blocks).max() / 255.0)

    def mask(self, xyxy: FloatArray) -> NDArray[np.bool_]:
        """(48, 64), True in every block that one of the boxes touches."""
        covered = np.zeros(self.blocks.shape, dtype=bool)
        to_block = np.tile(np.array(_SKETCH_SIZE) / self.size, 2)
        for x1, y1, x2, y2 in np.asarray(xyxy * to_block, dtype=np.float64).reshape(-1, 4):
            rows = slice(max(0, int(y1)), max(0, int(np.ceil(y2))))
            covered[rows, max(0, int(x1)) : max(0, int(np.ceil(x2)))] = True
        return covered
