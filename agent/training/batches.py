"""Batches of composed scenes as tensors: pixels, boxes, concepts and a few background boxes.

Composition runs in worker processes beside the training step. Knows no model and no question.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from agent.detections import FloatArray, box_iou
from agent.errors import SettingsError
from agent.training.artwork import concept_ids, load_concepts
from agent.training.scenes import Scene, SceneComposer, SceneSettings, load_composer

BACKGROUND = -1
PADDING = -2


def nano_concepts() -> tuple[int, ...]:
    """Concept ids the nano model is trained on, in order of id."""
    return concept_ids(Path(__file__).parent / "nano_concepts.json")


@dataclass(frozen=True)
class Said:
    """What annotators said of a picture beside the names of its boxes."""

    remarks: tuple[tuple[str, int, bool], ...]
    """Words, the row of `truth` they are about, and whether they single it out."""
    present: frozenset[str]
    """Names of things that are there, with a box or without."""
    absent: frozenset[str] | None
    """Names known not to be there; None for all that are not present."""
    incomplete: frozenset[str]
    """Names whose boxes are not all there are."""


@dataclass
class SceneBatch:
    """Scenes of one size."""

    rgb: Tensor
    """(batch, height, width, 3) uint8."""
    boxes: Tensor
    """(batch, num_boxes, 4) float32 xyxy pixels: jittered objects first, then background."""
    classes: Tensor
    """(batch, num_boxes) rank of the concept among those trained on, BACKGROUND or PADDING."""
    truth: Tensor
    """(batch, num_boxes, 4) the objects' exact boxes; zeros elsewhere."""
    said: tuple[Said, ...] | None = None
    """(batch,) for pictures that were annotated; None for composed ones, whose names say all."""


@dataclass(frozen=True)
class BatchSettings:
    """How scenes become batches."""

    artwork: Path
    scenes: SceneSettings
    batch_size: int
    sizes: tuple[tuple[int, int], ...]
    """(width, height) choices, drawn once per batch; multiples of 28."""
    num_background: int = 4
    """Boxes per scene that hold no object."""
    jitter: float = 0.08
    """Deviation of box edges, relative to the box."""
    split: str = "train"
    loader_workers: int = 1


@dataclass(frozen=True)
class PictureSettings:
    """Composed pictures in batches."""

    batch_size: int
    sizes: tuple[tuple[int, int], ...]
    """(width, height) choices, drawn once per batch; whole cells of the model's grid."""
    num_background: int
    """Boxes per picture that hold no object."""
    jitter: float
    """Deviation of box edges, relative to the box."""
    loader_workers: int
    """Processes that compose or read pictures beside each training process."""
    scenes: SceneSettings
    """What a composed picture may look like; its size is that of the batch."""

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.loader_workers < 1 or not self.sizes:
            raise SettingsError("batch_size, loader_workers and sizes must not be empty or zero")

    def require_multiples_of(self, cell: int) -> None:
        """Raises SettingsError unless every side is made of whole cells of a model's grid."""
        for size in self.sizes:
            if any(side % cell or side <= 0 for side in size):
                raise SettingsError(f"size {list(size)} of a picture: use multiples of {cell}")

    def composed(self, artwork: Path, concepts: tuple[int, ...] | None) -> BatchSettings:
        """These batches from the artwork in a folder, of some concepts (None: as `scenes` says)."""
        scenes = self.scenes
        if concepts is not None and scenes.concepts is None:
            scenes = replace(scenes, concepts=concepts)
        return BatchSettings(
            artwork=artwork,
            scenes=scenes,
            batch_size=self.batch_size,
            sizes=self.sizes,
            num_background=self.num_background,
            jitter=self.jitter,
            loader_workers=self.loader_workers,
        )


def batch_numbers(first: int, stride: int) -> Iterator[int]:
    """`first`, `first + stride`, ...; each loader process has its own of them, in turn."""
    process = get_worker_info()
    own, count = (0, 1) if process is None else (process.id, process.num_workers)
    return itertools.count(first + own * stride, stride * count)


class SceneBatches(IterableDataset[SceneBatch]):
    """An endless, seeded stream of batches number `start`, `start + stride`, ..."""

    def __init__(self, settings: BatchSettings, *, start: int = 0, stride: int = 1) -> None:
        self._settings = settings
        self._start, self._stride = start, stride

    def __iter__(self) -> Iterator[SceneBatch]:
        settings = self._settings
        composers = {
            size: load_composer(settings.artwork, replace(settings.scenes, size=size))
            for size in settings.sizes
        }
        rank = np.full(len(load_concepts()), BACKGROUND)
        rank[list(settings.scenes.concepts or range(len(rank)))] = np.arange(
            len(settings.scenes.concepts or rank)
        )
        for number in batch_numbers(self._start, self._stride):
            rng = np.random.default_rng((number, 17))
            size = settings.sizes[int(rng.integers(len(settings.sizes)))]
            yield self._batch(composers[size], rank, rng, number)

    def _batch(
        self, composer: SceneComposer, rank: np.ndarray, rng: np.random.Generator, number: int
    ) -> SceneBatch:
        settings = self._settings
        first = number * settings.batch_size
        scenes = [
            composer.compose_split(settings.split, first + i) for i in range(settings.batch_size)
        ]
        return collate(scenes, rank, rng, settings)


def collate(
    scenes: list[Scene], rank: np.ndarray, rng: np.random.Generator, settings: BatchSettings
) -> SceneBatch:
    """Scenes of one size as one batch."""
    widest = max(len(scene.xyxy) for scene in scenes) + settings.num_background
    boxes = np.zeros((len(scenes), widest, 4), dtype=np.float32)
    boxes[..., 2:] = 8.0
    truth = np.zeros_like(boxes)
    classes = np.full((len(scenes), widest), PADDING)
    for row, scene in enumerate(scenes):
        count = len(scene.xyxy)
        height, width = scene.rgb.shape[:2]
        boxes[row, :count] = jitter_boxes(scene.xyxy, settings.jitter, width, height, rng)
        truth[row, :count] = scene.xyxy
        classes[row, :count] = rank[scene.concept]
        empty = background_boxes(scene.xyxy, settings.num_background, width, height, rng)
        boxes[row, count : count + len(empty)] = empty
        classes[row, count : count + len(empty)] = BACKGROUND
    return SceneBatch(
        torch.from_numpy(np.stack([scene.rgb for scene in scenes])),
        torch.from_numpy(boxes),
        torch.from_numpy(classes),
        torch.from_numpy(truth),
    )


def jitter_boxes(
    xyxy: FloatArray, amount: float, width: int, height: int, rng: np.random.Generator
) -> FloatArray:
    """Boxes with every edge moved by a share of the box, as a proposal network would."""
    sides = np.concatenate([xyxy[:, 2:] - xyxy[:, :2]] * 2, axis=1)
    moved = xyxy + rng.normal(0.0, amount, xyxy.shape) * sides
    limits = np.array([width, height, width, height])
    moved = np.clip(moved, 0, limits)
    bad = (moved[:, 2] - moved[:, 0] < 4) | (moved[:, 3] - moved[:, 1] < 4)
    moved[bad] = xyxy[bad]
    return moved.astype(np.float32)


def background_boxes(
    xyxy: FloatArray, count: int, width: int, height: int, rng: np.random.Generator
) -> FloatArray:
    """At most `count` random boxes that overlap no object by 0.25 or more."""
    centre = rng.uniform((0, 0), (width, height), (4 * count, 2))
    sides = np.exp(rng.uniform(np.log(14), np.log(120), (4 * count, 2)))
    limits = np.array([width, height, width, height])
    boxes = np.concatenate([centre - sides / 2, centre + sides / 2], axis=1)
    boxes = np.clip(boxes, 0, limits).astype(np.float32)
    sound = (boxes[:, 2] - boxes[:, 0] >= 8) & (boxes[:, 3] - boxes[:, 1] >= 8)
    if len(xyxy):
        sound &= box_iou(boxes, xyxy).max(axis=1) < 0.25
    return boxes[sound][:count]


def batch_loader(
    settings: BatchSettings, *, start: int = 0, stride: int = 1
) -> DataLoader[SceneBatch]:
    """Batches composed by worker processes."""
    return loader_of(SceneBatches(settings, start=start, stride=stride), settings.loader_workers)


def loader_of(batches: IterableDataset[SceneBatch], num_workers: int) -> DataLoader[SceneBatch]:
    """Batches in order of their numbers, made beside the process that uses them."""
    return DataLoader(batches, batch_size=None, num_workers=num_workers, prefetch_factor=4)
