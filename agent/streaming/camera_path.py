"""The camera's movement over frames of which some are dropped, from what the client says of each.

A client tells how its camera moved since the frame it sent before; the tracker needs to know how it
moved since the frame it saw before.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.streaming.motion import Affine, compose, identity

_FARTHEST = 1e6
"""Pixels, or times as large: nothing that was in sight then still is."""


@dataclass(frozen=True)
class CameraPose:
    """Where the camera is on one unbroken stretch of its path."""

    stretch: int
    since_start: Affine
    """(2, 3) movement since the stretch began."""


class CameraPath:
    """Adds up what the client says; a frame without a word begins a new stretch."""

    def __init__(self) -> None:
        self._pose = CameraPose(0, identity())

    def step(self, movement: Affine | None) -> CameraPose:
        """The pose at the next frame.

        Args:
            movement: (2, 3) since the frame before; None when unknown.
        """
        if movement is None:
            self._pose = CameraPose(self._pose.stretch + 1, identity())
        else:
            moved = compose(self._pose.since_start, movement)
            if np.abs(moved).max() < _FARTHEST:
                self._pose = CameraPose(self._pose.stretch, moved)
            else:
                self._pose = CameraPose(self._pose.stretch + 1, identity())
        return self._pose


def movement_between(first: CameraPose | None, then: CameraPose) -> Affine | None:
    """The movement from one pose to a later one; None when something between is unknown."""
    if first is None or first.stretch != then.stretch:
        return None
    linear = first.since_start[:, :2]
    if abs(np.linalg.det(linear)) < 1e-9:
        return None
    back = np.linalg.inv(linear)
    return compose(np.column_stack([back, -back @ first.since_start[:, 2]]), then.since_start)
