"""What reinforcement practises on: contact sheets of composed high-resolution scenes.

Each sheet is one that region zoom would show the language model, with the truth about every region.
Vision stays as it is while the language model is trained, so sheets are computed once. Knows no
rewards.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from agent.crops import Look, cut, plan_looks
from agent.detections import FloatArray, IntArray, Proposals, box_iou
from agent.features import FrameFeatures
from agent.frame import Frame, frame_from_rgb
from agent.parsing import parse_answer
from agent.pipeline import Pipeline
from agent.prompts import Task
from agent.settings import ZoomSettings
from agent.stages import LocalStages
from agent.training.artwork import everyday_concepts
from agent.training.scenes import Scene, SceneComposer, SceneSettings, load_composer
from agent.zoom import RegionZoom, crop_rules
from agent.zoom_policy import Arrangement

logger = logging.getLogger(__name__)
SIZE = (2048, 1536)
_LONGEST_PX = 448
"""Longest side of a sheet: what small models see unreduced."""
_SAME_OBJECT_IOU = 0.5


def high_resolution_composer(artwork: Path) -> SceneComposer:
    """Scenes of 2048 x 1536 with 6 to 12 things of 24 to 48 px.

    Args:
        artwork: folder of `groundstream train artwork`.
    """
    settings = SceneSettings(
        size=SIZE, num_objects=(6, 12), object_px=(24.0, 48.0), concepts=everyday_concepts()
    )
    return load_composer(artwork, settings)


@dataclass(frozen=True)
class Sheet:
    """One contact sheet and the truth about it; boxes in pixels of the scene."""

    features: FrameFeatures
    crops: FloatArray
    """(num_regions, 4) what each region's cell shows of the scene."""
    concepts: IntArray
    """(num_regions,) concept of the object each region is, -1 for none."""
    objects: FloatArray
    """(num_objects, 4) everything in the scene."""
    object_concepts: IntArray
    size: tuple[int, int]
    """(width, height) of the scene."""
    said_alone: tuple[str, ...] = ()
    """What the verifying model called each region in a prompt that held no other."""

    def showing(self, rows: IntArray) -> Sheet:
        """The same with these regions only, in this order."""
        return replace(
            self,
            features=self.features.select(rows),
            crops=self.crops[rows],
            concepts=self.concepts[rows],
            said_alone=tuple(self.said_alone[row] for row in rows) if self.said_alone else (),
        )

    def regions_of(self, concept: int) -> set[int]:
        """The regions that are the right answer to a search."""
        return set(np.flatnonzero(self.concepts == concept).tolist())


class SheetMaker:
    """Looks at scenes as region zoom does: scout, crop, lay side by side."""

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._zoomer = RegionZoom(pipeline)
        self._settings = ZoomSettings()
        self._rules = crop_rules(self._settings)

    async def sheets(self, scene: Scene) -> list[Sheet]:
        """The sheets of one scene."""
        frame = frame_from_rgb(scene.rgb)
        found = await self._zoomer.scout(frame, scene.rgb)
        looks = plan_looks(
            found.xyxy, Arrangement.SHEET, frame=(frame.width, frame.height),
            longest_px=_LONGEST_PX, budget_tokens=self._settings.vision_tokens,
            rules=self._rules,
        )  # fmt: skip
        return [await self._sheet(scene, frame, look, found.xyxy) for look in looks]

    async def _sheet(self, scene: Scene, frame: Frame, look: Look, boxes: FloatArray) -> Sheet:
        picture = cut(scene.rgb, look, frame)
        features, _ = await self._pipeline.features(picture, boxes=look.given(boxes))
        return Sheet(
            features,
            np.array([crop.box for crop in look.crops], dtype=np.float32),
            concepts_of(boxes[list(look.wanted)], scene),
            scene.xyxy,
            scene.concept.astype(np.int64),
            (frame.width, frame.height),
        )


def concepts_of(boxes: FloatArray, scene: Scene) -> IntArray:
    """(n,) the concept of the object that each box is (IoU 0.5); every object once, at its best."""
    found = np.full(len(boxes), -1, dtype=np.int64)
    overlap = box_iou(boxes, scene.xyxy)
    for column in range(overlap.shape[1] if overlap.size else 0):
        best = int(overlap[:, column].argmax())
        if overlap[best, column] >= _SAME_OBJECT_IOU:
            found[best] = scene.concept[column]
    return found


async def verified(stages: LocalStages, sheets: Sequence[Sheet]) -> list[Sheet]:
    """The sheets with what the stages say of each region alone."""
    task = Task.describe_region(0)

    async def said(features: FrameFeatures) -> str:
        written = await stages.answer(features, task)
        return parse_answer(task, written, features.proposals).reply

    found = []
    for sheet in sheets:
        rows = range(len(sheet.crops))
        alone = [sheet.features.select(np.array([row])) for row in rows]
        found.append(replace(sheet, said_alone=tuple(await asyncio.gather(*map(said, alone)))))
    return found


async def make_sheets(
    maker: SheetMaker, composer: SceneComposer, split: str, numbers: range
) -> list[Sheet]:
    """The sheets of some scenes, not yet `verified`."""
    sheets: list[Sheet] = []
    for number in numbers:
        sheets += await maker.sheets(composer.compose_split(split, number))
        if (number - numbers.start) % 20 == 19:
            logger.info("%d scenes, %d sheets", number - numbers.start + 1, len(sheets))
    return sheets


def save_sheets(sheets: list[Sheet], path: Path) -> None:
    """Keep them for another run."""
    partial = path.with_suffix(".partial")
    torch.save([_as_tensors(sheet) for sheet in sheets], partial)
    partial.replace(path)


def load_sheets(path: Path) -> list[Sheet]:
    """What `save_sheets` wrote."""
    return [_from_tensors(row) for row in torch.load(path, weights_only=True)]


def _as_tensors(sheet: Sheet) -> dict[str, Any]:
    features = sheet.features
    row = {**vars(features), **vars(features.proposals), **vars(sheet)}
    del row["features"], row["proposals"]
    return {
        name: torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for name, value in row.items()
    }


def _from_tensors(row: dict[str, Any]) -> Sheet:
    values: dict[str, Any] = {
        name: value.numpy() if isinstance(value, torch.Tensor) else value
        for name, value in row.items()
    }
    boxes = {one.name: values.pop(one.name) for one in fields(Proposals) if one.name in values}
    proposals = Proposals(**boxes)
    names = {one.name for one in fields(FrameFeatures)} - {"proposals"}
    features = FrameFeatures(proposals=proposals, **{name: values.pop(name) for name in names})
    return Sheet(features=features, **values)
