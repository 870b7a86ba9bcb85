"""The published two-turn protocol of ERGO (arXiv 2509.21991): words, sizes and what replies mean.

First turn: the reduced picture and the question; the model thinks and prints one box. Second turn:
the crop of that box from the original; the model answers. The strings below are facts of the
released model's interface (nota-ai/ERGO-7B, a stock Qwen2.5-VL): changing a character changes its
answers. Knows no model and no tensors.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from enum import Enum

from agent.crops import TOKEN_PX, Crop, Size, Window

SYSTEM_PROMPT = (
    "You are a helpful assistant. Given an image and one question. First, identify the "
    "coordinates of the key image area relevant to solving the problem. Append the coordinates in "
    "[x1, y1, x2, y2] format at the end of your response and stop. This will trigger cropping of "
    "the corresponding area in the original image and enlarge it for improved clarity. Once the "
    "enlarged image is available, provide the final answer."
)
_WHERE = (
    "{question} First, consider how to zoom in on the image to include only the region containing "
    "all the information necessary to answer the question. Output the thinking process in <think> "
    "</think> tags and then output the region's bounding box coordinates in the following format "
    "<zoom>[x1, y1, x2, y2]</zoom> tags."
)
_WHAT = (
    "{question}\nCarefully analyze both the original image and the enlarged sub-image to solve the "
    # The first tag is opened twice in the prompt that the published scores were measured with.
    "question step by step. Present your reasoning clearly the following format strictly <think> "
    "... <think>, and provide the final answer enclosed within <answer> ... </answer>"
)

LEAST_TOKENS = 4
DEFAULT_TOKENS = 1280
"""Vision tokens of each of the two pictures, about: rounding to whole tokens may add a few."""
MOST_TOKENS = 16_384
"""Of a picture that is shown as it is: `max_pixels` of the model's own preprocessor."""
NEW_TOKENS = 1024
"""Longest reply of a turn when the published scores were measured."""
_LEAST_SIDE_PX = TOKEN_PX
"""A thinner crop is widened to this, in pixels of the original."""

_NUMBER = r"-?\d+(?:\.\d+)?"
_ZOOM = re.compile(r"<zoom>(.*?)(?:</zoom>|$)", re.DOTALL)
_BOX = re.compile(rf"\[\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*,\s*({_NUMBER})\s*\]")
_THINK = re.compile(r"<think>(.*?)(?:</?think>|$)", re.DOTALL)
_ANSWER = re.compile(r"<answer>(.*?)(?:</answer>|$)", re.DOTALL)
_PUBLISHED_ZOOM = re.compile(r"<zoom>(.*?)</zoom>", re.DOTALL)
_PUBLISHED_BOX = re.compile(r"\[(\d+),\s*(\d+),\s*(\d+),\s*(\d+)\]")
_CHOICES = re.compile(r"\n\(A\)|\nA:| ?\(A\)")
"""Where a question's choices begin, in the forms of the three benchmarks it was run on."""
_TAG = re.compile(r"</?(?:think|answer|zoom)>")


class BoxStatus(Enum):
    """What the first reply says about where to look."""

    OK = "ok"
    MISSING = "missing"
    """No `<zoom>`, or none with four numbers: the whole picture is shown again."""
    MENDED = "mended"
    """Corners in the wrong order are exchanged, what lies outside is cut off, a thin box is
    widened."""
    OUTSIDE = "outside"
    """Nothing of the box lies on the picture: the whole picture is shown again."""


@dataclass(frozen=True)
class Resized:
    """A picture and the size the model sees it at."""

    original: Size
    shown: Size

    @classmethod
    def within(
        cls, width: int, height: int, max_tokens: int = DEFAULT_TOKENS, *, at_most: bool = False
    ) -> Resized:
        """The size under a budget of vision tokens; see `smart_size`."""
        size = smart_size(width, height, max_tokens=max_tokens, at_most=at_most)
        return cls((width, height), size)

    @property
    def whole(self) -> Crop:
        """The picture seen as a crop of itself."""
        return Crop((0, 0, *self.original), (0, 0, *self.shown))


def smart_size(
    width: int,
    height: int,
    *,
    max_tokens: int = DEFAULT_TOKENS,
    least_tokens: int = LEAST_TOKENS,
    at_most: bool = False,
) -> Size:
    """The released code's size for a picture: sides in whole tokens, proportions kept.

    Sides are rounded half to even; beyond the most they are rounded again after shrinking by
    sqrt(area / most), which may exceed it by a row or a column, below the least rounded up after
    growing. Unlike there, no side vanishes.

    Args:
        width, height: of the picture, in pixels.
        max_tokens, least_tokens: of the size.
        at_most: cut a row or a column off where rounding exceeds `max_tokens`: for budgets that
            are somebody's promise.
    """
    most, least = max_tokens * TOKEN_PX**2, least_tokens * TOKEN_PX**2
    columns, rows = (max(1, round(side / TOKEN_PX)) for side in (width, height))
    if columns * rows > max_tokens:
        shrink = math.sqrt(width * height / most) * TOKEN_PX
        columns, rows = max(1, round(width / shrink)), max(1, round(height / shrink))
    elif columns * rows < least_tokens:
        grow = math.sqrt(least / (width * height)) / TOKEN_PX
        columns, rows = math.ceil(width * grow), math.ceil(height * grow)
    while at_most and columns * rows > max_tokens:
        if columns >= rows:
            columns -= 1
        else:
            rows -= 1
    return columns * TOKEN_PX, rows * TOKEN_PX


def first_question(question: str) -> str:
    """The user's words of the first turn; choices are kept for the second."""
    choices = _CHOICES.search(question)
    asked = question if choices is None else question[: choices.start()]
    # Not `format`: braces in the question are the user's own.
    return _WHERE.replace("{question}", asked)


def second_question(question: str) -> str:
    """The user's words of the second turn."""
    return _WHAT.replace("{question}", question)


def parse_box(reply: str, picture: Resized) -> tuple[Window, BoxStatus]:
    """The part of the original that the first reply asks for.

    Of several boxes, or several `<zoom>`, the last one holds: it was written after all others had
    been considered. (The released code looks at the first `<zoom>` and gives up on two boxes.)

    Args:
        reply: what the model wrote.
        picture: the picture; coordinates are those of its shown size.
    """
    everything: Window = (0, 0, *picture.original)
    boxes = [box for found in _ZOOM.findall(reply) for box in _BOX.findall(found)]
    if not boxes:
        return everything, BoxStatus.MISSING
    x1, y1, x2, y2 = (float(number) for number in boxes[-1])
    wanted = min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2)
    status = BoxStatus.OK if wanted == (x1, y1, x2, y2) else BoxStatus.MENDED
    spans = []
    for low, high, original, shown in zip(
        wanted[:2], wanted[2:], picture.original, picture.shown, strict=True
    ):
        if low >= shown or high < 0:
            return everything, BoxStatus.OUTSIDE
        start, end = _mapped(low, high, original / shown, original)
        if low < 0 or high > shown or end - start < _LEAST_SIDE_PX <= original:
            status = BoxStatus.MENDED
        spans.append(_widened(start, end, original))
    (left, right), (top, bottom) = spans
    return (left, top, right, bottom), status


def published_box(reply: str, picture: Resized) -> tuple[Window, BoxStatus]:
    """As `parse_box`, by the released code's rules.

    The first closed `<zoom>` holds, and only whole numbers; of two boxes in it none does, and thin
    ones are not widened. A box without area, or off the picture, on which the released code
    fails, is mended as in `parse_box`.
    """
    everything: Window = (0, 0, *picture.original)
    zoom = _PUBLISHED_ZOOM.search(reply)
    boxes = [] if zoom is None else _PUBLISHED_BOX.findall(zoom.group(1))
    if len(boxes) != 1:
        return everything, BoxStatus.MISSING
    x1, y1, x2, y2 = (int(number) for number in boxes[0])
    (width, height), (shown_width, shown_height) = picture.original, picture.shown
    left, right = _mapped(x1, x2, width / shown_width, width)
    top, bottom = _mapped(y1, y2, height / shown_height, height)
    if min(left, width) >= right or min(top, height) >= bottom:
        return parse_box(f"<zoom>[{x1}, {y1}, {x2}, {y2}]</zoom>", picture)
    return (left, top, right, bottom), BoxStatus.OK


def parse_thought(reply: str) -> str:
    """What the model thought; an unclosed tag runs to the end."""
    found = _THINK.search(reply)
    return found.group(1).strip() if found else ""


def parse_reply(reply: str) -> str:
    """What stands in the last `<answer>`; without one, everything but thoughts and tags."""
    answers = _ANSWER.findall(reply)
    if answers:
        return str(answers[-1]).strip()
    return _TAG.sub("", _THINK.sub("", reply)).strip()


def _mapped(low: float, high: float, scale: float, original: int) -> tuple[int, int]:
    """Pixels shown to pixels of the original, cut off at its edges and rounded towards zero."""
    return int(max(low * scale, 0.0)), int(min(high * scale, original))


def _widened(start: int, end: int, original: int) -> tuple[int, int]:
    """The span, at least one token's side wide, moved rather than cut at the edges."""
    length = min(max(end - start, _LEAST_SIDE_PX), original)
    start = min(max(0, start - (length - (end - start)) // 2), original - length)
    return start, start + length
