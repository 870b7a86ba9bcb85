"""Boxes: what the proposal network suggests and what an answer contains. NumPy only.

All boxes are `xyxy`: (x1, y1, x2, y2), float32, absolute pixels of the frame as the client
sent it. Knows neither models nor wires.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from groundstream.errors import InvalidBoxes

FloatArray = NDArray[np.float32]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


def _empty_boxes() -> FloatArray:
    return np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True)
class Proposals:
    """Class-agnostic boxes of one frame, best first."""

    xyxy: FloatArray = field(default_factory=_empty_boxes)
    """(num_boxes, 4) pixels of the frame."""
    objectness: FloatArray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(num_boxes,) in 0..1."""
    evidence: FloatArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))
    """(num_boxes, num_classes) in 0..1: how much speaks for each of the classes that the proposal
    network knows; (num_boxes, 0) where nobody says anything of classes."""

    def __post_init__(self) -> None:
        xyxy = np.asarray(self.xyxy, dtype=np.float32).reshape(-1, 4)
        objectness = np.asarray(self.objectness, dtype=np.float32).reshape(-1)
        if len(xyxy) != len(objectness):
            raise InvalidBoxes(f"{len(xyxy)} boxes but {len(objectness)} objectness scores")
        evidence = np.asarray(self.evidence, dtype=np.float32)
        if evidence.shape == (0, 0):
            evidence = evidence.reshape(len(xyxy), 0)
        if evidence.ndim != 2 or len(evidence) != len(xyxy):
            raise InvalidBoxes(f"{len(xyxy)} boxes but evidence of shape {evidence.shape}")
        object.__setattr__(self, "xyxy", xyxy)
        object.__setattr__(self, "objectness", objectness)
        object.__setattr__(self, "evidence", evidence)

    def __len__(self) -> int:
        return len(self.xyxy)

    def top(self, limit: int) -> Proposals:
        """The first `limit` proposals (they are sorted by objectness)."""
        return self.select(np.arange(len(self))[:limit])

    def plain(self) -> Proposals:
        """The boxes without what is known of them."""
        return Proposals(self.xyxy, self.objectness)

    def select(self, indices: IntArray) -> Proposals:
        """Those of these numbers, in this order."""
        return Proposals(self.xyxy[indices], self.objectness[indices], self.evidence[indices])


@dataclass(frozen=True)
class Detections:
    """Labelled boxes of one answer; arrays of equal length, sliced rather than looped over."""

    xyxy: FloatArray = field(default_factory=_empty_boxes)
    """(num_boxes, 4) pixels of the frame."""
    confidence: FloatArray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    """(num_boxes,) how sure the model was: the probability of the region token, combined with what
    else the model's rules count (`agent.answer_rules`)."""
    label: tuple[str, ...] = ()
    """(num_boxes,) the words of the query each box answers."""
    region: IntArray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    """(num_boxes,) index of the proposal the box is, in the order the LLM saw them."""
    tracker_id: IntArray | None = None
    """(num_boxes,) identity over time within one session, or None where nothing tracks."""

    def __post_init__(self) -> None:
        xyxy = np.asarray(self.xyxy, dtype=np.float32).reshape(-1, 4)
        object.__setattr__(self, "xyxy", xyxy)
        lengths = {len(xyxy), len(self.confidence), len(self.label), len(self.region)}
        if self.tracker_id is not None:
            lengths.add(len(self.tracker_id))
        if len(lengths) != 1:
            raise InvalidBoxes(f"fields of Detections have different lengths: {sorted(lengths)}")

    def __len__(self) -> int:
        return len(self.xyxy)

    def at_least(self, confidence: float) -> Detections:
        """Those that are at least so sure."""
        rows = np.flatnonzero(self.confidence >= confidence)
        return Detections(
            self.xyxy[rows],
            self.confidence[rows],
            tuple(self.label[row] for row in rows),
            self.region[rows],
            None if self.tracker_id is None else self.tracker_id[rows],
        )

    def with_tracker_id(self, tracker_id: IntArray) -> Detections:
        """The same boxes carrying identities."""
        return Detections(self.xyxy, self.confidence, self.label, self.region, tracker_id)


def validate_boxes(xyxy: FloatArray, *, width: int, height: int) -> FloatArray:
    """Client-supplied boxes, clipped to the frame, as float32 (num_boxes, 4).

    Raises:
        InvalidBoxes: not (n, 4), not finite, reversed, empty, or wholly outside the frame.
    """
    boxes = np.asarray(xyxy, dtype=np.float32)
    if boxes.ndim != 2 or boxes.shape[1] != 4:
        raise InvalidBoxes(f"boxes must have shape (n, 4) as x1, y1, x2, y2; got {boxes.shape}")
    if not np.isfinite(boxes).all():
        raise InvalidBoxes("boxes contain NaN or infinity; send finite pixel coordinates")
    clipped = clip_boxes(boxes, width=width, height=height)
    bad = np.flatnonzero((clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1]))
    if len(bad):
        raise InvalidBoxes(
            f"box {int(bad[0])} is {boxes[bad[0]].tolist()}: it must satisfy x1 < x2 and y1 < y2 "
            f"and overlap the {width}x{height} frame"
        )
    return clipped


def clip_boxes(xyxy: FloatArray, *, width: int, height: int) -> FloatArray:
    """Boxes cut to the frame: x to 0..width, y to 0..height."""
    limits = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(xyxy, 0.0, limits).astype(np.float32)


def centred_to_corners(centred: FloatArray, *, width: int, height: int) -> FloatArray:
    """(n, 4) boxes cx, cy, w, h relative to an image, as xyxy in its pixels, not clipped."""
    half = centred[:, 2:] / 2
    corners = np.concatenate([centred[:, :2] - half, centred[:, :2] + half], axis=1)
    size = np.array([width, height, width, height], dtype=np.float32)
    return np.asarray(corners * size, dtype=np.float32)


def select_proposals(
    xyxy: FloatArray,
    scores: FloatArray,
    *,
    width: int,
    height: int,
    score_threshold: float,
    nms_iou: float,
    max_boxes: int,
    least_side_px: float,
) -> Proposals:
    """A detector's raw boxes as proposals: clipped, confident, suppressed, best first.

    Args:
        xyxy: (n, 4) pixels of the frame, possibly beyond its edges.
        scores: (n,) in 0..1.
        width, height: of the frame, in pixels.
        score_threshold: boxes below it are dropped.
        nms_iou: of two boxes that overlap more than this the better stays.
        max_boxes: most proposals returned.
        least_side_px: boxes narrower or lower than this, once clipped, are dropped.
    """
    boxes = clip_boxes(xyxy, width=width, height=height)
    sides = boxes[:, 2:] - boxes[:, :2]
    sound = (scores >= score_threshold) & (sides >= least_side_px).all(axis=1)
    boxes, scores = boxes[sound], scores[sound]
    kept = non_maximum_suppression(boxes, scores, iou=nms_iou)[:max_boxes]
    return Proposals(boxes[kept], scores[kept])


def published_proposals(
    xyxy: FloatArray,
    scores: FloatArray,
    *,
    score_threshold: float,
    nms_iou: float,
    max_boxes: int,
) -> Proposals:
    """A detector's raw boxes as the wrapper that VLM-FO1 was published with selects them.

    Boxes are suppressed before anything is cut, then truncated to whole pixels towards zero; they
    may be empty or reach beyond the frame, since the encoders cut them. Scores are rounded to two
    places. Boxes of one score stand in the order that NumPy's sort and its reversal give them.
    Source: `UPNWrapper.filter` of om-ai-lab/VLM-FO1.

    Args:
        xyxy: (n, 4) pixels of the frame.
        scores: (n,) in 0..1.
        score_threshold, nms_iou, max_boxes: see `select_proposals`.
    """
    sure = scores >= score_threshold
    boxes, scores = xyxy[sure], scores[sure]
    kept = non_maximum_suppression(boxes, scores, iou=nms_iou)
    boxes, scores = boxes[kept].astype(np.int32).astype(np.float32), scores[kept]
    order = np.argsort(scores)[::-1][:max_boxes]
    rounded = np.array([round(float(score), 2) for score in scores[order]], dtype=np.float32)
    return Proposals(boxes[order], rounded)


def box_area(xyxy: FloatArray) -> FloatArray:
    """(num_boxes,) areas in square pixels; reversed boxes count as zero."""
    sides = np.clip(xyxy[:, 2:] - xyxy[:, :2], 0.0, None)
    return np.asarray(sides[:, 0] * sides[:, 1], dtype=np.float32)


def box_iou(a: FloatArray, b: FloatArray) -> FloatArray:
    """Pairwise intersection over union of (n, 4) and (m, 4) boxes: (n, m) in 0..1."""
    intersection = _intersection(a, b)
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return np.asarray(intersection / np.maximum(union, 1e-9), dtype=np.float32)


def non_maximum_suppression(xyxy: FloatArray, scores: FloatArray, *, iou: float) -> IntArray:
    """Indices of the boxes kept by greedy NMS, best score first (ties: lower index first)."""
    order = np.argsort(-scores, kind="stable")
    overlaps = (box_iou(xyxy, xyxy) > iou)[np.ix_(order, order)]
    alive = np.ones(len(order), dtype=bool)
    for rank in range(len(order)):
        if alive[rank]:
            alive[rank + 1 :] &= ~overlaps[rank, rank + 1 :]
    return np.asarray(order[alive], dtype=np.int64)


def claims(
    xyxy: FloatArray, scores: FloatArray, *, iou: float, containment: float, held: float
) -> FloatArray:
    """Scores of boxes of one label once every object is claimed by its surest box.

    A box that overlaps a surer one is another box of the same object and keeps nothing. One that
    lies in a surer one, or around it, is mostly a part of that object or a group with it, and
    sometimes an object behind it, so it keeps a share: a decay as in Soft-NMS (arXiv 1704.04503).

    Args:
        xyxy: (n, 4).
        scores: (n,); ties go to the lower index.
        iou: overlap of two boxes of one object.
        containment: share of the smaller box that lies in the larger one.
        held: what a box keeps of its score, once, however many boxes it lies in or around.

    Returns:
        (n,) float32, 0 where nothing is claimed.
    """
    overlaps = box_iou(xyxy, xyxy) > iou
    nested = (box_containment(xyxy, xyxy) > containment) & ~overlaps
    left = np.asarray(scores, dtype=np.float32).copy()
    is_open, is_held = np.ones(len(left), dtype=bool), np.zeros(len(left), dtype=bool)
    while is_open.any():
        surest = int(np.where(is_open, left, -1.0).argmax())
        is_open[surest] = False
        others = is_open & overlaps[surest]
        left[others] = 0.0
        is_open &= ~others
        newly_held = is_open & nested[surest] & ~is_held
        left[newly_held] *= held
        is_held |= newly_held
    return left


def box_containment(a: FloatArray, b: FloatArray) -> FloatArray:
    """(n, m) intersection over the area of the smaller box, in 0..1."""
    smaller = np.minimum(box_area(a)[:, None], box_area(b)[None, :])
    shared = _intersection(a, b)
    return np.asarray(shared / np.maximum(smaller, 1e-9), dtype=np.float32)


def _intersection(a: FloatArray, b: FloatArray) -> FloatArray:
    """(n, m) shared areas of (n, 4) and (m, 4) boxes."""
    top_left = np.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.clip(bottom_right - top_left, 0.0, None)
    return np.asarray(sides[..., 0] * sides[..., 1], dtype=np.float32)
