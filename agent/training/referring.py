"""Expressions that single out one region by its name and its place or size.

"the dog on the left" is the leftmost dog. Works on names and boxes; knows no pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray

_CLEARLY_APART = 0.06
"""Least difference, in picture sides, between the one that is meant and the next."""
_CLEARLY_LARGER = 1.4
"""Least ratio of areas."""


@dataclass(frozen=True)
class Relation:
    """A way to single out one of several: the least value of `key`, by at least `margin`."""

    template: str
    key: Callable[[FloatArray], NDArray[np.floating]]
    margin: float

    def chosen(self, boxes: FloatArray) -> int | None:
        """Which of (n, 4) boxes is meant; None where it would be hard to say."""
        values = self.key(boxes)
        order = values.argsort()
        if len(order) > 1 and values[order[1]] - values[order[0]] < self.margin:
            return None
        return int(order[0])


def _centre(axis: int) -> Callable[[FloatArray], NDArray[np.floating]]:
    return lambda boxes: (boxes[:, axis] + boxes[:, axis + 2]) / 2


def _log_area(boxes: FloatArray) -> NDArray[np.floating]:
    return np.log(np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 1e-4), axis=1))


RELATIONS = (
    Relation("{} on the left", _centre(0), _CLEARLY_APART),
    Relation("{} on the right", lambda boxes: -_centre(0)(boxes), _CLEARLY_APART),
    Relation("{} at the top", _centre(1), _CLEARLY_APART),
    Relation("{} at the bottom", lambda boxes: -_centre(1)(boxes), _CLEARLY_APART),
    Relation("largest {}", lambda boxes: -_log_area(boxes), float(np.log(_CLEARLY_LARGER))),
    Relation("smallest {}", _log_area, float(np.log(_CLEARLY_LARGER))),
)


def refer_to(
    label: str, places: list[int], boxes: FloatArray, rng: np.random.Generator
) -> tuple[str, int] | None:
    """An expression for one region of `label`, and that region; None if none is clear enough.

    Args:
        places: the regions of that name; with one alone, its name and any relation mean it.
        boxes: (num_regions, 4) xyxy relative to the picture.
    """
    relation = RELATIONS[int(rng.integers(len(RELATIONS)))]
    chosen = relation.chosen(boxes[places])
    return None if chosen is None else (relation.template.format(label), places[chosen])
