"""Experiment: region tokens against boxes printed as numbers, in accuracy and in time.

Three arms of one language model, tuned for as many steps on the same pictures: it is shown region
tokens and answers with them; it is shown region tokens and prints boxes; it sees the picture's own
tokens alone and prints boxes, which needs neither proposals nor a second encoder nor a region
encoder. Times are processor time, which neighbours on the machine do not change much.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from agent.detections import FloatArray, Proposals
from agent.encoders import AuxiliaryEncoderStage, PrimaryEncoderStage
from agent.evaluation.ablations import FULL, Rows
from agent.evaluation.coco_folder import CocoFolder, CocoImage
from agent.evaluation.detection import AskedLabels, match_count
from agent.evaluation.experiment_start import ExperimentStart
from agent.evaluation.seeds import over_seeds
from agent.evaluation.tally import Tally
from agent.frame import Frame, load_frame
from agent.parsing import Answer
from agent.pipeline import Pipeline
from agent.prompts import REGION_TOKEN
from agent.proposer import Proposer
from agent.stages import local_pipeline
from agent.training.grounding import GroundingSetup, freeze_for, save_grounding
from agent.training.mixture import Turn
from agent.training.picture_rehearsal import SeenPicture, rehearse_pictures, seen_pictures

T = TypeVar("T")
_PRINTED = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")
_MOST_LABELS = 4
_NOWHERE = np.zeros((0, 4), dtype=np.float32)
PRINTED, FROM_PICTURE = "printed boxes", "printed boxes, no regions"


async def compare_outputs(start: ExperimentStart, data: CocoFolder, *, num_seeds: int) -> Rows:
    """Figures of the three arms, and what their vision costs a frame."""
    pictures = _pictures(start)
    costs = vision_costs(start, data)
    rows: Rows = {}
    for arm in (FULL, PRINTED, FROM_PICTURE):
        tallies = []
        for seed in range(num_seeds):
            home = start.folder(arm, seed)
            setup = _tuned(start, arm, seed, pictures)
            save_grounding(setup.module, setup.builder.tokenizer, setup.pretrained, home / "model")
            boxes = _NOWHERE if arm == FROM_PICTURE else None
            tallies.append(await measure_output(local_pipeline(str(home / "model")), data, boxes))
        for tally in tallies:
            for image, cost in costs.items():
                for part, spent_ms in cost.parts(regions=arm != FROM_PICTURE).items():
                    tally.add(image, part, spent_ms)
        name = "region tokens" if arm == FULL else arm
        rows[name] = over_seeds(tallies)
    return rows


def _pictures(start: ExperimentStart) -> list[SeenPicture]:
    """Those that the pool of regions was made of."""
    recipe, setup = start.recipe.regions, start.setup
    return seen_pictures(
        setup.module, setup.pool_batches(recipe), recipe.batches, setup.vocabulary, recipe.precision
    )


def _tuned(
    start: ExperimentStart, arm: str, seed: int, pictures: list[SeenPicture]
) -> GroundingSetup:
    if arm != FROM_PICTURE:
        return start.tuned(arm, seed, spell=printed if arm == PRINTED else None)
    setup = start.aligned(seed)
    freeze_for(setup.module, "instruct")
    rehearse_pictures(
        setup.module, setup.builder, pictures, setup.vocabulary, start.settings(seed),
        start.folder(arm, seed), spell=printed,
    )  # fmt: skip
    return setup


def printed(turn: Turn, boxes: FloatArray) -> Turn:
    """The same turn with each region of its answer printed as hundredths of the picture."""

    def numbers(match: re.Match[str]) -> str:
        box = np.clip(np.round(boxes[int(match.group(1))] * 100), 0, 99).astype(int)
        return "[" + ",".join(map(str, box)) + "]"

    return replace(turn, answer=REGION_TOKEN.sub(numbers, turn.answer))


def printed_boxes(text: str, *, width: int, height: int) -> FloatArray:
    """(n, 4) pixels of the boxes that an answer prints, at the middle of each hundredth."""
    found = [[int(number) for number in box] for box in _PRINTED.findall(text)]
    size = np.array([width, height, width, height], dtype=np.float32)
    return np.asarray((np.array(found).reshape(-1, 4) + 0.5) / 100 * size, dtype=np.float32)


async def measure_output(
    pipeline: Pipeline, data: CocoFolder, boxes: FloatArray | None = None
) -> Tally:
    """Searches one by one: what is found at IoU 0.5, and what an answer costs.

    Args:
        boxes: what is shown in place of proposals.
    """
    tally = Tally()
    for image in data.images:
        rng = np.random.default_rng((37, image.image_id))
        asked = AskedLabels.draw(image, data, rng, most=_MOST_LABELS)
        frame = load_frame(image.path)
        features, _ = await pipeline.features(frame, boxes=boxes)
        for label, task in zip(asked.categories, asked.tasks(data), strict=True):
            began = time.process_time()
            grounding = await pipeline.ground(frame, [task], reuse=features)
            spent_ms = 1e3 * (time.process_time() - began)
            (answer,) = grounding.answers
            _count(tally, image, label, answer, absent=label in asked.absent)
            tally.add(str(image.image_id), "passes", answer.num_passes)
            tally.add(str(image.image_id), "language_ms", spent_ms)
    return tally


def _count(tally: Tally, image: CocoImage, label: int, answer: Answer, *, absent: bool) -> None:
    name, found = str(image.image_id), answer.detections.xyxy
    if not len(found):
        found = printed_boxes(answer.text, width=image.width, height=image.height)
    if absent:
        tally.add(name, "false_positives", len(found) > 0)
        return
    truth = image.xyxy[np.array(image.category) == label]
    right = match_count(found, -np.arange(len(found), dtype=np.float32), truth)
    tally.add(name, "precision", right, len(found))
    tally.add(name, "recall", right, len(truth))
    tally.add(name, "f1", 2 * right, len(found) + len(truth))


@dataclass(frozen=True)
class VisionCost:
    """Processor milliseconds of one frame's vision."""

    proposals: float
    primary: float
    """The VLM's own tower, which every arm needs."""
    auxiliary: float
    regions: float
    """Pyramid and pooling of both encoders."""

    def parts(self, *, regions: bool) -> dict[str, float]:
        """What is needed for region tokens, or by a model that sees the picture alone."""
        needed = vars(self) if regions else {"primary": self.primary}
        return {f"{part}_ms": spent_ms for part, spent_ms in needed.items()}


def vision_costs(start: ExperimentStart, data: CocoFolder) -> dict[str, VisionCost]:
    """By image; the towers are the same in every arm."""
    model = start.home / "aligned-0" / "model"
    setup = start.aligned(0)
    save_grounding(setup.module, setup.builder.tokenizer, setup.pretrained, model)
    return stage_costs(model, data)


def stage_costs(model: Path, data: CocoFolder) -> dict[str, VisionCost]:
    """Every stage of a model's vision, one after the other, frame by frame."""
    proposer = Proposer.from_pretrained(str(model))
    primary = PrimaryEncoderStage.from_pretrained(str(model))
    auxiliary = AuxiliaryEncoderStage.from_pretrained(str(model))

    def cost(frame: Frame) -> VisionCost:
        (found,), proposals_ms = _timed(lambda: proposer.propose([frame]))
        (maps,), primary_ms = _timed(lambda: primary.start([frame]))
        (levels,), auxiliary_ms = _timed(lambda: auxiliary.start([frame]))

        def pool(boxes: Proposals = found) -> None:
            primary.pool(maps, boxes)
            auxiliary.pool(levels, boxes)

        _, regions_ms = _timed(pool)
        return VisionCost(proposals_ms, primary_ms, auxiliary_ms, regions_ms)

    frames = [load_frame(image.path) for image in data.images]
    cost(frames[0])  # the first run of a stage also sets it up
    return {
        str(image.image_id): cost(frame) for image, frame in zip(data.images, frames, strict=True)
    }


def _timed(run: Callable[[], T]) -> tuple[T, float]:
    began = time.process_time()
    result = run()
    return result, 1e3 * (time.process_time() - began)
