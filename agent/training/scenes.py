"""Composes labelled pictures of many objects from an artwork atlas, reproducibly from a seed.

Knows what is drawn and where it is tried, ground truth and its COCO form. It does not know how the
artwork was obtained, how a background is painted, nor anything of questions, tokens or models.
"""

import argparse
import hashlib
import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from agent.training.artwork import (
    ALL_FAMILIES,
    TRAINING_FAMILIES,
    Atlas,
    Concept,
    concept_ids,
    load_backgrounds,
    load_concepts,
    require_training_families,
)
from agent.training.backdrop import Backdrops
from agent.training.moving import MovingScene, MovingSettings, write_video
from agent.training.occupancy import Occupancy
from agent.training.sprites import Look, Patch, Pose, colour_matrix, draw_sprite, paste

log = logging.getLogger(__name__)

SCENES_VERSION = 1
"""Part of every seed: raise it whenever a change alters what a seed composes."""

SPLITS = ("train", "val", "test")
_MIN_MASK_PX = 24
_FIRST_POSITION = 34
_DRAWS_PER_OBJECT = _FIRST_POSITION + 2 * 8


@dataclass(frozen=True)
class SceneSettings:
    """What a scene may look like."""

    size: tuple[int, int] | None = None
    """Fixed (width, height); None draws one per scene."""
    side_px: tuple[int, int] = (256, 448)
    """Range of width and height when drawn; width over height stays within 0.7 to 1.4."""
    num_objects: tuple[int, int] = (3, 30)
    """Objects aimed at, inclusive; a crowded scene may end up with fewer."""
    object_px: tuple[float, float] = (16.0, 160.0)
    """Range of an object's long side, log-uniform; crowded scenes lower the upper end."""
    families: tuple[str, ...] = TRAINING_FAMILIES
    """Artwork to draw from; all must be in the atlas."""
    concepts: tuple[int, ...] | None = None
    """Concept ids to draw from; None for all."""
    min_visible: float = 0.35
    """Least fraction of its pixels that every object keeps unoccluded and inside the frame."""
    photo_probability: float = 0.6
    """Chance of a photograph rather than a procedural background."""
    repeat_probability: float = 0.25
    """Chance that an object repeats a concept already in the scene."""
    one_family_probability: float = 0.3
    """Chance that a whole scene is drawn from a single family."""
    overlap_probability: float = 0.2
    """Chance that an object is placed close to another rather than apart."""
    truncate_probability: float = 0.08
    """Chance that an object may stick out of the frame."""
    restyle_probability: float = 0.8
    """Chance that an object's colours are changed at all."""
    degrade_probability: float = 0.85
    """Chance that camera faults are applied to the finished picture."""


@dataclass(frozen=True)
class Scene:
    """A picture and what stands in it, in drawing order (last is nearest)."""

    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    xyxy: NDArray[np.float32]
    """(N, 4) boxes around the visible pixels, in pixels."""
    concept: NDArray[np.int64]
    """(N,) concept ids."""
    family: NDArray[np.int64]
    """(N,) indices into `ALL_FAMILIES`."""
    visible: NDArray[np.float32]
    """(N,) fraction of each object's pixels that can be seen."""


def scene_seed(split: str, index: int) -> int:
    """Return the 63 bit seed of one scene; the top bits name the split, so splits never meet.

    Raises ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}, expected one of {', '.join(SPLITS)}")
    digest = hashlib.blake2b(f"{split}/{index}".encode(), digest_size=8).digest()
    return (SPLITS.index(split) << 61) | (int.from_bytes(digest, "big") >> 3)


class SceneComposer:
    """Composes scenes from an atlas, background photographs and settings."""

    def __init__(
        self,
        atlas: Atlas,
        backgrounds: tuple[NDArray[np.uint8], ...],
        settings: SceneSettings | None = None,
    ) -> None:
        """Raise ValueError if the settings name a family or concept that the atlas lacks."""
        self.settings = settings or SceneSettings()
        self._atlas = atlas
        self._backdrops = Backdrops(backgrounds)
        unknown = set(self.settings.families) - set(atlas.families)
        if unknown or not self.settings.families:
            raise ValueError(f"families not in the atlas: {', '.join(sorted(unknown)) or 'none'}")
        wanted = self.settings.concepts
        self._rows = [atlas.families.index(family) for family in self.settings.families]
        self._drawable = []
        for row in self._rows:
            ids = np.flatnonzero(atlas.valid[row])
            self._drawable.append(ids if wanted is None else np.intersect1d(ids, wanted))
        if any(len(ids) == 0 for ids in self._drawable):
            raise ValueError("a family has no drawing of any wanted concept")
        # One scene per process at a time: OpenCV's threads would only contend with one another.
        cv2.setNumThreads(1)

    def compose(self, seed: int) -> Scene:
        """Compose the scene of a seed; the same seed, settings and artwork give the same scene."""
        settings = self.settings
        rng = np.random.default_rng((SCENES_VERSION, seed))
        width, height = settings.size or _draw_size(rng, settings.side_px)
        rgb = self._backdrops.draw(rng, width, height, settings.photo_probability)
        occupancy = Occupancy(width, height)
        num_wanted = int(rng.integers(settings.num_objects[0], settings.num_objects[1] + 1))
        largest = _largest_px(settings, num_wanted, width, height)
        only = int(rng.integers(len(self._rows)))
        one_family = rng.random() < settings.one_family_probability
        concepts: list[int] = []
        families: list[int] = []
        # All the randomness of an object at once: single draws would cost as much as drawing it.
        for draw in rng.random((num_wanted, _DRAWS_PER_OBJECT)).tolist():
            choice = only if one_family else int(draw[0] * len(self._rows))
            concept = self._choose_concept(choice, draw, concepts)
            patch, shadow = self._draw_object(choice, concept, draw, largest)
            standing = self._place(patch, occupancy, draw)
            if standing is not None:
                paste(rgb, standing, shadow)
                concepts.append(concept)
                families.append(ALL_FAMILIES.index(settings.families[choice]))
        if rng.random() < settings.degrade_probability:
            rgb = self._backdrops.degrade(rng, rgb)
        return Scene(
            rgb,
            occupancy.visible_boxes(),
            np.array(concepts, np.int64),
            np.array(families, np.int64),
            occupancy.visible_fraction(),
        )

    def compose_split(self, split: str, index: int) -> Scene:
        """Compose one scene of a split.

        Raises ValueError for an unknown split, or for "train" with a held-out family.
        """
        if split == "train":
            require_training_families(self.settings.families)
        return self.compose(scene_seed(split, index))

    def _choose_concept(self, choice: int, draw: list[float], earlier: list[int]) -> int:
        ids = self._drawable[choice]
        if earlier and draw[1] < self.settings.repeat_probability:
            concept = earlier[int(draw[2] * len(earlier))]
            if self._atlas.valid[self._rows[choice], concept]:
                return concept
        return int(ids[int(draw[2] * len(ids))])

    def _draw_object(
        self, choice: int, concept: int, draw: list[float], largest: float
    ) -> tuple[Patch, float]:
        row = self._rows[choice]
        content = self._atlas.content(row, concept)
        smallest = self.settings.object_px[0]
        long_px = smallest * (largest / smallest) ** draw[3]
        pose = _draw_pose(content, long_px, draw)
        look = _draw_look(draw, long_px, self.settings.restyle_probability)
        return draw_sprite(self._atlas.sprites[row][concept], content, pose, look), look.shadow

    def _place(self, patch: Patch, occupancy: Occupancy, draw: list[float]) -> Patch | None:
        """Return the patch where it now stands, None if anywhere tried would hide too much."""
        x0, y0, x1, y1 = patch.box
        object_w, object_h = x1 - x0, y1 - y0
        room_x, room_y = occupancy.width - object_w, occupancy.height - object_h
        num_px = int(np.count_nonzero(patch.mask))
        if num_px < _MIN_MASK_PX or room_x <= 0 or room_y <= 0:
            return None
        crowd = len(occupancy) > 0 and draw[31] < self.settings.overlap_probability
        positions = np.array(draw[_FIRST_POSITION:]).reshape(-1, 2)
        if crowd:
            near = occupancy.window(int(draw[32] * len(occupancy)))
            low = np.array([near[0] - object_w, near[1] - object_h], np.float64)
            corners = low + positions * (np.array([near[2], near[3]]) - low)
            corners = np.clip(corners, 0.0, [room_x, room_y])
        else:
            overflow = 0.4 if draw[30] < self.settings.truncate_probability else 0.0
            slack = overflow * np.array([object_w, object_h])
            corners = positions * (np.array([room_x, room_y]) + 2.0 * slack) - slack
        corners = np.floor(corners)
        if len(occupancy) > 0 and not crowd:
            order = occupancy.crowding(corners, (object_w, object_h)).argsort(kind="stable")
            corners = corners[order[:2]]
        for x, y in corners.astype(np.int64).tolist():
            moved = patch.moved(x - x0 - patch.left, y - y0 - patch.top)
            if occupancy.try_add(moved, num_px, self.settings.min_visible):
                return moved
        return None


def _draw_size(rng: np.random.Generator, side_px: tuple[int, int]) -> tuple[int, int]:
    width = int(rng.integers(side_px[0], side_px[1] + 1))
    low, high = max(side_px[0], int(width / 1.4) + 1), min(side_px[1], int(width / 0.7))
    return width, int(rng.integers(low, high + 1))


def _largest_px(settings: SceneSettings, num_objects: int, width: int, height: int) -> float:
    # Thirty objects of the full range do not fit: past a point, more means smaller.
    fitting = 1.6 * float(np.sqrt(0.7 * width * height / num_objects))
    smallest, largest = settings.object_px
    return max(smallest * 1.5, min(largest, fitting, 0.9 * min(width, height)))


def _draw_pose(content: tuple[int, ...], long_px: float, draw: list[float]) -> Pose:
    angle = 360.0 * draw[5] if draw[4] < 0.1 else 24.0 * (draw[5] + draw[6] - 1.0)
    stretch = 1.0 + 0.22 * (draw[7] + draw[8] - 1.0)
    width, height = (content[2] - content[0]) * stretch, (content[3] - content[1]) / stretch
    scale = long_px / max(width, height)
    # Never thinner than three pixels, or a bar would vanish between sampling points.
    return Pose(max(3.0, width * scale), max(3.0, height * scale), angle, draw[9] < 0.5)


def _draw_look(draw: list[float], long_px: float, restyle_probability: float) -> Look:
    if draw[10] >= restyle_probability:
        return Look()
    strong_hue = draw[11] < 0.1
    saturation = 0.0 if draw[12] < 0.05 else 0.55 + 0.8 * draw[13]
    matrix = colour_matrix(
        hue_deg=360.0 * draw[14] if strong_hue else 36.0 * (draw[14] + draw[15] - 1.0),
        saturation=saturation,
        brightness=0.75 + 0.4 * draw[16],
        contrast=0.7 + 0.5 * draw[17],
        gains=(0.9 + 0.2 * draw[18], 0.9 + 0.2 * draw[19], 0.9 + 0.2 * draw[20]),
    )
    outline = max(1, int(long_px * (0.02 + 0.03 * draw[22]))) if draw[21] < 0.1 else 0
    grey = int(255 * draw[24])
    rim = (255, 255, 255) if draw[23] < 0.5 else (0, 0, 0) if draw[23] < 0.7 else (grey,) * 3
    return Look(
        colour=matrix,
        posterise=3 + int(4 * draw[26]) if draw[25] < 0.07 else 0,
        blur_px=0.5 + long_px * 0.01 * draw[28] if draw[27] < 0.06 else 0.0,
        outline_px=outline,
        outline_rgb=rim,
        shadow=0.25 + 0.45 * draw[29] if draw[33] < 0.18 else 0.0,
    )


def load_composer(cache_dir: Path, settings: SceneSettings) -> SceneComposer:
    """Return a composer over the artwork and photographs in a cache directory."""
    atlas = Atlas.load(cache_dir, settings.families)
    return SceneComposer(atlas, load_backgrounds(cache_dir), settings)


def write_coco(
    directory: Path,
    scenes: Iterable[Scene],
    concepts: tuple[Concept, ...],
    *,
    chosen: tuple[int, ...] | None = None,
) -> None:
    """Write scenes as a COCO detection set: `annotations.json` and `images/*.jpg`.

    File names in the annotations are relative to `directory`. Every concept (of `chosen`, if
    given) is a category, with its id plus one, because 0 is not a category in COCO.
    """
    (directory / "images").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, scene in enumerate(scenes, start=1):
        name = f"images/{image_id:06d}.jpg"
        bgr = cv2.cvtColor(scene.rgb, cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(directory / name), bgr, [cv2.IMWRITE_JPEG_QUALITY, 90])
        height, width = scene.rgb.shape[:2]
        images.append({"id": image_id, "file_name": name, "width": width, "height": height})
        for (x0, y0, x1, y1), concept in zip(
            scene.xyxy.tolist(), scene.concept.tolist(), strict=True
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image_id,
                    "category_id": concept + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
    listed = range(len(concepts)) if chosen is None else chosen
    categories = [{"id": k + 1, "name": concepts[k].label} for k in listed]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (directory / "annotations.json").write_text(json.dumps(document) + "\n", encoding="utf-8")


def main() -> None:
    """Write composed scenes, or a moving scene, with their ground truth."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    coco = commands.add_parser("coco", help="a COCO detection set")
    coco.add_argument("--num", type=int, default=200, help="number of scenes")
    coco.add_argument("--split", choices=SPLITS, default="val")
    coco.add_argument("--labels-file", type=Path, help="JSON list of the only labels to use")
    video = commands.add_parser("video", help="a moving scene as MP4, with tracks as JSON")
    video.add_argument("--size", type=int, nargs=2, default=(480, 360), metavar=("W", "H"))
    video.add_argument("--fps", type=float, default=15.0)
    video.add_argument("--duration-s", type=float, default=10.0)
    video.add_argument("--num-objects", type=int, default=8)
    video.add_argument("--object-px", type=float, nargs=2, default=(50.0, 130.0))
    video.add_argument("--labels", help="comma-separated concept labels, one per object")
    video.add_argument("--calm", action="store_true", help="a pale background, soft shadows")
    for command in (coco, video):
        command.add_argument("--out", type=Path, required=True)
        command.add_argument("--families", default=",".join(TRAINING_FAMILIES))
        command.add_argument("--seed", type=int, default=0, help="first scene index, or video seed")
        command.add_argument("--cache-dir", type=Path, default=Path(".artwork"))
    arguments = parser.parse_args()
    families = tuple(arguments.families.split(","))
    if arguments.command == "coco":
        chosen = concept_ids(arguments.labels_file) if arguments.labels_file else None
        settings = SceneSettings(families=families, concepts=chosen)
        composer = load_composer(arguments.cache_dir, settings)
        indices = range(arguments.seed, arguments.seed + arguments.num)
        scenes = (composer.compose_split(arguments.split, index) for index in indices)
        write_coco(arguments.out, scenes, load_concepts(), chosen=chosen)
    else:
        _write_video(arguments, families)


def _write_video(arguments: argparse.Namespace, families: tuple[str, ...]) -> None:
    labels = tuple(concept.label for concept in load_concepts())
    wanted = arguments.labels.split(",") if arguments.labels else None
    settings = MovingSettings(
        size=tuple(arguments.size),
        fps=arguments.fps,
        duration_s=arguments.duration_s,
        num_objects=len(wanted) if wanted else arguments.num_objects,
        object_px=tuple(arguments.object_px),
        families=families,
        concepts=tuple(labels.index(label) for label in wanted) if wanted else None,
        calm=arguments.calm,
    )
    atlas = Atlas.load(arguments.cache_dir, families)
    # No photographs: a video written here may be published, and their licences differ.
    write_video(arguments.out, MovingScene(atlas, (), settings, arguments.seed), labels)


if __name__ == "__main__":
    main()
