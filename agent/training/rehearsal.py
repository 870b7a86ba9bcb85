"""Instruction tuning on region features shuffled into scenes: stage 2 at the price of text.

Knows questions and region tokens, no pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import FloatArray
from agent.model.language_model import SlotType
from agent.prompts import MAX_REGIONS
from agent.sequence import SequenceBuilder
from agent.training.answer_losses import (
    answer_counts,
    lm_loss,
    naming_loss,
    pointing_loss,
    token_accuracy,
)
from agent.training.grounding_model import GroundingTraining
from agent.training.loop import LoopSettings, Objective, Terms, moved, numpy_draws, train
from agent.training.mixture import MixtureSettings, Turn, draw_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.region_features import RegionPool
from agent.training.workers import Figures

Speller = Callable[[Turn, FloatArray], Turn]
"""Writes a turn about regions with relative boxes (n, 4) in other words (experiments)."""


@dataclass(frozen=True)
class RehearsalSettings:
    """How the language model rehearses."""

    loop: LoopSettings
    scenes: int = 8
    """Per batch."""
    num_turns: int = 6
    """Questions per scene."""
    small_share: float = 0.5
    """Of the scenes, with fewer than 24 regions."""
    most_regions: int = 88
    """Of the others; an eighth more stand there twice, and a prompt names 100."""
    whole_share: float = 0.0
    """Of the scenes, that are the regions of one picture as they were found there."""
    background_share: tuple[float, float] = (0.1, 0.6)
    """Range of the share of a scene's regions that hold nothing."""
    contrast: float = 0.5
    pointing: float = 0.3
    naming: float = 0.3
    """Weights of the losses beside that of the answers, which is 1."""


def rehearse(
    module: GroundingTraining,
    builder: SequenceBuilder,
    pool: RegionPool,
    names: list[str],
    vocabulary: list[str],
    trained: Tensor,
    settings: RehearsalSettings,
    directory: Path,
    *,
    mixture: MixtureSettings | None = None,
    spell: Speller | None = None,
) -> None:
    """Teach the language model to read real region tokens in scenes shuffled together from a pool.

    The towers are frozen, so no picture is needed: a scene is a random handful of regions. This
    gives the language model ten times the questions that the towers' speed would allow. The
    connector learns along, slowly: it could learn the pool by heart. A twentieth of the pool is
    held out and logged. An interrupted rehearsal goes on from its checkpoint in `directory`.
    """
    asked = mixture or MixtureSettings()
    connector = module.model.region_projector
    device = next(module.parameters()).device
    pool_there, trained = moved(pool, device), trained.to(device)
    held_out = len(pool.features) * 19 // 20

    def draw(first: int, last: int) -> tuple[PackedBatch, Tensor]:
        return rehearsal_batch(
            builder, pool, names, vocabulary, numpy_draws(), first, last, asked, settings, spell
        )

    def batches(_first: int, _stride: int) -> Iterator[tuple[PackedBatch, Tensor]]:
        while True:
            yield draw(0, held_out)

    def losses(batch: tuple[PackedBatch, Tensor]) -> tuple[Terms, Figures]:
        packed, rows = batch
        with settings.loop.autocast(device):
            tokens = connector(pool_there.features[rows])
            num_image = int((packed.slots == SlotType.IMAGE).sum())
            image = torch.randn(num_image, tokens.shape[-1], device=device)
            logits, attention = module(packed, tokens, image)
        concepts = pool_there.concepts[rows]
        named = concepts >= 0
        believed = pool_there.believed[rows][named, :-1]
        truth = nn.functional.one_hot(torch.searchsorted(trained, concepts[named]), len(trained))
        # Half the truth, half the classifier's doubts: names alone would be learned by heart.
        target = 0.5 * truth + 0.5 * believed
        places = module.place_vectors(packed.boxes)
        contrast = module.soft_contrast((tokens - places)[named], target, trained)
        return {
            "lm": lm_loss(logits, packed.labels),
            "pointing": settings.pointing * pointing_loss(attention, packed),
            "naming": settings.naming * naming_loss(attention, packed),
            "contrast": settings.contrast * contrast,
        }, {"token": token_accuracy(logits.detach(), packed.labels)}

    def counts(batch: tuple[PackedBatch, Tensor]) -> Figures:
        packed, _ = batch
        return {**answer_counts(packed), "contrast": float((packed.concepts >= 0).sum())}

    def on_held_out() -> Figures:
        terms, figures = losses(moved(draw(held_out, len(pool.features)), device))
        return {**{name: float(term) for name, term in terms.items()}, **figures}

    objective = Objective(batches, losses, counts=counts, held_out=on_held_out)
    train(module, objective, settings.loop, directory)


def rehearsal_batch(
    builder: SequenceBuilder,
    pool: RegionPool,
    names: list[str],
    vocabulary: list[str],
    rng: np.random.Generator,
    first: int,
    last: int,
    mixture: MixtureSettings,
    settings: RehearsalSettings,
    spell: Speller | None = None,
) -> tuple[PackedBatch, Tensor]:
    """Questions about scenes of regions drawn from rows `first` to `last`, and those rows."""
    known = pool.concepts[first:last] >= 0
    things, background = (np.flatnonzero(which) + first for which in (known, ~known))
    pictures = pool.pictures[first:last].numpy()
    scenes, chosen = [], []
    for _ in range(settings.scenes):
        if rng.random() < settings.whole_share:
            rows = _whole_picture(pictures, first, rng)
        else:
            rows = _handful(things, background, settings, rng)
        rng.shuffle(rows)
        rows = rows[:MAX_REGIONS]
        here = pool.concepts[torch.from_numpy(rows)].numpy()
        boxes = pool.boxes[torch.from_numpy(rows)].numpy()
        called = [names[c] if c >= 0 else None for c in here]
        turns = draw_turns(called, vocabulary, settings.num_turns, rng, boxes, mixture)
        if spell is not None:
            turns = [spell(turn, boxes) for turn in turns]
        grid = (int(rng.integers(5, 11)), int(rng.integers(5, 11)))
        scenes.append(PackedScene.questions(builder, here, turns, grid, boxes))
        chosen.append(torch.from_numpy(rows))
    return collate_packed(scenes), torch.cat(chosen)


def _whole_picture(pictures: np.ndarray, first: int, rng: np.random.Generator) -> np.ndarray:
    """Rows of all regions of one picture; what overlaps there overlaps here."""
    chosen = pictures[int(rng.integers(len(pictures)))]
    return np.flatnonzero(pictures == chosen) + first


def _handful(
    things: np.ndarray,
    background: np.ndarray,
    settings: RehearsalSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """Rows of regions of many pictures."""
    most = 24 if rng.random() < settings.small_share else settings.most_regions
    count = int(rng.integers(3, most))
    # Proposal networks find much that is nothing; how much depends on the picture.
    num_empty = int(rng.uniform(*settings.background_share) * count) if len(background) else 0
    rows = np.concatenate(
        [rng.choice(things, size=count - num_empty), rng.choice(background, size=num_empty)]
    )
    # Some concepts stand there twice.
    return np.concatenate([rows, rng.choice(rows, size=len(rows) // 8)])
