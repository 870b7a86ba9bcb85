"""Class evidence of real pictures, for scenes whose boxes crowd and overlap as real ones do.

No labels are needed: what a region may be called follows from its evidence. `collect` runs the
vision parts over a folder of pictures; `EvidenceBank` draws scenes from what was collected, half of
them with their classes exchanged for others, so that a few pictures show every class. Knows no
language model.

    groundstream train evidence --images DIR --output evidence.npz
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from numpy.typing import NDArray

from agent.frame import RGBArray, load_frame
from agent.model.appearance import appearance_map, pool_appearance
from agent.model.efficientnet import EfficientNetLite0
from agent.model.name_mixture import NUM_COCO, NUM_IMAGENET
from agent.model.nanodet import NanoDet
from agent.training.symbolic_scenes import SceneRegion
from agent.vocabulary import COLOURS, Vocabulary
from groundstream.errors import SettingsError
from groundstream.video.pictures import IMAGE_SUFFIXES

Array = NDArray[np.float32]
_FIELDS = ("coco", "imagenet", "appearance", "boxes")
_LEAST_SCORE, _NMS_IOU, _MOST_BOXES = 0.08, 0.6, 100
_LEAST_BOXES = 3
"""A view with fewer teaches nothing."""


def collect(images: Path, weights: Path, output: Path, *, views: int, seed: int) -> int:
    """Write the evidence of every picture in a folder.

    Args:
        images: folder with pictures, searched to any depth.
        weights: folder with the vision parts' weights.
        output: `.npz` to write.
        views: of each picture: itself, then parts of it, some of them mirrored.
        seed: chooses the parts.

    Returns:
        How many views have boxes enough.

    Raises:
        SettingsError: there is no picture in the folder, or none with boxes enough.
    """
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    if not paths:
        raise SettingsError(f"{images} holds no picture (.jpg, .png or .webp)")
    detector = NanoDet.from_file(weights / "nanodet.safetensors")
    classifier = EfficientNetLite0.from_file(weights / "efficientnet_lite0.safetensors")
    dice = np.random.default_rng(seed)
    found: list[tuple[Array, ...]] = []
    for path in paths:
        for view in _views(load_frame(path).rgb(), views, dice):
            evidence = _evidence(view, detector, classifier)
            if evidence is not None:
                found.append(evidence)
    if not found:
        raise SettingsError(f"no picture in {images} shows as many as {_LEAST_BOXES} boxes")
    coco, imagenet, appearance, boxes = (
        np.concatenate([one[k] for one in found]).astype(np.float16) for k in range(len(_FIELDS))
    )
    np.savez_compressed(
        output, counts=np.array([len(one[0]) for one in found]),
        coco=coco, imagenet=imagenet, appearance=appearance, boxes=boxes,
    )  # fmt: skip
    return len(found)


def _views(rgb: RGBArray, count: int, dice: np.random.Generator) -> Iterator[RGBArray]:
    yield rgb.copy()
    height, width = rgb.shape[:2]
    for _ in range(count - 1):
        share = dice.uniform(0.5, 0.95)
        high, wide = max(1, int(share * height)), max(1, int(share * width))
        top, left = dice.integers(height - high + 1), dice.integers(width - wide + 1)
        part = rgb[top : top + high, left : left + wide]
        yield np.ascontiguousarray(part[:, ::-1] if dice.random() < 0.5 else part)


@torch.inference_mode()
def _evidence(
    rgb: RGBArray, detector: NanoDet, classifier: EfficientNetLite0
) -> tuple[Array, Array, Array, Array] | None:
    """(n, 80) scores, (n, 1000) probabilities, (n, 16) appearance and (n, 4) boxes in 0..1.

    None where there are too few boxes to teach anything.
    """
    height, width = rgb.shape[:2]
    proposals = detector.look(rgb).propose(
        score_threshold=_LEAST_SCORE, nms_iou=_NMS_IOU, max_boxes=_MOST_BOXES
    )
    boxes = proposals.xyxy.float()
    if len(boxes) < _LEAST_BOXES:
        return None
    probabilities, _ = classifier.describe(classifier.look(rgb), boxes)
    appearance = pool_appearance(appearance_map(rgb), boxes, (width, height))
    relative = boxes / torch.tensor([width, height, width, height])
    return (proposals.evidence.numpy(), probabilities.numpy(), appearance.numpy(),
            relative.numpy())  # fmt: skip


@dataclass(frozen=True)
class EvidenceBank:
    """Views of real pictures as lists of regions, the surest first."""

    views: tuple[tuple[SceneRegion, ...], ...]

    @classmethod
    def read(cls, path: Path) -> EvidenceBank:
        """What `collect` wrote.

        Raises:
            SettingsError: the file is not of that kind.
        """
        try:
            with np.load(path) as stored:
                coco, imagenet, appearance, boxes = (
                    stored[name].astype(np.float32) for name in _FIELDS
                )
                ends = np.cumsum(stored["counts"])
        except (OSError, ValueError, KeyError, BadZipFile) as error:
            raise SettingsError(
                f"{path} holds no evidence: write it with `groundstream train evidence`"
            ) from error
        regions = [
            SceneRegion(
                coco[k], imagenet[k], appearance[k],
                int(appearance[k, : len(COLOURS)].argmax()), boxes[k],
            )
            for k in range(len(coco))
        ]  # fmt: skip
        starts = [0, *ends[:-1].tolist()]
        return cls(tuple(tuple(regions[a:b]) for a, b in zip(starts, ends.tolist(), strict=True)))

    def draw(self, count: int, dice: np.random.Generator) -> Sequence[SceneRegion]:
        """Regions of one view, at most so many: the surest, or any."""
        view = self.views[int(dice.integers(len(self.views)))]
        if len(view) <= count:
            return view
        if dice.random() < 0.5:
            return view[:count]
        return [view[k] for k in np.sort(dice.choice(len(view), count, replace=False))]


class ClassExchange:
    """Exchanges classes for others: the doubts of a picture of people, about zebras.

    A class of the classifier that belongs to one of the detector's goes to one that belongs to the
    class that took its place, where there is one.
    """

    def __init__(self, words: Vocabulary, dice: np.random.Generator) -> None:
        self._dice = dice
        self._inside = [list(thing.imagenet) for thing in words.coco]

    def exchange(self, regions: Sequence[SceneRegion]) -> list[SceneRegion]:
        """The same regions, showing other things."""
        dice = self._dice
        to_coco = dice.permutation(NUM_COCO)
        to_imagenet = dice.permutation(NUM_IMAGENET)
        for number, classes in enumerate(self._inside):
            others = self._inside[int(to_coco[number])]
            if classes and others:
                to_imagenet[classes] = dice.choice(others, len(classes))
        return [
            SceneRegion(
                _moved(region.coco, to_coco), _moved(region.imagenet, to_imagenet),
                region.appearance, region.colour, region.box,
            )
            for region in regions
        ]  # fmt: skip


def _moved(values: Array, places: NDArray[np.int64]) -> Array:
    """Values at other places; what meets there is added up."""
    moved = np.zeros_like(values)
    np.add.at(moved, places, values)
    return moved
