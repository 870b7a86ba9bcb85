"""Boxes and labels on pictures; one colour per label, the same in every frame and process.

Knows no models and no wires.
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from groundstream.video.pictures import RGBArray

_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)
_SATURATION, _VALUE = 0.82, 0.92
_TEXT_PX = 30
"""Size of the letters on a picture of 1000 lines."""
_MARGIN_PX = 2
_FARTHEST = 4
"""Heights of a label by which it stands above or below its box at most: farther away it would seem
to be about another one."""

_Plate = tuple[int, int, int, int]
"""(left, top, right, bottom) of a label, the last two excluded."""


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
    red, green, blue = colorsys.hsv_to_rgb(hue / 180, _SATURATION, _VALUE)
    return round(255 * red), round(255 * green), round(255 * blue)


def draw_boxes(rgb: RGBArray, boxes: Sequence[LabelledBox], *, caption: str = "") -> RGBArray:
    """A copy of (height, width, 3) RGB pixels with boxes, labels and a caption on it.

    The surest box is drawn last. The surest label stands at its box; others that would cover one
    stand above it, below where there is no room above, and beside where a column is full.
    """
    boxes = sorted(boxes, key=lambda box: 1.0 if box.confidence is None else box.confidence)
    image = Image.fromarray(np.ascontiguousarray(rgb))
    canvas = ImageDraw.Draw(image)
    width, height = image.size
    scale = max(0.4, min(height, width) / 1000)
    thickness = max(2, round(scale * 3))
    for box in boxes:
        x1, y1, x2, y2 = (round(value) for value in box.xyxy)
        corners = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        canvas.rectangle(corners, outline=label_colour(box.colour_of or box.label), width=thickness)
    # Labels after all boxes, so that no line crosses a text.
    plates: list[_Plate] = []
    for box in reversed(boxes):
        text = box.label if box.confidence is None else f"{box.label} {box.confidence:.2f}"
        left, bottom = round(box.xyxy[0]), round(box.xyxy[1])
        label = box.colour_of or box.label
        _draw_text(canvas, image.size, text, left, bottom, scale, label, plates)
    if caption:
        _draw_text(canvas, image.size, caption, 0, height, scale, None, [])
    return np.asarray(image)


def _draw_text(
    canvas: ImageDraw.ImageDraw, size: tuple[int, int], text: str, left: int, bottom: int,
    scale: float, label: str | None, plates: list[_Plate],
) -> None:  # fmt: skip
    """Text on a filled plate whose lower left corner is (left, bottom), kept inside the picture.

    It covers none of `plates`, and is left out where there is no room near its box.
    """
    font = _font(max(10, round(_TEXT_PX * scale)))
    ascent, descent = font.getmetrics()
    width = round(canvas.textlength(text, font=font)) + 2 * _MARGIN_PX
    height = ascent + descent
    left = min(max(left, 0), max(0, size[0] - width))
    bottom = min(max(bottom, height), size[1])
    plate = _free_place((left, bottom - height, left + width, bottom), size, plates)
    if plate is None:
        return
    plates.append(plate)
    left, top, right, bottom = plate
    background = _BLACK if label is None else label_colour(label)
    bright = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2] > 140
    canvas.rectangle((left, top, right - 1, bottom - 1), fill=background)
    colour = _BLACK if bright else _WHITE
    canvas.text((left + _MARGIN_PX, top), text, fill=colour, font=font)


def _free_place(wanted: _Plate, size: tuple[int, int], plates: list[_Plate]) -> _Plate | None:
    """The place wanted, or the nearest above it, else below it, else the same beside it."""
    left, top, right, bottom = wanted
    width, height = right - left, bottom - top
    beside = [x for x in (left + width, left - width) if 0 <= x <= size[0] - width]
    for x in (left, *beside):
        column = [plate for plate in plates if plate[0] < x + width and x < plate[2]]
        above = sorted({plate[1] - height for plate in column if plate[1] <= bottom}, reverse=True)
        below = sorted({plate[3] for plate in column if plate[3] > top})
        near = [y for y in (*above, *below) if abs(y - top) <= _FARTHEST * height]
        for y in (top, *near):
            place = (x, y, x + width, y + height)
            is_inside = y == top or 0 <= y <= size[1] - height
            if is_inside and not any(_overlap(place, plate) for plate in column):
                return place
    return None


def _overlap(one: _Plate, other: _Plate) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


@lru_cache(maxsize=8)
def _font(size_px: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size_px)
    # Every build of Pillow from a wheel has FreeType; the other kind of font has one size only.
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font
