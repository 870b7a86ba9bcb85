"""How a picture moved from one frame to the next: a field of points followed by optical flow.

One field serves the whole stream: every track reads its own movement from the points inside it,
and a key frame whose answer comes late finds out, from the same points, where its boxes have gone
meanwhile. Pyramidal Lucas-Kanade with a check backwards in time; the boxes follow the median of
their points, as in the median-flow tracker (Kalal et al., 2010). Knows no tracks and no labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray
from agent.streaming.view import GreyArray, View, rows_and_columns

Affine = NDArray[np.float64]

_WINDOW = (15, 15)
_LEVELS = 3
_MAX_BACK_ERROR_PX = 1.0
_CORNER_QUALITY = 0.005
_CORNER_DISTANCE_PX = 7
_POINTS_PER_BOX = 8
_MIN_POINTS = 3
_MIN_CAMERA_POINTS = 12
_REFILL_BELOW = 0.8
_CALM_LEVELS = 8.0
_CORE = 0.9
"""Points in the outermost part of a box are mostly background."""


def identity() -> Affine:
    """No movement."""
    return np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])


def compose(first: Affine, then: Affine) -> Affine:
    """The affine map that does one and then the other."""
    linear = then[:, :2] @ first[:, :2]
    return np.column_stack([linear, then[:, :2] @ first[:, 2] + then[:, 2]])


def apply(affine: Affine, points: FloatArray) -> FloatArray:
    """(n, 2) points after the map."""
    return np.asarray(points @ affine[:, :2].T + affine[:, 2], dtype=np.float32)


def _no_points() -> FloatArray:
    return np.zeros((0, 2), dtype=np.float32)


@dataclass(frozen=True)
class Change:
    """How much each pixel of the view differs from the last one."""

    difference: GreyArray
    """(height, width) grey levels."""
    scale: FloatArray
    """(2,) frame pixels per view pixel."""

    def is_calm(self, box: FloatArray) -> bool:
        """Whether nothing to speak of happened inside a box (frame pixels)."""
        x1, y1, x2, y2 = (box / np.tile(self.scale, 2)).clip(0).astype(int)
        part = self.difference[y1 : y2 + 1, x1 : x2 + 1]
        return part.size > 0 and float(part.mean()) < _CALM_LEVELS


@dataclass(frozen=True)
class Motion:
    """Where points were and where they are, in pixels of the frame."""

    before: FloatArray = field(default_factory=_no_points)
    """(n, 2)."""
    after: FloatArray = field(default_factory=_no_points)
    """(n, 2), aligned with `before`."""
    lost: FloatArray = field(default_factory=_no_points)
    """(m, 2) where points were that could not be followed."""
    camera: Affine = field(default_factory=identity)
    """(2, 3) movement of what stands still."""
    change: Change | None = None
    """How much each pixel changed, for boxes too plain to have points; None when not compared."""
    view: View | None = None
    """The newest picture; None when not known."""

    def likeness(self, look: FloatArray | None, box: FloatArray) -> float:
        """How much what stands in a box now is like an earlier look, a correlation in -1..1.

        1 where that cannot be said: no picture or look is known, or the look was plain.
        """
        if self.view is None or look is None or not look.any():
            return 1.0
        now = self.view.look(box)
        return 1.0 if now is None else float(look @ now)

    def shift_at(self, point: NDArray[np.float64]) -> NDArray[np.float64]:
        """(2,) by how much the camera's movement moves a point, pixels of the frame."""
        return np.asarray(self.camera[:, :2] @ point + self.camera[:, 2] - point)

    def carry(
        self, xyxy: FloatArray, expected: FloatArray | None = None
    ) -> tuple[FloatArray, FloatArray]:
        """Boxes moved along with their points.

        Args:
            xyxy: (n, 4) boxes at the time of `before`.
            expected: (n, 2) movement of each box's centre if it goes on as it went; tells the
                object's own points from those of what passes in front of it.

        Returns:
            The (n, 4) moved boxes, and the (n,) share 0..1 of each box's points that agree. A box
            without enough of them moves with the camera and has no support, but one that is too
            plain to have any and has not changed stays where it is.
        """
        moved, support = np.empty_like(xyxy), np.zeros(len(xyxy), dtype=np.float32)
        for index, box in enumerate(xyxy):
            hint = None if expected is None else expected[index]
            moved[index], support[index] = self._carry_one(box, hint)
        return moved, support

    def _carry_one(self, box: FloatArray, expected: FloatArray | None) -> tuple[FloatArray, float]:
        inside = _inside(self.before, box)
        before, after = self.before[inside], self.after[inside]
        agreeing = _agreeing(after - before, box, expected)
        num_points = len(before) + int(_inside(self.lost, box).sum())
        if num_points < _MIN_POINTS and self.change is not None and self.change.is_calm(box):
            return box, 1.0
        if agreeing.sum() < _MIN_POINTS:
            return apply(self.camera, box.reshape(2, 2)).reshape(4), 0.0
        before, after = before[agreeing], after[agreeing]
        origin, target = before.mean(axis=0), after.mean(axis=0)
        scale = _scale(before - origin, after - target)
        moved = scale * (box.reshape(2, 2) - origin) + target
        return np.asarray(moved, dtype=np.float32).reshape(4), len(before) / num_points


def _inside(points: FloatArray, box: FloatArray) -> NDArray[np.bool_]:
    centre, reach = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2 * _CORE
    return np.asarray((np.abs(points - centre) <= reach).all(axis=1))


def _agreeing(shift: FloatArray, box: FloatArray, expected: FloatArray | None) -> NDArray[np.bool_]:
    """Which of a box's points move as the box does."""
    if len(shift) == 0:
        return np.zeros(0, dtype=bool)
    size = float((box[2:] - box[:2]).max())
    tolerance = max(1.5, 0.04 * size) + 0.2 * float(np.abs(np.median(shift, axis=0)).max())
    around_median = _near(shift, np.median(shift, axis=0), tolerance)
    if expected is None:
        return around_median
    around_expected = _near(shift, expected, tolerance)
    # What passes in front may own most of the points; the object's own go on as they went.
    if around_expected.sum() >= max(_MIN_POINTS, 0.3 * len(shift)):
        return _near(shift, np.median(shift[around_expected], axis=0), tolerance)
    return around_median


def _near(shift: FloatArray, centre: FloatArray, tolerance: float) -> NDArray[np.bool_]:
    return np.asarray(np.abs(shift - centre).max(axis=1) <= tolerance)


def _scale(before: FloatArray, after: FloatArray) -> float:
    """How much a cloud of centred points has grown; 1 where too few could say."""
    if len(before) < 2 * _MIN_POINTS:
        return 1.0
    spread = float(np.square(before).sum())
    if spread < 1.0:
        return 1.0
    return float(np.clip(np.sqrt(float(np.square(after).sum()) / spread), 0.5, 2.0))


class PointField:
    """Points of the newest view, and where they were when bookmarks were set."""

    def __init__(self, num_points: int) -> None:
        self._num_points = num_points
        self._view: View | None = None
        self._points = _no_points()
        self._origins: dict[int, FloatArray] = {}
        self._cameras: dict[int, Affine] = {}
        self._views: dict[int, View] = {}

    def advance(
        self, view: View, boxes: FloatArray, ego_motion: Affine | None = None
    ) -> Motion | None:
        """Follow the points into a new view; None when there is nothing to follow from.

        Args:
            view: the new picture.
            boxes: (n, 4) frame pixels where points are wanted most, as they were in the last view.
            ego_motion: the camera's movement since, if the client knows it.
        """
        last, self._view = self._view, view
        if last is None or last.grey.shape != view.grey.shape:
            self._points = _no_points()
            self._origins.clear()
            self._views.clear()
            self._refill(boxes)
            return None
        before = self._points
        after, kept = _follow(last, view, before, ego_motion)
        camera = _camera(before[kept] * view.scale, after[kept] * view.scale, ego_motion)
        self._keep(after, kept)
        for bookmark, moved in self._cameras.items():
            self._cameras[bookmark] = compose(moved, camera)
        motion = Motion(
            before[kept] * view.scale, after[kept] * view.scale, before[~kept] * view.scale, camera,
            Change(np.asarray(cv2.absdiff(last.grey, view.grey), dtype=np.uint8), view.scale),
            view,
        )  # fmt: skip
        moved_boxes, _ = motion.carry(boxes)
        self._refill(moved_boxes)
        return motion

    def rescale(self, factor: FloatArray) -> None:
        """From here on frames are (2,) times as wide and as high; points are the view's anyway."""
        to_new = np.diag(np.asarray(factor, dtype=np.float64))
        for name, camera in self._cameras.items():
            linear = to_new @ camera[:, :2] @ np.linalg.inv(to_new)
            self._cameras[name] = np.column_stack([linear, to_new @ camera[:, 2]])

    def set_bookmark(self, name: int) -> None:
        """Remember where all points are now."""
        # No copy: these arrays are replaced, never changed.
        self._origins[name] = self._points
        self._cameras[name] = identity()
        if self._view is not None:
            self._views[name] = self._view

    def since(self, name: int, boxes: FloatArray) -> Motion:
        """The movement from a bookmark to now, by the points that lived through it.

        What was not followed yet has hardly a point: corners inside such boxes are looked for in
        the bookmark's picture, and followed to the newest in one step.

        Args:
            name: of the bookmark.
            boxes: (n, 4) where points are wanted at the bookmark, in pixels of the newest frame.
        """
        origins = self._origins.get(name)
        if origins is None or self._view is None:
            return Motion(camera=self._cameras.get(name, identity()))
        if origins is self._points:
            return Motion()  # The bookmark was set at the newest view.
        known = np.isfinite(origins[:, 0])
        scale, camera = self._view.scale, self._cameras[name]
        before, after = origins[known] * scale, self._points[known] * scale
        view = self._views[name]
        own = [
            _corners_in(view.grey, box / np.tile(scale, 2))
            for box in boxes
            if _inside(before, box).sum() < _POINTS_PER_BOX // 2
        ]
        starts = np.concatenate([_no_points(), *own])
        ends, kept = _follow(view, self._view, starts, None)
        return Motion(
            np.concatenate([before, starts[kept] * scale]),
            np.concatenate([after, ends[kept] * scale]),
            starts[~kept] * scale,
            camera,
            view=self._view,
        )

    def looks(self, name: int, boxes: FloatArray) -> list[FloatArray | None]:
        """What stood in each of (n, 4) boxes, frame pixels, when a bookmark was set; see
        `View.look`."""
        view = self._views.get(name)
        return [None if view is None else view.look(box) for box in boxes]

    def forget(self, name: int) -> None:
        """A bookmark is no longer needed."""
        self._origins.pop(name, None)
        self._cameras.pop(name, None)
        self._views.pop(name, None)

    def _keep(self, after: FloatArray, kept: NDArray[np.bool_]) -> None:
        self._points = after[kept]
        for name, origins in self._origins.items():
            self._origins[name] = origins[kept]

    def _refill(self, boxes: FloatArray) -> None:
        """New points where there are too few, in the boxes first."""
        assert self._view is not None
        grey, scale = self._view.grey, self._view.scale
        for box in boxes:
            if _inside(self._points * scale, box).sum() < _POINTS_PER_BOX // 2:
                self._add(_corners_in(grey, box / np.tile(scale, 2)))
        missing = self._num_points - len(self._points)
        if len(self._points) < _REFILL_BELOW * self._num_points:
            self._add(_corners(grey, missing, self._points))

    def _add(self, points: FloatArray) -> None:
        self._points = np.concatenate([self._points, points])
        unknown = np.full_like(points, np.nan)
        for name, origins in self._origins.items():
            self._origins[name] = np.concatenate([origins, unknown])


def _corners(grey: GreyArray, count: int, existing: FloatArray) -> FloatArray:
    free = np.full(grey.shape, 255, dtype=np.uint8)
    for x, y in existing.astype(int):
        cv2.circle(free, (int(x), int(y)), _CORNER_DISTANCE_PX, 0, cv2.FILLED)
    found = cv2.goodFeaturesToTrack(grey, count, _CORNER_QUALITY, _CORNER_DISTANCE_PX, mask=free)
    return _no_points() if found is None else found.reshape(-1, 2).astype(np.float32)


def _corners_in(grey: GreyArray, box: FloatArray) -> FloatArray:
    """A few points in one box (view pixels), however plain it is inside."""
    rows, columns = rows_and_columns(box)
    part = grey[rows, columns]
    if min(part.shape, default=0) < 4:
        return _no_points()
    found = cv2.goodFeaturesToTrack(np.ascontiguousarray(part), _POINTS_PER_BOX, 0.001, 3)
    if found is None:
        return _no_points()
    return np.asarray(
        found.reshape(-1, 2) + np.array([columns.start, rows.start]), dtype=np.float32
    )


def _follow(
    last: View, view: View, points: FloatArray, ego_motion: Affine | None
) -> tuple[FloatArray, NDArray[np.bool_]]:
    """Where points of the last view are now (view pixels), and which of that can be believed."""
    if len(points) == 0:
        return points, np.zeros(0, dtype=bool)
    start = points.reshape(-1, 1, 2)
    guess, flags = start.copy(), 0
    if ego_motion is not None:
        moved = apply(ego_motion, points * last.scale) / view.scale
        guess, flags = moved.reshape(-1, 1, 2), cv2.OPTFLOW_USE_INITIAL_FLOW
    after, forward, _ = cv2.calcOpticalFlowPyrLK(
        last.grey, view.grey, start, guess, winSize=_WINDOW, maxLevel=_LEVELS, flags=flags
    )
    back, backward, _ = cv2.calcOpticalFlowPyrLK(
        view.grey, last.grey, after, start.copy(), winSize=_WINDOW, maxLevel=_LEVELS,
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )  # fmt: skip
    after = np.asarray(after, dtype=np.float32).reshape(-1, 2)
    error = np.abs(np.asarray(back).reshape(-1, 2) - points).max(axis=1)
    size = np.array(view.grey.shape[::-1])
    inside = ((after >= 0) & (after < size)).all(axis=1)
    kept = (forward.ravel() == 1) & (backward.ravel() == 1) & (error < _MAX_BACK_ERROR_PX) & inside
    return after, np.asarray(kept)


def _camera(before: FloatArray, after: FloatArray, ego_motion: Affine | None) -> Affine:
    """The movement most points agree on; the client's word where the picture cannot say."""
    fallback = identity() if ego_motion is None else ego_motion
    if len(before) < _MIN_CAMERA_POINTS:
        return fallback
    affine, inliers = cv2.estimateAffinePartial2D(
        before, after, method=cv2.RANSAC, ransacReprojThreshold=2.0, maxIters=200
    )
    if affine is None or inliers.sum() < len(before) / 3:
        return fallback
    return np.asarray(affine, dtype=np.float64)
