"""Descriptions in place of names: "red car", "second dog from the left", "leftmost person in blue".

A description is a noun, which the model is asked for, and what narrows its answer: a red car is a
car as far as red is its colour; the leftmost car is one of the cars that were found, the cars on
the left are those in the left half of the frame. Places and sizes are compared and not seen, as
ReCLIP's resolver does it beside CLIP (arXiv 2204.05991): a small language model does not learn to
compare (docs/decisions/embedded_model.md). English only; knows no model and no tensor.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agent.plain_nouns import names_several, plain_noun
from agent.vocabulary import COLOURS, vocabulary

Array = NDArray[np.float32]

ANYTHING = frozenset({"something", "anything", "thing", "object"})
"""Nouns for whatever is there."""
_MOST_NARROWINGS = 4


@dataclass(frozen=True)
class Rank:
    """One of several things alike, by their order."""

    form: str
    """In words; `{}` is the noun."""
    order: str
    """What they are ordered by, upwards: a key of `_ORDERS`."""
    place: int | None
    """0 is the lowest value, -1 the highest; None: the one in the middle."""

    def value(self, boxes: Array) -> Array:
        """(n,) what (n, 4) boxes are ordered by, in the unit of the boxes."""
        return _ORDERS[self.order](boxes)

    def chosen(self, boxes: Array) -> int | None:
        """Which of (n, 4) boxes of things alike is meant; None: there is none."""
        count, place = len(boxes), self.place
        if place is None:
            place = count // 2 if count % 2 else count
        if not -count <= place < count:
            return None
        return int(np.argsort(self.value(boxes), kind="stable")[place])


@dataclass(frozen=True)
class Part:
    """The part of a frame where several things are meant to lie: "people on the left"."""

    order: str
    """Across or down, a key of `_ORDERS`."""
    start: float
    end: float
    """Shares of the frame's width or height."""

    def centres(self, boxes: Array, size: tuple[int, int]) -> Array:
        """(n,) those of (n, 4) boxes, as shares of a frame's width or height."""
        width, height = size
        along = width if self.order == "across" else height
        return np.asarray(_ORDERS[self.order](boxes) / along, dtype=np.float32)

    def holds(self, boxes: Array, size: tuple[int, int]) -> NDArray[np.bool_]:
        """(n,) whether the centres of (n, 4) boxes lie there, in a frame of (width, height)."""
        centres = self.centres(boxes, size)
        return np.asarray((centres >= self.start) & (centres < self.end))


@dataclass(frozen=True)
class Description:
    """A label as it is understood."""

    noun: str
    """To ask the model for."""
    colours: tuple[int, ...] = ()
    """Numbers in `agent.vocabulary.COLOURS`; what is meant has all of them."""
    rank: Rank | None = None
    """Of what has the colours, the one that is meant."""
    part: Part | None = None
    """Of what has the colours, where those lie that are meant."""

    @property
    def is_placed(self) -> bool:
        """Whether the answer depends on the frame as a whole."""
        return self.rank is not None or self.part is not None


@lru_cache(maxsize=1024)
def read_description(label: str) -> Description:
    """The description that a label is; its noun alone, a plain one, if it is none.

    A noun of the vocabulary is not taken apart ("red fox"). A label is left to the model as it is
    where it has a colour and a noun that is none of its classes ("green bean"), and where it has
    two places ("largest dog on the left").
    """
    whole = Description(plain_noun(label))
    words = [_SPELLINGS.get(word, word) for word in whole.noun.split(" ")]
    found = replace(whole, noun=" ".join(words))
    for _ in range(_MOST_NARROWINGS):
        if _is_noun(found):
            break
        found = _taken_apart(found)
    if not _is_noun(found):
        return whole
    if found.rank and found.rank.form in PARTS and names_several(label):
        return replace(found, rank=None, part=PARTS[found.rank.form])
    return found


def colour_chances(shares: Array, colour: int) -> Array:
    """(regions,) how likely a colour is said of each: half where another has as large a share, the
    odds being the square of the shares' ratio.

    Args:
        shares: (regions, 11) how much of each shows each of `agent.vocabulary.COLOURS`, 0..1.
        colour: number in `agent.vocabulary.COLOURS`.
    """
    others = np.delete(shares, colour, axis=1).max(-1)
    odds: Array = (shares[:, colour] / np.maximum(others, 1e-6)) ** 2
    return odds / (odds + 1)


def _taken_apart(found: Description) -> Description:
    """Without the outermost of what is said of the noun."""
    for pattern, rank in _RANK_PATTERNS if found.rank is None else ():
        if said := pattern.fullmatch(found.noun):
            return replace(found, noun=plain_noun(said[1]), rank=rank)
    for pattern in _COLOUR_PATTERNS:
        if said := pattern.fullmatch(found.noun):
            colour = _COLOUR_NUMBERS[said["colour"]]
            noun = plain_noun(said["noun"])
            return replace(found, noun=noun, colours=(colour, *found.colours))
    return found


def _is_noun(found: Description) -> bool:
    noun, words = found.noun, vocabulary()
    return noun in ANYTHING or noun in words.classes or (noun in words.kinds and not found.colours)


def _across(boxes: Array) -> Array:
    return np.asarray((boxes[:, 0] + boxes[:, 2]) / 2, dtype=np.float32)


def _down(boxes: Array) -> Array:
    return np.asarray((boxes[:, 1] + boxes[:, 3]) / 2, dtype=np.float32)


def _size(boxes: Array) -> Array:
    return np.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))


_ORDERS: dict[str, Callable[[Array], Array]] = {"across": _across, "down": _down, "size": _size}
RANKS = (
    *(Rank(form, "across", 0) for form in ("leftmost {}", "left {}", "{} on the left")),
    *(Rank(form, "across", -1) for form in ("rightmost {}", "right {}", "{} on the right")),
    *(Rank(form, "across", None) for form in ("middle {}", "{} in the middle")),
    *(Rank(form, "down", 0) for form in ("topmost {}", "{} at the top")),
    *(Rank(form, "down", -1) for form in ("lowest {}", "{} at the bottom")),
    Rank("smallest {}", "size", 0),
    *(Rank(form, "size", -1) for form in ("largest {}", "biggest {}")),
    *(
        Rank(f"{ordinal} {{}} from the {side}", "across", place if side == "left" else -1 - place)
        for place, ordinal in enumerate(("first", "second", "third", "fourth"))
        for side in ("left", "right")
    ),
)
"""Everything that is said of places and sizes."""
_LEFT, _RIGHT = Part("across", 0.0, 0.5), Part("across", 0.5, 1.0)
_MIDDLE = Part("across", 1 / 3, 2 / 3)
PARTS = {
    "left {}": _LEFT, "{} on the left": _LEFT,
    "middle {}": _MIDDLE, "{} in the middle": _MIDDLE,
    "right {}": _RIGHT, "{} on the right": _RIGHT,
    "{} at the top": Part("down", 0.0, 0.5), "{} at the bottom": Part("down", 0.5, 1.0),
}  # fmt: skip
"""What these forms mean with a noun in the plural."""
_SPELLINGS = {
    "center": "middle", "centre": "middle", "left-most": "leftmost", "right-most": "rightmost",
    "top-most": "topmost", "bottom-most": "lowest", "bottommost": "lowest",
    "1st": "first", "2nd": "second", "3rd": "third", "4th": "fourth",
}  # fmt: skip
"""Words of places, as the forms have them."""
_RANK_PATTERNS = tuple((re.compile(rank.form.replace("{}", "(.+)")), rank) for rank in RANKS)
_COLOUR_NUMBERS = {**{name: k for k, name in enumerate(COLOURS)}, "grey": COLOURS.index("gray")}
_COLOUR = f"(?P<colour>{'|'.join(_COLOUR_NUMBERS)})"
_COLOUR_PATTERNS = (
    re.compile(f"(?P<noun>something|anything) {_COLOUR}"),
    re.compile(f"{_COLOUR} (?P<noun>.+)"),
    re.compile(f"(?P<noun>.+) in {_COLOUR}"),
)
