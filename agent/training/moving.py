"""Composes moving pictures with ground truth tracks, reproducibly from a seed.

Knows trajectories, a panning camera and visibility over time. It does not know how a sprite is
drawn, nor anything of streams, sessions or models.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.training.artwork import TRAINING_FAMILIES, Atlas
from agent.training.backdrop import Backdrops
from agent.training.occupancy import Occupancy
from agent.training.sprites import Look, Pose, draw_sprite, paste

MOVING_VERSION = 1
"""Part of every seed: raise it whenever a change alters what a seed composes."""


@dataclass(frozen=True)
class MovingSettings:
    """What a moving scene may look like."""

    size: tuple[int, int] = (480, 360)
    """(width, height) in pixels."""
    fps: float = 15.0
    """Frames per second."""
    duration_s: float = 10.0
    """Length in seconds."""
    num_objects: int = 8
    """Objects over the whole sequence."""
    object_px: tuple[float, float] = (50.0, 130.0)
    """Range of an object's long side, log-uniform, before it grows or shrinks."""
    families: tuple[str, ...] = TRAINING_FAMILIES
    """Artwork to draw from; one family for a whole sequence. All must be in the atlas."""
    concepts: tuple[int, ...] | None = None
    """Concept ids, one per object and may repeat; None draws them at random."""
    min_visible: float = 0.25
    """An object counts as present while at least this fraction of its pixels is seen."""
    travel: float = 0.3
    """Reach of an object's wandering, as a fraction of the frame."""
    crossing: float = 0.3
    """Fraction of objects that cross the frame, entering and leaving, instead of wandering."""
    pan: float = 0.08
    """Reach of the camera's movement, as a fraction of the frame."""
    photo_probability: float = 0.0
    """Chance of a photograph rather than a procedural background."""
    calm: bool = False
    """A pale background and soft shadows, for people to look at; overrides photographs."""


@dataclass(frozen=True)
class MovingFrame:
    """One frame and the objects present in it, in drawing order (last is nearest)."""

    time_s: float
    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    xyxy: NDArray[np.float32]
    """(N, 4) boxes around the visible pixels, in pixels."""
    concept: NDArray[np.int64]
    """(N,) concept ids."""
    track_id: NDArray[np.int64]
    """(N,) the same number for the same object in every frame, from 1."""


@dataclass(frozen=True)
class _Mover:
    """An object's smooth path; every quantity is a sine or a line over time."""

    concept: int
    width: float
    height: float
    start: tuple[float, float]
    velocity: tuple[float, float]
    swing: tuple[float, float]
    period_s: tuple[float, float]
    phase: tuple[float, float]
    tilt_deg: float
    growth: float

    def at(self, time_s: float) -> tuple[float, float, Pose]:
        """Return the centre in world pixels and the pose at a time."""
        turn_x = 2.0 * math.pi * time_s / self.period_s[0] + self.phase[0]
        turn_y = 2.0 * math.pi * time_s / self.period_s[1] + self.phase[1]
        x = self.start[0] + self.velocity[0] * time_s + self.swing[0] * math.sin(turn_x)
        y = self.start[1] + self.velocity[1] * time_s + self.swing[1] * math.sin(turn_y)
        scale = 1.0 + self.growth * math.sin(0.7 * turn_x + turn_y)
        pose = Pose(self.width * scale, self.height * scale, self.tilt_deg * math.sin(turn_x))
        return x, y, pose


class MovingScene:
    """A moving scene of one seed; iterating it yields its frames, every time the same."""

    def __init__(
        self,
        atlas: Atlas,
        backgrounds: tuple[NDArray[np.uint8], ...],
        settings: MovingSettings,
        seed: int,
    ) -> None:
        """Raise ValueError if the settings name a family that the atlas lacks."""
        unknown = set(settings.families) - set(atlas.families)
        if unknown or not settings.families:
            raise ValueError(f"families not in the atlas: {', '.join(sorted(unknown)) or 'none'}")
        self.settings = settings
        rng = np.random.default_rng((MOVING_VERSION, seed))
        family = settings.families[int(rng.integers(len(settings.families)))]
        self._row = atlas.families.index(family)
        self._atlas = atlas
        width, height = settings.size
        self._margin = (math.ceil(settings.pan * width) + 2, math.ceil(settings.pan * height) + 2)
        self._look = Look(shadow=0.3 if settings.calm else 0.0)
        self._backdrop = self._draw_backdrop(rng, Backdrops(backgrounds))
        self._pan_phase = rng.uniform(0.0, 2.0 * math.pi, 2).tolist()
        self._movers = self._draw_movers(rng)

    @property
    def num_frames(self) -> int:
        return round(self.settings.duration_s * self.settings.fps)

    def __iter__(self) -> Iterator[MovingFrame]:
        for index in range(self.num_frames):
            yield self.frame(index / self.settings.fps)

    def frame(self, time_s: float) -> MovingFrame:
        """Compose the frame at a time from the start."""
        width, height = self.settings.size
        pan_x, pan_y = self._camera(time_s)
        origin = np.array([[1.0, 0.0, -pan_x], [0.0, 1.0, -pan_y]])
        rgb = np.asarray(cv2.warpAffine(self._backdrop, origin, (width, height)), np.uint8)
        occupancy = Occupancy(width, height)
        standing: list[int] = []
        for index, mover in enumerate(self._movers):
            x, y, pose = mover.at(time_s)
            centre = (x + self._margin[0] - pan_x, y + self._margin[1] - pan_y)
            sprite = self._atlas.sprites[self._row][mover.concept]
            content = self._atlas.content(self._row, mover.concept)
            patch = draw_sprite(sprite, content, pose, self._look, centre)
            # No least visibility here: in motion, objects do pass behind others and out of sight.
            if occupancy.try_add(patch, int(np.count_nonzero(patch.mask)), 0.0):
                paste(rgb, patch, self._look.shadow)
                standing.append(index)
        present = np.flatnonzero(occupancy.visible_fraction() >= self.settings.min_visible)
        shown = [standing[position] for position in present.tolist()]
        return MovingFrame(
            time_s,
            rgb,
            occupancy.visible_boxes()[present],
            np.array([self._movers[index].concept for index in shown], np.int64),
            np.array([index + 1 for index in shown], np.int64),
        )

    def _draw_backdrop(self, rng: np.random.Generator, backdrops: Backdrops) -> NDArray[np.uint8]:
        width = self.settings.size[0] + 2 * self._margin[0]
        height = self.settings.size[1] + 2 * self._margin[1]
        if self.settings.calm:
            return backdrops.calm(rng, width, height)
        return backdrops.draw(rng, width, height, self.settings.photo_probability)

    def _camera(self, time_s: float) -> tuple[float, float]:
        """Return the top left corner of the frame in backdrop pixels."""
        width, height = self.settings.size
        turn = 2.0 * math.pi * time_s / max(self.settings.duration_s, 1e-6)
        x = self.settings.pan * width * math.sin(turn + self._pan_phase[0])
        y = self.settings.pan * height * math.sin(turn + self._pan_phase[1])
        return self._margin[0] + x, self._margin[1] + y

    def _draw_movers(self, rng: np.random.Generator) -> list[_Mover]:
        settings = self.settings
        width, height = settings.size
        drawable = np.flatnonzero(self._atlas.valid[self._row])
        concepts = settings.concepts
        if concepts is None:
            concepts = tuple(rng.choice(drawable, settings.num_objects).tolist())
        # Starting cells of a grid, shuffled, so that wanderers begin apart from one another.
        columns = math.ceil(math.sqrt(settings.num_objects * width / height))
        rows = math.ceil(settings.num_objects / columns)
        cells = rng.permutation(columns * rows)
        num_crossing = round(settings.crossing * settings.num_objects)
        movers = []
        for index in range(settings.num_objects):
            cell = int(cells[index])
            start = (
                (cell % columns + 0.5) / columns * width,
                (cell // columns + 0.5) / rows * height,
            )
            concept = concepts[index % len(concepts)]
            crossing = index >= settings.num_objects - num_crossing
            movers.append(self._draw_mover(rng, int(concept), start, crossing))
        return movers

    def _draw_mover(
        self, rng: np.random.Generator, concept: int, start: tuple[float, float], crossing: bool
    ) -> _Mover:
        settings = self.settings
        width, height = settings.size
        left, top, right, bottom = self._atlas.content(self._row, concept)
        low, high = settings.object_px
        scale = float(low * (high / low) ** rng.random()) / max(right - left, bottom - top)
        reach = settings.travel * rng.uniform(0.3, 0.7, 2)
        velocity, swing = (0.0, 0.0), (float(reach[0]) * width, float(reach[1]) * height)
        if crossing:
            side = 1.0 if rng.random() < 0.5 else -1.0
            speed = side * width * float(rng.uniform(1.1, 1.6)) / max(settings.duration_s, 1e-6)
            # Somewhere in the middle of the frame at a random moment of the sequence.
            moment = float(rng.uniform(0.3, 0.7)) * settings.duration_s
            start = (width / 2.0 - speed * moment, start[1])
            velocity, swing = (speed, 0.0), (0.0, 0.08 * height)
        periods, phases = rng.uniform(6.0, 14.0, 2), rng.uniform(0.0, 2.0 * math.pi, 2)
        return _Mover(
            concept,
            (right - left) * scale,
            (bottom - top) * scale,
            start,
            velocity,
            swing,
            (float(periods[0]), float(periods[1])),
            (float(phases[0]), float(phases[1])),
            tilt_deg=float(rng.uniform(3.0, 14.0)),
            growth=float(rng.uniform(0.05, 0.18)),
        )


def write_video(
    path: Path, scene: MovingScene, labels: tuple[str, ...], bits_per_s: int = 1_200_000
) -> None:
    """Write the sequence as an MP4, and its ground truth as JSON beside it.

    `labels` are by concept id.
    """
    settings = scene.settings
    # Imported here: scenes are also composed on training machines, which have no codecs.
    from groundstream.video.writer import VideoWriter

    writer = VideoWriter(path, fps=settings.fps, bits_per_s=bits_per_s)
    frames: list[dict[str, Any]] = []
    for index, frame in enumerate(scene):
        writer.write(frame.rgb)
        present = zip(
            frame.track_id.tolist(), frame.concept.tolist(), frame.xyxy.tolist(), strict=True
        )
        objects = [
            {"track_id": track_id, "label": labels[concept], "xyxy": xyxy}
            for track_id, concept, xyxy in present
        ]
        frames.append({"index": index, "time_s": round(frame.time_s, 4), "objects": objects})
    writer.close()
    truth = {
        "video": path.name,
        "fps": settings.fps,
        "width": settings.size[0],
        "height": settings.size[1],
        "frames": frames,
    }
    path.with_suffix(".json").write_text(json.dumps(truth) + "\n", encoding="utf-8")
