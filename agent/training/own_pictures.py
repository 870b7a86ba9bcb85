"""Batches of annotated pictures, in the form of composed ones.

A batch has one size, so each picture belongs to the size whose shape is nearest to its own, and
is scaled to it. Knows no file format and no question.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from torch.utils.data import DataLoader, IterableDataset

from agent.errors import InvalidFrame, SourceError
from agent.frame import load_frame
from agent.training.annotations import AnnotatedPicture, AnnotatedPictures
from agent.training.batches import (
    BACKGROUND,
    BatchSettings,
    Said,
    SceneBatch,
    batch_numbers,
    collate,
    loader_of,
)
from agent.training.scenes import Scene

logger = logging.getLogger(__name__)
_LEAST_SIDE_PX = 4.0
"""Of a box, in the batch's pixels: below it there is nothing left to see."""
_SEED = 29


def scaled_boxes(picture: AnnotatedPicture, size: tuple[int, int]) -> AnnotatedPicture:
    """The picture's boxes at another (width, height), without those that become too small."""
    ratio = np.array([size[0] / picture.width, size[1] / picture.height] * 2, dtype=np.float32)
    xyxy = picture.xyxy * ratio
    kept = np.all(xyxy[:, 2:] - xyxy[:, :2] >= _LEAST_SIDE_PX, axis=1).tolist()
    rank = np.cumsum(kept) - 1
    lost = frozenset(name for name, here in zip(picture.names, kept, strict=True) if not here)
    return replace(
        picture,
        xyxy=xyxy[kept],
        names=tuple(name for name, here in zip(picture.names, kept, strict=True) if here),
        remarks=tuple(
            replace(remark, box=int(rank[remark.box]))
            for remark in picture.remarks
            if kept[remark.box]
        ),
        incomplete=picture.incomplete | lost,
    )


class PictureBatches(IterableDataset[SceneBatch]):
    """An endless, seeded stream of batches number `first`, `first + stride`, ...

    Each batch draws its size by the share of pictures that belong to it, then its pictures. One
    that cannot be read is logged once and another takes its place.

    Raises:
        SourceError: while reading, if no picture of a size can be read.
    """

    def __init__(
        self,
        data: AnnotatedPictures,
        ranks: dict[str, int],
        settings: BatchSettings,
        *,
        first: int = 0,
        stride: int = 1,
    ) -> None:
        self._ranks, self._settings = ranks, settings
        self._first, self._stride = first, stride
        self._groups: dict[tuple[int, int], list[AnnotatedPicture]] = {}
        for picture in data.pictures:
            size = nearest_size(picture, settings.sizes)
            self._groups.setdefault(size, []).append(picture)
        self._unreadable: set[Path] = set()

    def __iter__(self) -> Iterator[SceneBatch]:
        sizes = list(self._groups)
        shares = np.array([len(self._groups[size]) for size in sizes], dtype=np.float64)
        shares /= shares.sum()
        for number in batch_numbers(self._first, self._stride):
            rng = np.random.default_rng((number, _SEED))
            yield self._batch(sizes[int(rng.choice(len(sizes), p=shares))], rng)

    def _batch(self, size: tuple[int, int], rng: np.random.Generator) -> SceneBatch:
        group = self._groups[size]
        scenes: list[Scene] = []
        said: list[Said] = []
        while len(scenes) < self._settings.batch_size:
            # All of a small group before any twice.
            for index in rng.permutation(len(group)):
                if len(scenes) == self._settings.batch_size:
                    break
                rgb = self._read(group[index], size)
                if rgb is not None:
                    picture = scaled_boxes(group[index], size)
                    scenes.append(self._scene(rgb, picture))
                    said.append(words_of(picture))
            if not scenes:
                raise SourceError(f"none of {len(group)} pictures can be read as annotated")
        ranks = np.array([*range(len(self._ranks)), BACKGROUND])
        return replace(collate(scenes, ranks, rng, self._settings), said=tuple(said))

    def _scene(self, rgb: np.ndarray, picture: AnnotatedPicture) -> Scene:
        count = len(picture.names)
        # A box without a name takes the last rank, which is the background's.
        concept = [self._ranks.get(name, len(self._ranks)) for name in picture.names]
        nothing = np.zeros(count, dtype=np.int64)
        return Scene(
            rgb, picture.xyxy, np.array(concept, np.int64), nothing, np.ones(count, np.float32)
        )

    def _read(self, picture: AnnotatedPicture, size: tuple[int, int]) -> np.ndarray | None:
        if picture.path in self._unreadable:
            return None
        try:
            rgb = load_frame(picture.path).rgb()
        except InvalidFrame as error:
            self._refuse(picture, str(error))
            return None
        if rgb.shape[:2] != (picture.height, picture.width):
            self._refuse(
                picture,
                f"it is {rgb.shape[1]}x{rgb.shape[0]} pixels, but annotated as "
                f"{picture.width}x{picture.height}",
            )
            return None
        shrinks = size[0] < picture.width
        return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)

    def _refuse(self, picture: AnnotatedPicture, why: str) -> None:
        self._unreadable.add(picture.path)
        logger.warning("left out %s: %s", picture.path, why)


def nearest_size(picture: AnnotatedPicture, sizes: tuple[tuple[int, int], ...]) -> tuple[int, int]:
    """The (width, height) of nearest shape, and among those the nearest in pixels."""
    shape = np.log(picture.width / picture.height)
    area = np.log(picture.width * picture.height)
    off = [
        (round(abs(float(np.log(width / height) - shape)), 6), abs(np.log(width * height) - area))
        for width, height in sizes
    ]
    return sizes[min(range(len(sizes)), key=off.__getitem__)]


def words_of(picture: AnnotatedPicture) -> Said:
    """What may be asked about a picture."""
    return Said(
        remarks=tuple((r.words, r.box, r.is_referring) for r in picture.remarks),
        present=frozenset(picture.names) | picture.incomplete,
        absent=picture.absent,
        incomplete=picture.incomplete if picture.is_complete else frozenset(picture.names),
    )


def picture_loader(
    data: AnnotatedPictures,
    ranks: dict[str, int],
    settings: BatchSettings,
    *,
    first: int = 0,
    stride: int = 1,
) -> DataLoader[SceneBatch]:
    """Batches read by worker processes."""
    return loader_of(
        PictureBatches(data, ranks, settings, first=first, stride=stride), settings.loader_workers
    )
