"""Which parts of a frame are looked at again, and on what pictures: plain geometry.

A *look* is one picture for the vision stages, made of one or more crops of the original; boxes go
from the frame to the picture and back. Knows no model and no question.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from agent.detections import FloatArray, IntArray
from agent.frame import Frame, RGBArray, frame_from_rgb
from agent.zoom_policy import Arrangement

TOKEN_PX = 28
"""Side of the square that one vision token stands for (patches of 14, merged 2 x 2)."""
_PAPER = 128
_JPEG_QUALITY = 95

Size = tuple[int, int]
"""(width, height) in pixels."""
Window = tuple[int, int, int, int]
"""(x1, y1, x2, y2) in whole pixels."""


@dataclass(frozen=True)
class Crop:
    """One inspected part of a frame."""

    box: Window
    """What is seen of the frame."""
    place: Window
    """Where it stands on the look's picture."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the picture per pixel of the frame, along x and y."""
        x1, y1, x2, y2 = self.box
        left, top, right, bottom = self.place
        return (right - left) / (x2 - x1), (bottom - top) / (y2 - y1)

    def to_picture(self, xyxy: FloatArray) -> FloatArray:
        """(n, 4) frame pixels to the picture's, cut to the crop's place."""
        scale = np.array(self.scale * 2, dtype=np.float32)
        moved = (xyxy - np.array(self.box[:2] * 2)) * scale + np.array(self.place[:2] * 2)
        low, high = np.array(self.place[:2] * 2), np.array(self.place[2:] * 2)
        return np.asarray(np.clip(moved, low, high), dtype=np.float32)

    def to_frame(self, xyxy: FloatArray) -> FloatArray:
        """(n, 4) pixels of the picture to the frame's, cut to the crop."""
        scale = np.array(self.scale * 2, dtype=np.float32)
        moved = (xyxy - np.array(self.place[:2] * 2)) / scale + np.array(self.box[:2] * 2)
        low, high = np.array(self.box[:2] * 2), np.array(self.box[2:] * 2)
        return np.asarray(np.clip(moved, low, high), dtype=np.float32)


@dataclass(frozen=True)
class Look:
    """One picture to be shown to the vision stages."""

    size: Size
    crops: tuple[Crop, ...]
    wanted: tuple[int, ...] = ()
    """Numbers of the boxes this look is for; on a sheet the k-th has the k-th crop."""

    @property
    def num_tokens(self) -> int:
        """Vision tokens of the picture."""
        return vision_tokens(*self.size)

    def owners(self, xyxy: FloatArray) -> IntArray:
        """(n,) the crop in which, or nearest to which, each box of the picture has its centre."""
        beyond = _beyond(xyxy, [crop.place for crop in self.crops])
        return np.asarray(beyond.argmin(axis=1), dtype=np.int64)

    def to_frame(self, xyxy: FloatArray) -> FloatArray:
        """(n, 4) pixels of the picture to the frame's; every box lies inside its crop."""
        rows = [
            self.crops[owner].to_frame(box[None])[0]
            for owner, box in zip(self.owners(xyxy).tolist(), xyxy, strict=True)
        ]
        return np.array(rows, dtype=np.float32).reshape(-1, 4)

    def given(self, boxes: FloatArray) -> FloatArray:
        """(len(wanted), 4): the wanted ones of the frame's `boxes`, in pixels of the picture."""
        rows = [
            self.crops[min(row, len(self.crops) - 1)].to_picture(boxes[number][None])[0]
            for row, number in enumerate(self.wanted)
        ]
        return np.array(rows, dtype=np.float32).reshape(-1, 4)


@dataclass(frozen=True)
class CropRules:
    """How crops are cut."""

    margin: float = 0.5
    """Grown by this share of the box's longer side on every side."""
    least_px: int = 56
    """No crop on a contact sheet is narrower or lower, in pixels of the frame."""
    picture_px: int = 224
    """The same for a crop that is a picture of its own: the towers read a thing in its
    surroundings, and know no pictures that are much smaller."""
    cell_px: int = 84
    """Side of one crop on a contact sheet, in pixels of the sheet."""
    most_enlarged: float = 1.0
    """A picture of its own is enlarged this often at most: pixels that were never there tell
    nothing, and cost as much as others."""
    max_crops: int = 64


def vision_tokens(width: int, height: int) -> int:
    """Tokens the primary encoder makes of a picture within its limits."""
    return max(1, round(width / TOKEN_PX)) * max(1, round(height / TOKEN_PX))


def plan_looks(
    boxes: FloatArray,
    arrangement: Arrangement,
    *,
    frame: Size,
    longest_px: int,
    budget_tokens: int,
    rules: CropRules,
) -> tuple[Look, ...]:
    """Looks at as many of the boxes as the budget holds, the first ones first.

    Args:
        boxes: (n, 4) pixels of the frame, the most wanted first.
        arrangement: how they come onto pictures.
        frame: the frame's size.
        longest_px: longest side that the model sees unreduced.
        budget_tokens: vision tokens of all looks together.
        rules: how crops are cut.
    """
    limit = min(len(boxes), rules.max_crops)
    if not limit:
        return ()
    windows = [
        window_around(box, frame, rules, square=arrangement is Arrangement.SHEET)
        for box in boxes[:limit].tolist()
    ]
    match arrangement:
        case Arrangement.UNION:
            group = (_hull(windows), tuple(range(limit)))
            return _one_each([group], longest_px, budget_tokens, rules)
        case Arrangement.SEVERAL:
            return _one_each(_joined(windows), longest_px, budget_tokens, rules)
        case Arrangement.SHEET:
            return _sheets(windows, longest_px, budget_tokens, rules)


def window_around(
    box: Sequence[float], frame: Size, rules: CropRules, *, square: bool = False
) -> Window:
    """The crop of one box: grown by the margin, moved rather than cut at the frame's edges."""
    x1, y1, x2, y2 = box
    grown = 2.0 * rules.margin * max(x2 - x1, y2 - y1)
    least = rules.least_px if square else rules.picture_px
    sides = [max(least, x2 - x1 + grown), max(least, y2 - y1 + grown)]
    if square:
        sides = [max(sides)] * 2
    spans = []
    for centre, side, room in zip(((x1 + x2) / 2, (y1 + y2) / 2), sides, frame, strict=True):
        length = min(math.ceil(side), room)
        start = min(max(0, round(centre - length / 2)), room - length)
        spans.append((start, start + length))
    (left, right), (top, bottom) = spans
    return left, top, right, bottom


def tiles(frame: Size, side_px: int, max_tiles: int, *, overlap: float = 0.1) -> list[Window]:
    """Windows that cover the frame, about `side_px` long, larger where they would be too many."""
    width, height = frame
    while True:
        columns, rows = (max(1, math.ceil(side / side_px)) for side in frame)
        if columns * rows <= max_tiles:
            break
        side_px = math.ceil(side_px * 1.1)
    found = []
    for row in range(rows):
        for column in range(columns):
            x1, x2 = _span(column, columns, width, overlap)
            y1, y2 = _span(row, rows, height, overlap)
            found.append((x1, y1, x2, y2))
    return found


def whole(window: Window) -> Look:
    """A look at one window, pixel for pixel."""
    x1, y1, x2, y2 = window
    size = x2 - x1, y2 - y1
    return Look(size, (Crop(window, (0, 0, *size)),))


def cut(rgb: RGBArray, look: Look, frame: Frame) -> Frame:
    """The look's picture; its digest, and so its cache key, is that of its own content."""
    width, height = look.size
    paper = np.full((height, width, 3), _PAPER, dtype=np.uint8)
    for crop in look.crops:
        x1, y1, x2, y2 = crop.box
        left, top, right, bottom = crop.place
        wanted = right - left, bottom - top
        part = rgb[y1:y2, x1:x2]
        if wanted != (x2 - x1, y2 - y1):
            smaller = wanted[0] < x2 - x1
            how = cv2.INTER_AREA if smaller else cv2.INTER_CUBIC
            part = cv2.resize(part, wanted, interpolation=how)
        paper[top:bottom, left:right] = part
    return frame_from_rgb(
        paper,
        index=frame.index,
        capture_time_ns=frame.capture_time_ns,
        jpeg_quality=_JPEG_QUALITY,
    )


def _span(number: int, parts: int, length: int, overlap: float) -> tuple[int, int]:
    step = length / parts
    more = overlap * step / 2 if parts > 1 else 0.0
    return max(0, round(number * step - more)), min(length, round((number + 1) * step + more))


def _hull(windows: Iterable[Window]) -> Window:
    x1, y1, x2, y2 = zip(*windows, strict=True)
    return min(x1), min(y1), max(x2), max(y2)


def _overlap(a: Window, b: Window) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _joined(windows: Sequence[Window]) -> list[tuple[Window, tuple[int, ...]]]:
    """Windows with the numbers of their boxes; those that overlap have become one."""
    groups: list[tuple[Window, tuple[int, ...]]] = []
    for number, window in enumerate(windows):
        numbers: tuple[int, ...] = (number,)
        place = len(groups)
        while (k := next((k for k, g in enumerate(groups) if _overlap(g[0], window)), -1)) >= 0:
            other, earlier = groups.pop(k)
            window, numbers, place = _hull((window, other)), earlier + numbers, min(place, k)
        groups.insert(place, (window, tuple(sorted(numbers))))
    return groups


def _one_each(
    groups: Sequence[tuple[Window, tuple[int, ...]]],
    longest_px: int,
    budget_tokens: int,
    rules: CropRules,
) -> tuple[Look, ...]:
    """A picture for each window, as large as budget and model allow."""
    looks, left = [], budget_tokens
    for number, (window, numbers) in enumerate(groups):
        width, height = window[2] - window[0], window[3] - window[1]
        fair = max(1, left // (len(groups) - number))
        scale = min(
            rules.most_enlarged,
            longest_px / max(width, height),
            TOKEN_PX * math.sqrt(fair / (width * height)),
        )
        size = max(1, int(width * scale)), max(1, int(height * scale))
        cost = vision_tokens(*size)
        if cost > left:
            continue
        left -= cost
        looks.append(Look(size, (Crop(window, (0, 0, *size)),), numbers))
    return tuple(looks)


def _sheets(
    windows: Sequence[Window], longest_px: int, budget_tokens: int, rules: CropRules
) -> tuple[Look, ...]:
    cell = min(rules.cell_px, longest_px)
    across = max(1, longest_px // cell)
    looks, left, start = [], budget_tokens, 0
    while start < len(windows):
        num = min(across * across, len(windows) - start)
        while num and vision_tokens(*_sheet_size(num, cell)) > left:
            num -= 1
        if not num:
            break
        looks.append(_sheet(windows[start : start + num], start, cell))
        left -= looks[-1].num_tokens
        start += num
    return tuple(looks)


def _sheet_size(num: int, cell: int) -> Size:
    columns = math.ceil(math.sqrt(num))
    return columns * cell, math.ceil(num / columns) * cell


def _sheet(windows: Sequence[Window], first: int, cell: int) -> Look:
    columns = math.ceil(math.sqrt(len(windows)))
    crops = []
    for number, window in enumerate(windows):
        left, top = number % columns * cell, number // columns * cell
        # A window that the frame's edge kept from being square keeps its proportions.
        width, height = window[2] - window[0], window[3] - window[1]
        fit = cell / max(width, height)
        right, bottom = left + max(1, round(width * fit)), top + max(1, round(height * fit))
        crops.append(Crop(window, (left, top, right, bottom)))
    numbers = tuple(range(first, first + len(windows)))
    return Look(_sheet_size(len(windows), cell), tuple(crops), numbers)


def inside(xyxy: FloatArray, windows: Sequence[Window]) -> list[bool]:
    """(n,) whether each box has its centre inside some window."""
    if not windows:
        return [False] * len(xyxy)
    return [bool(value) for value in _beyond(xyxy, windows).min(axis=1) <= 0.0]


def _beyond(xyxy: FloatArray, windows: Sequence[Window]) -> FloatArray:
    """(n, windows) how far each box's centre lies outside each window; negative inside."""
    centres = (xyxy[:, None, :2] + xyxy[:, None, 2:]) / 2
    areas = np.array(windows, dtype=np.float32)[None]
    outside = np.maximum(areas[..., :2] - centres, centres - areas[..., 2:]).max(axis=2)
    return np.asarray(outside, dtype=np.float32)
