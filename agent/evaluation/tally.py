"""Shares counted per image, and how sure they are: bootstrap intervals over images.

Questions about one image stand or fall together, so the image is what is drawn again. An interval
always holds its figure. Knows no model, no file and no box.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

Parts = dict[str, tuple[float, float]]
"""Figure to (part, whole), of one image."""

_RESAMPLES = 1000
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """A figure with the interval that resampled figures give it (95 %, see `interval`)."""

    value: float
    low: float
    high: float
    count: float = 0.0
    """What it was measured on: questions, regions, objects; 0 where that has no meaning."""

    def __str__(self) -> str:
        return f"{self.value:.3f} ({self.low:.2f} to {self.high:.2f})"


@dataclass
class Tally:
    """Parts and wholes of named shares, image by image; a share is the ratio of their sums."""

    images: dict[str, Parts] = field(default_factory=dict)

    def add(self, image: str, name: str, part: float, whole: float = 1.0) -> None:
        """Count `part` out of `whole` for one image, on top of what it has."""
        parts = self.images.setdefault(image, {})
        before = parts.get(name, (0.0, 0.0))
        parts[name] = (before[0] + float(part), before[1] + float(whole))

    def estimates(self, *, num_resamples: int = _RESAMPLES, seed: int = 0) -> dict[str, Estimate]:
        """Every share with its interval; a share of nothing is left out."""
        rows = list(self.images.values())
        weights = resampling_weights(len(rows), num_resamples, seed)
        found = {}
        for name in dict.fromkeys(name for row in rows for name in row):
            parts, wholes = np.array([row.get(name, (0.0, 0.0)) for row in rows]).T
            if wholes.sum() > 0:
                drawn = weights @ wholes
                ratios = (weights @ parts)[drawn > 0] / drawn[drawn > 0]
                found[name] = interval(parts.sum() / wholes.sum(), ratios, count=wholes.sum())
        return found


def resampling_weights(num_images: int, num_resamples: int, seed: int) -> np.ndarray:
    """(num_resamples, num_images): how often each image was drawn, with replacement."""
    if num_images == 0:
        return np.zeros((num_resamples, 0))
    rng = np.random.default_rng(seed)
    drawn = rng.multinomial(num_images, np.full(num_images, 1.0 / num_images), num_resamples)
    return np.asarray(drawn)


def interval(
    value: float, resampled: np.ndarray, *, count: float = 0.0, centred: bool = False
) -> Estimate:
    """The middle 95 % of resampled figures (percentiles), widened to hold the measured one.

    Args:
        value: the measured figure.
        resampled: figures of the images drawn again.
        count: what it was measured on.
        centred: move them all until their mean is the measured figure. Of a share it is anyway;
            average precision comes out higher where images are drawn twice, and its percentiles
            may lie beside it.
    """
    if not len(resampled):
        return Estimate(float(value), float(value), float(value), float(count))
    moved = resampled - (resampled.mean() - value if centred else 0.0)
    edge = 50.0 * (1.0 - _LEVEL)
    low, high = np.percentile(np.clip(moved, 0.0, max(1.0, resampled.max())), [edge, 100.0 - edge])
    return Estimate(float(value), float(min(low, value)), float(max(high, value)), float(count))
