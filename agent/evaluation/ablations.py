"""The paper's experiments that need training, at nano scale; each returns a table of figures.

Knows how to vary the recipe and what to measure; the recipe itself is `agent/training/`.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import FloatArray
from agent.evaluation.coco_folder import CocoFolder
from agent.evaluation.detection import evaluate_detection, match_count
from agent.frame import load_frame
from agent.prompts import REGION_TOKEN, Task
from agent.stages import local_pipeline
from agent.training.batches import PADDING, SceneBatch
from agent.training.grounding import GroundingSetup, batches_from, freeze_for, save_grounding
from agent.training.language import (
    IGNORED,
    LanguagePretraining,
    SymbolicCurriculum,
    forward_packed,
)
from agent.training.mixture import MixtureSettings, Turn
from agent.training.packing import PackedBatch
from agent.training.region_features import RegionPool, fused_regions
from agent.training.rehearsal import RehearsalSettings, Speller, rehearse

_HIDDEN = 256
_PROBE_BATCH = 1024
_PRINTED = re.compile(r"\[(\d+),(\d+),(\d+),(\d+)\]")


@dataclass(frozen=True)
class Spread:
    """A figure over several seeds."""

    mean: float
    deviation: float
    """Standard deviation over seeds (n - 1)."""

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        return cls(float(np.mean(values)), float(np.std(values, ddof=1)))


def compare_encoders(
    setup: GroundingSetup, *, num_train: int, num_val: int, num_seeds: int = 3, steps: int = 1500
) -> dict[str, Spread]:
    """Region classification from hybrid, primary-only and auxiliary-only features (paper, table 6).

    The towers are frozen; a connector of the model's own shape with a classifier is trained on
    each of the three, from each seed.

    Args:
        num_train, num_val: batches of pictures whose regions are used.
    """
    train_x, train_y = _regions(setup, _wild(setup, "train"), num_train)
    val_x, val_y = _regions(setup, _wild(setup, "val"), num_val)
    config = setup.module.model.config
    auxiliary = config.auxiliary_region_width
    columns = {
        "hybrid": slice(0, config.region_width),
        "primary only": slice(auxiliary, config.region_width),
        "auxiliary only": slice(0, auxiliary),
    }
    figures = {}
    for name, part in columns.items():
        known = (train_x[:, part], train_y, val_x[:, part], val_y, len(setup.concepts))
        figures[name] = Spread.of([_probe(*known, seed, steps) for seed in range(num_seeds)])
    return figures


def _wild(setup: GroundingSetup, split: str) -> Iterator[SceneBatch]:
    """Pictures with every camera fault."""
    sizes = ((280, 252), (336, 280), (308, 364))
    settings = replace(setup.settings, sizes=sizes, split=split, num_background=0)
    return batches_from(settings, 3_000_000)


def _regions(
    setup: GroundingSetup, batches: Iterator[SceneBatch], count: int
) -> tuple[Tensor, Tensor]:
    features, classes, _ = fused_regions(setup.module, batches, count)
    known = classes > PADDING
    return features[known], classes[known]


def _probe(
    x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, num_classes: int, seed: int, steps: int
) -> float:
    """Top-1 of a fresh two-layer classifier."""
    torch.manual_seed(seed)
    probe = nn.Sequential(
        nn.Linear(x.shape[1], _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, num_classes)
    )
    optimizer = torch.optim.AdamW(probe.parameters(), lr=2e-3, weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * (1.0 - step / steps)
        rows = torch.randint(len(x), (_PROBE_BATCH,))
        loss = nn.functional.cross_entropy(probe(x[rows]), y[rows], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.inference_mode():
        return float((probe(val_x).argmax(-1) == val_y).float().mean())


ARMS = {
    "full mixture": MixtureSettings(),
    "no rejection": MixtureSettings(absent=0.0, detect=0.4),
    "no general data": MixtureSettings(yes_no=0.0, detect=0.25),
}


async def compare_mixtures(
    setup: GroundingSetup,
    pool: RegionPool,
    data: CocoFolder,
    folder: Path,
    rehearsal: RehearsalSettings,
    *,
    steps: int,
) -> dict[str, dict[str, float]]:
    """What rejection samples and general data do: each arm is tuned from the same aligned model.

    Returns figures by arm, and of the aligned model itself: detection on `data`, and what the
    language model alone still can (`symbolic_abilities`).
    """
    rows = {"aligned only": await _measure(setup, data, folder / "aligned")}
    for name, mixture in ARMS.items():
        where = folder / name.replace(" ", "_")
        tuned = _tuned(setup, pool, rehearsal, where / "tuning", steps=steps, mixture=mixture)
        rows[name] = await _measure(tuned, data, where)
    return rows


def _tuned(
    setup: GroundingSetup,
    pool: RegionPool,
    rehearsal: RehearsalSettings,
    directory: Path,
    *,
    steps: int,
    mixture: MixtureSettings | None = None,
    spell: Speller | None = None,
) -> GroundingSetup:
    """A copy of the setup after so many steps of stage 2."""
    module = copy.deepcopy(setup.module)
    freeze_for(module, "instruct")
    rehearse(
        module, setup.builder, pool, setup.names, setup.vocabulary, torch.tensor(setup.concepts),
        replace(rehearsal, loop=replace(rehearsal.loop, steps=steps)), directory,
        mixture=mixture, spell=spell,
    )  # fmt: skip
    return replace(setup, module=module)


async def compare_outputs(
    setup: GroundingSetup,
    pool: RegionPool,
    data: CocoFolder,
    folder: Path,
    rehearsal: RehearsalSettings,
    *,
    steps: int,
) -> dict[str, dict[str, float]]:
    """Region tokens against boxes printed as numbers, by the same model from the same data.

    Both see the same region tokens; only the answers' words differ. A box is printed as
    hundredths of the picture: `[x1,y1,x2,y2]`.
    """
    rows = {}
    for name, spell in (("region tokens", None), ("printed boxes", printed)):
        where = folder / name.replace(" ", "_")
        tuned = _tuned(setup, pool, rehearsal, where / "tuning", steps=steps, spell=spell)
        save_grounding(tuned.module, setup.builder.tokenizer, setup.pretrained, where)
        rows[name] = await _measure_output(str(where), data)
    return rows


def printed(turn: Turn, boxes: FloatArray) -> Turn:
    """The same turn with each region of its answer printed as numbers."""

    def numbers(match: re.Match[str]) -> str:
        box = np.clip(np.round(boxes[int(match.group(1))] * 100), 0, 99).astype(int)
        return "[" + ",".join(map(str, box)) + "]"

    return replace(turn, answer=REGION_TOKEN.sub(numbers, turn.answer))


def printed_boxes(text: str, *, width: int, height: int) -> FloatArray:
    """(n, 4) pixels of the boxes that an answer prints, at the middle of each hundredth."""
    found = [[int(number) for number in box] for box in _PRINTED.findall(text)]
    size = np.array([width, height, width, height], dtype=np.float32)
    return np.asarray((np.array(found).reshape(-1, 4) + 0.5) / 100 * size, dtype=np.float32)


async def _measure_output(model: str, data: CocoFolder) -> dict[str, float]:
    """Detection of present labels at IoU 0.5, and what an answer costs."""
    pipeline = local_pipeline(model)
    hits = answered = objects = passes = asked = 0
    seconds = 0.0
    for image in data.images:
        frame, category = load_frame(image.path), np.array(image.category)
        for label in sorted(set(image.category)):
            truth = image.xyxy[category == label]
            grounding = await pipeline.ground(frame, [Task.detect(data.categories[label])])
            (answer,) = grounding.answers
            boxes = answer.detections.xyxy
            if not len(boxes):
                boxes = printed_boxes(answer.text, width=frame.width, height=frame.height)
            hits += match_count(boxes, -np.arange(len(boxes), dtype=np.float32), truth)
            answered, objects = answered + len(boxes), objects + len(truth)
            passes, asked = passes + answer.num_passes, asked + 1
            seconds += grounding.timings.language_s
    return {
        "precision": hits / max(1, answered),
        "recall": hits / max(1, objects),
        "f1": 2 * hits / max(1, answered + objects),
        "passes_per_answer": passes / max(1, asked),
        "language_ms_per_answer": 1e3 * seconds / max(1, asked),
    }


async def _measure(setup: GroundingSetup, data: CocoFolder, folder: Path) -> dict[str, float]:
    save_grounding(setup.module, setup.builder.tokenizer, setup.pretrained, folder)
    scores = await evaluate_detection(local_pipeline(str(folder)), data)
    return {
        "f1": scores.f1,
        "region_top1": scores.region_top1,
        "absent_false_positive_rate": scores.absent_false_positive_rate,
        **symbolic_abilities(setup),
    }


@torch.inference_mode()
def symbolic_abilities(setup: GroundingSetup, *, num_batches: int = 6) -> dict[str, float]:
    """What the language model can without eyes: shares of its answers' tokens that are right.

    Symbolic scenes, as in its pretraining: copying text, pointing, naming, yes or no.
    """
    language = LanguagePretraining(setup.builder.tokenizer, setup.names).eval()
    trained = setup.module.model.language_model
    assert trained is not None
    language.language_model.load_state_dict(trained.state_dict())
    language.slots.load_state_dict(setup.module.slots.state_dict())
    torch.manual_seed(0)
    curriculum = SymbolicCurriculum(setup.builder.tokenizer, seed=99)
    curriculum.most_regions = 30
    kinds = {
        "copying": lambda: curriculum.copying(16),
        "pointing": lambda: curriculum.dense(8),
        "naming": lambda: curriculum.chat(4, curriculum.naming),
        "yes_no": lambda: curriculum.chat(4, curriculum.yes_or_no),
    }
    return {
        name: float(np.mean([_accuracy(language, draw()) for _ in range(num_batches)]))
        for name, draw in kinds.items()
    }


def _accuracy(language: LanguagePretraining, batch: PackedBatch) -> float:
    """Share of answer tokens right."""
    logits, _ = forward_packed(language, batch, noise=0.35)
    wanted = batch.labels[:, 1:]
    counted = wanted != IGNORED
    return float((logits[:, :-1].argmax(-1) == wanted)[counted].float().mean())
