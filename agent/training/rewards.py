"""Rewards of task-driven contextual exploration (ERGO, arXiv 2509.21991), as pure functions.

Published (section 3 of the paper): a region is verified by answering from the crop alone, so that
nothing outside it can help; a step function keeps crops from being the whole picture; both are
weighted 1 and 0.5 and added to accuracy and format, which count 1 each. The paper does not give the
form of its match, nor a reward for how a crop fits its target (its data have no target boxes);
`fit` is ours, for scenes whose targets are known, and replaces the step on request.

Every reward lies in 0..1. Boxes are xyxy in pixels of the original. Knows no model: whoever calls
`region_verification` has asked it about the crop.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

Box = Sequence[float]

MOST_AREA = 0.6
"""gamma: most ground-truth regions of the paper's data cover less of their picture than this."""
_CONTEXT = 2.0
"""A crop this many times as long and as wide as its target still fits it perfectly."""
_NUMBER_WORDS = {
    "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6",
    "seven": "7", "eight": "8", "nine": "9", "ten": "10", "eleven": "11", "twelve": "12",
}  # fmt: skip
_CHOICE = re.compile(r"^\(?([a-z])\)?(?:[.:)]|$)")
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"[^\W_]+")
_FIRST_TURN = re.compile(
    r"\s*<think>(?:(?!</?(?:think|zoom|answer)>).)*</think>\s*"
    r"<zoom>\s*\[\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*\]\s*</zoom>\s*",
    re.DOTALL,
)
_SECOND_TURN = re.compile(
    r"\s*<think>(?:(?!</?(?:think|zoom|answer)>).)*</think>\s*"
    r"<answer>(?:(?!</?(?:think|zoom|answer)>).)*\S(?:(?!</?(?:think|zoom|answer)>).)*</answer>\s*",
    re.DOTALL,
)


@dataclass(frozen=True)
class RewardWeights:
    """How rewards add up (the paper's weights)."""

    region: float = 1.0
    """alpha."""
    box: float = 0.5
    """beta."""
    accuracy: float = 1.0
    format: float = 1.0

    @property
    def most(self) -> float:
        """The largest total."""
        return self.region + self.box + self.accuracy + self.format


@dataclass(frozen=True)
class Rewards:
    """The parts of one rollout's reward, each in 0..1."""

    region: float
    box: float
    accuracy: float
    format: float

    def total(self, weights: RewardWeights | None = None) -> float:
        """alpha r_region + beta r_box + r_acc + r_format."""
        w = weights or RewardWeights()
        return (
            w.region * self.region
            + w.box * self.box
            + w.accuracy * self.accuracy
            + w.format * self.format
        )


def matches(answer: str, truth: str) -> bool:
    """Whether two answers say the same: case, punctuation, articles and number words aside.

    A truth that is one letter is a choice: "B", "(b)", "B. red" all match it. The paper leaves its
    match to a larger model; this one needs none.
    """
    letter = truth.strip().casefold()
    if len(letter) == 1 and letter.isalpha():
        chosen = _CHOICE.match(answer.strip().casefold())
        return chosen is not None and chosen.group(1) == letter
    said = _plain(answer)
    return bool(said) and said == _plain(truth)


def accuracy(answer: str, truth: str) -> float:
    """r_acc = 1 if the final answer matches the truth, else 0."""
    return float(matches(answer, truth))


def region_verification(answer_from_crop: str, truth: str) -> float:
    """r_region = 1 if the crop alone, with the question, is enough for the right answer, else 0.

    The verifier must not have seen the whole picture: it would answer from there, and any crop
    would do. A description ends with its noun: "a brown cat" verifies "cat".
    """
    said, meant = _plain(answer_from_crop), _plain(truth)
    is_described = len(truth.strip()) > 1 and meant != () and said[-len(meant) :] == meant
    return float(is_described or matches(answer_from_crop, truth))


def box_step(crop: Box, image: tuple[float, float], *, most_area: float = MOST_AREA) -> float:
    """r_box = 1 if 0 < area(crop) / area(image) <= gamma, else 0.

    Without it the whole picture, which contains every answer, is always the best crop. A crop
    without area shows nothing and gets nothing (the paper's would get 1).

    Args:
        crop: of the original; what lies outside it does not count.
        image: (width, height) of the original.
        most_area: gamma.
    """
    share = _area(_clipped(crop, image)) / (image[0] * image[1])
    return float(0.0 < share <= most_area)


def fit(crop: Box, target: Box, image: tuple[float, float]) -> float:
    """How well a crop fits a known target: coverage times tightness (ours).

    Coverage is the share of the target inside the crop. Tightness is 1 up to twice the target's
    length and width (context helps), then falls with the logarithm of the crop's area to 0 at the
    whole image: log(image / crop) / log(image / (4 target)). The logarithm makes every halving of
    the area worth the same, where a ratio of areas would tell a quarter of the image from the
    whole of it hardly at all when the target covers a ten-thousandth. A target or crop without
    area gets 0.
    """
    inside = _clipped(crop, image)
    wanted = _clipped(target, image)
    area, least, whole = _area(inside), _area(wanted), image[0] * image[1]
    if area <= 0.0 or least <= 0.0:
        return 0.0
    common = (
        max(inside[0], wanted[0]),
        max(inside[1], wanted[1]),
        min(inside[2], wanted[2]),
        min(inside[3], wanted[3]),
    )
    coverage = min(1.0, _area(common) / least)
    roomy = min(_CONTEXT * _CONTEXT * least, whole)
    if area <= roomy:
        return coverage
    return coverage * max(0.0, math.log(whole / area) / math.log(whole / roomy))


def box_adjustment(crop: Box, image: tuple[float, float], *, target: Box | None = None) -> float:
    """The published step where no target is known, else `fit`."""
    return box_step(crop, image) if target is None else fit(crop, target, image)


def zoom_format(first_reply: str, second_reply: str) -> float:
    """r_format of the published protocol: half for each turn that is well formed.

    The first is one `<think>` and one `<zoom>` with four numbers, the second one `<think>` and one
    `<answer>` that is not empty, nothing besides. (The paper rewards the tags; that each turn
    earns its half is ours, so that one is learned before the other.)
    """
    turns = (_FIRST_TURN.fullmatch(first_reply), _SECOND_TURN.fullmatch(second_reply))
    return sum(turn is not None for turn in turns) / 2


def region_format(text: str, *, num_regions: int) -> float:
    """r_format of VLM-FO1's grammar: whether an answer in region tokens can be read whole.

    1 if every tag is paired as `<ground>label</ground><objects>...</objects>`, a list holds nothing
    but region tokens of boxes that exist, and none twice; else 0. Plain words without any tag are
    well formed too.
    """
    left = re.sub(
        r"<ground>[^<>]+</ground><objects>((?:<region\d+>)*)</objects>",
        lambda found: "" if _sound(found.group(1), num_regions) else found.group(),
        text,
    )
    return float(not re.search(r"</?(?:ground|objects)>|<region\d+>", left))


def _sound(regions: str, num_regions: int) -> bool:
    numbers = [int(number) for number in re.findall(r"\d+", regions)]
    return len(set(numbers)) == len(numbers) and all(n < num_regions for n in numbers)


def _plain(text: str) -> tuple[str, ...]:
    words = _WORD.findall(text.casefold())
    return tuple(_NUMBER_WORDS.get(word, word) for word in words if word not in _ARTICLES)


def _clipped(box: Box, image: tuple[float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    width, height = image
    return max(0.0, x1), max(0.0, y1), min(width, x2), min(height, y2)


def _area(box: Box) -> float:
    """Square pixels; a reversed box has none."""
    x1, y1, x2, y2 = box
    return max(0.0, x2 - x1) * max(0.0, y2 - y1)
