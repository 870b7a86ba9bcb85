"""Which boxes belong together: pure functions over arrays. Knows no tracks and no time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from agent.detections import FloatArray, box_iou

_MAX_DISTANCE = 0.6
"""Centres farther apart than this many box sizes have nothing to do with one another."""
_MAX_SIZE_RATIO = 2.0


def place_affinity(a: FloatArray, b: FloatArray) -> FloatArray:
    """How well (n, 4) and (m, 4) boxes agree in place and size: (n, m) in 0..1.

    Overlap where there is some; else nearness of the centres of boxes of similar size, at most
    half as good.
    """
    overlap = box_iou(a, b)
    size_a, size_b = _sizes(a), _sizes(b)
    centre_a, centre_b = (a[:, :2] + a[:, 2:]) / 2, (b[:, :2] + b[:, 2:]) / 2
    gap = np.linalg.norm(centre_a[:, None] - centre_b[None], axis=-1)
    mean_size = np.maximum((size_a[:, None] + size_b[None]) / 2, 1e-6)
    ratio = np.maximum(size_a[:, None], size_b[None]) / np.maximum(
        np.minimum(size_a[:, None], size_b[None]), 1e-6
    )
    near = np.clip(1.0 - gap / mean_size / _MAX_DISTANCE, 0.0, 1.0) * (ratio <= _MAX_SIZE_RATIO)
    return np.asarray(np.maximum(overlap, near / 2), dtype=np.float32)


def similarity(a: FloatArray, b: FloatArray, mean: FloatArray) -> FloatArray:
    """Cosine of (n, d) and (m, d) region features around their common mean: (n, m) in -1..1.

    Features of one network share most of their length and direction; what tells objects apart is
    how they differ from the mean of the scene.
    """
    return np.asarray(_unit(a - mean) @ _unit(b - mean).T, dtype=np.float32)


def likeness(
    known: Sequence[FloatArray], new: Sequence[FloatArray], mean: FloatArray | None
) -> FloatArray:
    """(n, m) `similarity`; zero where nothing can be said.

    What a resumed stream knows may be features of another model, of another width than the mean's.
    """
    found = np.zeros((len(known), len(new)), dtype=np.float32)
    if mean is None or not new:
        return found
    rows = [row for row, features in enumerate(known) if features.shape == mean.shape]
    if rows:
        found[rows] = similarity(np.stack([known[row] for row in rows]), np.stack(new), mean)
    return found


def best_pairs(affinity: FloatArray, least: float) -> list[tuple[int, int]]:
    """(row, column) pairs of the assignment with the greatest sum, each at least `least`."""
    if affinity.size == 0:
        return []
    # Pairs that may not be made must not tempt the solver away from ones that may.
    allowed = affinity >= least
    rows, columns = linear_sum_assignment(np.where(allowed, affinity, -1e3), maximize=True)
    pairs = zip(rows.tolist(), columns.tolist(), strict=True)
    return [(row, column) for row, column in pairs if allowed[row, column]]


def _sizes(xyxy: FloatArray) -> FloatArray:
    return np.asarray((xyxy[:, 2:] - xyxy[:, :2]).max(axis=1), dtype=np.float32)


def _unit(vectors: FloatArray) -> NDArray[np.float32]:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.asarray(vectors / np.maximum(length, 1e-6), dtype=np.float32)
