"""Instruction tuning on region features shuffled into scenes: stage 2 at the price of text.

Knows questions and region tokens, no pictures.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import FloatArray
from agent.model.language_model import SlotType
from agent.sequence import SequenceBuilder
from agent.training.grounding_model import GroundingTraining
from agent.training.language import lm_loss, naming_loss, pointing_loss, token_accuracy
from agent.training.mixture import MixtureSettings, Turn, draw_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.region_features import RegionPool

logger = logging.getLogger(__name__)
NUM_TURNS = 6
Speller = Callable[[Turn, FloatArray], Turn]
"""Writes a turn about regions with relative boxes (n, 4) in other words (experiments)."""
_REHEARSED_SCENES = 8
_CONNECTOR_SHARE = 0.6
"""The connector's learning rate during rehearsal, relative to the language model's."""


def rehearse(
    module: GroundingTraining,
    builder: SequenceBuilder,
    pool: RegionPool,
    names: list[str],
    vocabulary: list[str],
    trained: Tensor,
    *,
    steps: int,
    rate: float,
    mixture: MixtureSettings | None = None,
    spell: Speller | None = None,
) -> None:
    """Teach the language model to read real region tokens in scenes shuffled together from a pool.

    The towers are frozen, so no picture is needed: a scene is a random handful of regions. This
    gives the language model ten times the questions that the towers' speed would allow. The
    connector learns along, slowly: it could learn the pool by heart. A twentieth of the pool is
    held out and logged.
    """
    rng = np.random.default_rng(11)
    asked = mixture or MixtureSettings()
    language, connector = module.model.language_model, module.model.region_projector
    assert language is not None
    optimizer = torch.optim.AdamW(
        [{"params": list(language.parameters()), "share": 1.0},
         {"params": list(connector.parameters()), "share": _CONNECTOR_SHARE}],
        lr=rate, betas=(0.9, 0.98),
    )  # fmt: skip
    held_out = len(pool.features) * 19 // 20

    def losses(first: int, last: int) -> tuple[Tensor, dict[str, float]]:
        packed, rows = rehearsal_batch(builder, pool, names, vocabulary, rng, first, last, asked)
        with torch.autocast("cpu", torch.bfloat16):
            tokens = connector(pool.features[rows])
            num_image = int((packed.slots == SlotType.IMAGE).sum())
            image = torch.randn(num_image, tokens.shape[-1])
            logits, attention = module(packed, tokens, image)
        named = pool.concepts[rows] >= 0
        believed = pool.believed[rows][named, :-1]
        truth = nn.functional.one_hot(
            torch.searchsorted(trained, pool.concepts[rows][named]), len(trained)
        )
        lm, pointing = lm_loss(logits, packed.labels), pointing_loss(attention, packed)
        naming = naming_loss(attention, packed)
        # Half the truth, half the classifier's doubts: names alone would be learned by heart.
        target = 0.5 * truth + 0.5 * believed
        places = module.place_vectors(packed.boxes)
        contrast = module.soft_contrast((tokens - places)[named], target, trained)
        total = lm + 0.3 * pointing + 0.3 * naming + 0.5 * contrast
        return total, {
            "lm": float(lm.detach()),
            "pointing": float(pointing.detach()),
            "naming": float(naming.detach()),
            "contrast": float(contrast.detach()),
            "token": token_accuracy(logits.detach(), packed.labels),
        }

    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * group["share"] * min(1.0, (step + 1) / 30) * (1.0 - step / steps)
        loss, _ = losses(0, held_out)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        if step % 50 == 0 or step + 1 == steps:
            with torch.no_grad():
                _, figures = losses(held_out, len(pool.features))
            logger.info("rehearsal step %d, held out: %s", step,
                        {name: round(value, 3) for name, value in figures.items()})  # fmt: skip


def rehearsal_batch(
    builder: SequenceBuilder,
    pool: RegionPool,
    names: list[str],
    vocabulary: list[str],
    rng: np.random.Generator,
    first: int,
    last: int,
    mixture: MixtureSettings,
    spell: Speller | None = None,
) -> tuple[PackedBatch, Tensor]:
    """Questions about scenes of regions drawn from rows `first` to `last`, and those rows."""
    scenes, chosen = [], []
    for _ in range(_REHEARSED_SCENES):
        count = int(rng.integers(3, 20 if rng.random() < 0.7 else 48))
        rows = rng.integers(first, last, size=count)
        # Some concepts stand there twice.
        rows = np.concatenate([rows, rng.choice(rows, size=len(rows) // 8)])
        here = pool.concepts[torch.from_numpy(rows)].numpy()
        boxes = pool.boxes[torch.from_numpy(rows)].numpy()
        called = [names[c] if c >= 0 else None for c in here]
        turns = draw_turns(called, vocabulary, NUM_TURNS, rng, boxes, mixture)
        if spell is not None:
            turns = [spell(turn, boxes) for turn in turns]
        grid = (int(rng.integers(5, 11)), int(rng.integers(5, 11)))
        scenes.append(PackedScene.questions(builder, here, turns, grid, boxes))
        chosen.append(torch.from_numpy(rows))
    return collate_packed(scenes), torch.cat(chosen)
