"""What is left of a frame's features when it is answered: sizes, and a short vector for each box.

Megabytes of features stay where the language model is; a tracker that tells objects apart by their
looks, and a zoom that wants to know how finely the frame was seen, need no more than this. The
vectors are a random projection of both encoders' region features, which keeps angles between them
(docs/decisions/stage_calls.md has what that costs in recognition). NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray
from agent.features import FrameFeatures, widened

APPEARANCE_WIDTH = 128
_SEED = 20_260_101
"""Vectors of different processes, and of a stream that comes back, must be comparable."""


@dataclass(frozen=True)
class FrameSummary:
    """One frame as it was seen."""

    width: int
    height: int
    grid: tuple[int, int]
    seen_px: int
    """These four as in `FrameFeatures`."""
    num_image_tokens: int
    appearance: NDArray[np.float16]
    """(num_boxes, at most `APPEARANCE_WIDTH`) what each proposal looks like."""


def summary_of(features: FrameFeatures) -> FrameSummary:
    """Takes some milliseconds for features of a large model."""
    return FrameSummary(
        width=features.width,
        height=features.height,
        grid=features.grid,
        seen_px=features.seen_px,
        num_image_tokens=len(features.image_tokens),
        appearance=_shortened(region_vectors(features)).astype(np.float16),
    )


def region_vectors(features: FrameFeatures) -> FloatArray:
    """(num_boxes, d) both encoders' region features in full, equally weighted."""
    parts = []
    for array in (features.primary_regions, features.auxiliary_regions):
        regions = widened(array)
        length = np.linalg.norm(regions, axis=1, keepdims=True)
        parts.append(regions / np.maximum(length, 1e-6))
    return np.concatenate(parts, axis=1).astype(np.float32)


def _shortened(vectors: FloatArray) -> FloatArray:
    width = vectors.shape[1]
    if width <= APPEARANCE_WIDTH:
        return vectors
    return np.asarray(vectors @ _projection(width), dtype=np.float32)


@lru_cache(maxsize=2)
def _projection(width: int) -> FloatArray:
    """(width, APPEARANCE_WIDTH) random signs."""
    signs = np.random.default_rng(_SEED).integers(0, 2, (width, APPEARANCE_WIDTH), dtype=np.int8)
    return np.asarray((2 * signs - 1) / np.sqrt(APPEARANCE_WIDTH), dtype=np.float32)
