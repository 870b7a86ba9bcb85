"""Boxes and labels on pictures; one colour per label, the same in every frame and process.

Knows no models and no wires.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from agent.frame import RGBArray

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


@dataclass(frozen=True)
class LabelledBox:
    """One box to draw."""

    xyxy: tuple[float, float, float, float]
    """Pixels of the picture."""
    label: str
    confidence: float | None = None
    colour_of: str | None = None
    """Draw in this label's colour; None: in its own."""


def label_colour(label: str) -> tuple[int, int, int]:
    """A saturated RGB colour that depends on the label alone."""
    # Not hash(): it differs from process to process.
    hue = int.from_bytes(hashlib.blake2b(label.encode(), digest_size=2).digest(), "little") % 180
    pixel = np.array([[[hue, 210, 235]]], dtype=np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]
    return int(red), int(green), int(blue)


def draw_boxes(rgb: RGBArray, boxes: Sequence[LabelledBox], *, caption: str = "") -> RGBArray:
    """A copy of (height, width, 3) RGB pixels with boxes, labels and a caption on it.

    The surest is drawn last: where two labels claim one box, it stands on top.
    """
    boxes = sorted(boxes, key=lambda box: 1.0 if box.confidence is None else box.confidence)
    canvas = np.ascontiguousarray(rgb).copy()
    height, width = canvas.shape[:2]
    scale = max(0.4, min(height, width) / 1000)
    thickness = max(2, round(scale * 3))
    for box in boxes:
        x1, y1, x2, y2 = (round(value) for value in box.xyxy)
        colour = label_colour(box.colour_of or box.label)
        cv2.rectangle(canvas, (x1, y1), (x2, y2), colour, thickness)
    # Labels after all boxes, so that no line crosses a text.
    for box in boxes:
        text = box.label if box.confidence is None else f"{box.label} {box.confidence:.2f}"
        left, bottom = round(box.xyxy[0]), round(box.xyxy[1])
        _draw_text(canvas, text, left, bottom, scale, box.colour_of or box.label)
    if caption:
        _draw_text(canvas, caption, 0, height, scale, None)
    return canvas


def _draw_text(
    canvas: RGBArray, text: str, left: int, bottom: int, scale: float, label: str | None
) -> None:
    """Text on a filled plate whose lower left corner is (left, bottom), kept inside the picture."""
    stroke = max(1, round(scale * 2))
    (text_width, text_height), baseline = cv2.getTextSize(text, _FONT, scale, stroke)
    height, width = canvas.shape[:2]
    left = min(max(left, 0), max(0, width - text_width))
    bottom = min(max(bottom, text_height + baseline), height)
    background = _BLACK if label is None else label_colour(label)
    bright = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2] > 140
    top_left, bottom_right = (left, bottom - text_height - baseline), (left + text_width, bottom)
    cv2.rectangle(canvas, top_left, bottom_right, background, cv2.FILLED)
    colour = _BLACK if bright else _WHITE
    origin = (left, bottom - baseline)
    cv2.putText(canvas, text, origin, _FONT, scale, colour, stroke, cv2.LINE_AA)
