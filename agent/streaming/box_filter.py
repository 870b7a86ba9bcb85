"""A box that moves: constant velocity Kalman filter over its centre and size, in seconds.

Noise is relative to the box's own size, so that near and far objects are treated alike. The four
coordinates are filtered apart (Kalman, 1960, with the piecewise constant acceleration model).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from agent.detections import FloatArray

_POSITION_ACCELERATION = 4.0
"""Box sizes per second squared; what a hand-held camera or a running dog does."""
_SIZE_ACCELERATION = 1.0
_START_SPEED = 1.0
"""Standard deviation of an unknown speed, box sizes per second."""
_MIN_SIDE_PX = 2.0


class BoxFilter:
    """Where a box is, how it moves and how sure that is."""

    def __init__(self, xyxy: FloatArray, noise: float) -> None:
        """Start at a box that was measured with `noise` (standard deviation in box sizes)."""
        self._mean = np.zeros((4, 2))
        self._mean[:, 0] = _to_centre(xyxy)
        self._covariance = np.zeros((4, 2, 2))
        self._covariance[:, 0, 0] = (noise * self._size) ** 2
        self._covariance[:, 1, 1] = (_START_SPEED * self._size) ** 2

    @property
    def xyxy(self) -> FloatArray:
        """(4,) the box."""
        x, y, width, height = self._mean[:, 0]
        half_width, half_height = max(width, _MIN_SIDE_PX) / 2, max(height, _MIN_SIDE_PX) / 2
        corners = (x - half_width, y - half_height, x + half_width, y + half_height)
        return np.array(corners, dtype=np.float32)

    @property
    def velocity(self) -> FloatArray:
        """(4,) change of centre x, centre y, width and height, pixels per second."""
        return np.asarray(self._mean[:, 1], dtype=np.float32)

    @velocity.setter
    def velocity(self, velocity: FloatArray) -> None:
        self._mean[:, 1] = velocity

    @property
    def uncertainty(self) -> float:
        """Standard deviation of the centre, in box sizes."""
        return float(np.sqrt(self._covariance[:2, 0, 0].max()) / self._size)

    def predict(self, dt_s: float) -> None:
        """Go on as before for some time."""
        acceleration = np.array([_POSITION_ACCELERATION] * 2 + [_SIZE_ACCELERATION] * 2)
        variance = (acceleration * self._size) ** 2
        step = np.array([[1.0, dt_s], [0.0, 1.0]])
        noise = np.array([[dt_s**4 / 4, dt_s**3 / 2], [dt_s**3 / 2, dt_s**2]])
        self._mean = self._mean @ step.T
        self._covariance = step @ self._covariance @ step.T + variance[:, None, None] * noise

    def move_with(self, camera: NDArray[np.float64]) -> None:
        """The camera moved; (2, 3) affine map of pixels. Velocities stay relative to the world."""
        centre = self._mean[:2, 0]
        self._mean[:2, 0] = camera[:, :2] @ centre + camera[:, 2]
        growth = float(np.sqrt(max(abs(np.linalg.det(camera[:, :2])), 1e-6)))
        self._mean[2:, 0] *= growth

    def rescale(self, factor: FloatArray) -> None:
        """The same place in a picture of another size, (2,) times as wide and as high."""
        four = np.tile(np.asarray(factor, dtype=np.float64), 2)
        self._mean *= four[:, None]
        self._covariance *= np.square(four)[:, None, None]

    def copy(self) -> BoxFilter:
        """The same state, to go on from twice."""
        other = BoxFilter.__new__(BoxFilter)
        other._mean, other._covariance = self._mean.copy(), self._covariance.copy()
        return other

    def follow(self, xyxy: FloatArray, dt_s: float, drift: float) -> None:
        """The picture shows where the box has gone; call it after `move_with`, not `predict`.

        Optical flow measures a step, not a place: the step is taken as it is, and what it adds to
        the doubt about the place stays until an answer says where the thing really is.

        Args:
            xyxy: (4,) where the box is now, as carried along from where it was.
            dt_s: time since.
            drift: standard deviation of the step, in box sizes.
        """
        there, variance = _to_centre(xyxy), (drift * self._size) ** 2
        if dt_s > 0.0:
            speed = (there - self._mean[:, 0]) / dt_s
            changed = (
                np.array([_POSITION_ACCELERATION] * 2 + [_SIZE_ACCELERATION] * 2) * dt_s
            ) ** 2
            doubt = self._covariance[:, 1, 1] + changed * self._size**2
            gain = doubt / (doubt + variance / dt_s**2)
            self._mean[:, 1] += gain * (speed - self._mean[:, 1])
            self._covariance[:, 1, 1] = (1.0 - gain) * doubt
        self._mean[:, 0] = there
        self._covariance[:, 0, 0] += variance
        self._covariance[:, 0, 1] = self._covariance[:, 1, 0] = 0.0

    def correct(self, xyxy: FloatArray, noise: float) -> None:
        """A measurement, with its standard deviation in box sizes."""
        residual = _to_centre(xyxy) - self._mean[:, 0]
        spread = self._covariance[:, 0, 0] + (noise * self._size) ** 2
        gain = self._covariance[:, :, 0] / spread[:, None]
        self._mean += gain * residual[:, None]
        self._covariance -= gain[:, :, None] * self._covariance[:, None, 0, :]

    @property
    def _size(self) -> float:
        return float(max(self._mean[2:, 0].max(), _MIN_SIDE_PX))


def _to_centre(xyxy: FloatArray) -> NDArray[np.float64]:
    x1, y1, x2, y2 = (float(value) for value in xyxy)
    return np.array([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1])
