"""Questions about pictures without regions: a language model that prints boxes, for experiments.

It sees the image tokens of the primary encoder and nothing else; answers hold numbers in place of
region tokens. Knows no connector and no proposals.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agent.detections import FloatArray
from agent.sequence import SequenceBuilder
from agent.training.answer_losses import answer_counts, lm_loss, token_accuracy
from agent.training.batches import SceneBatch
from agent.training.grounding_model import GroundingTraining
from agent.training.loop import Objective, Terms, autocast, numpy_draws, train
from agent.training.mixture import MixtureSettings, draw_turns
from agent.training.packing import PackedBatch, PackedScene, collate_packed
from agent.training.rehearsal import RehearsalSettings, Speller
from agent.training.vision import primary_maps
from agent.training.workers import Figures

WITHOUT_REGIONS = MixtureSettings(detect=0.46, name=0.0, similar=0.0, reason=0.0)
"""The mixture less the questions that name a region."""
_CELL_PX = 28
_NOWHERE = np.zeros((0, 4), dtype=np.float32)


@dataclass(frozen=True)
class SeenPicture:
    """A composed picture as the language model sees it, and what is in it."""

    tokens: Tensor
    """(rows * columns, vision_width) before the image projector."""
    grid: tuple[int, int]
    """(rows, columns)."""
    names: tuple[str, ...]
    boxes: FloatArray
    """(num_objects, 4) xyxy relative to the picture."""


@torch.no_grad()
def seen_pictures(
    module: GroundingTraining,
    batches: Iterator[SceneBatch],
    count: int,
    vocabulary: list[str],
    precision: str,
) -> list[SeenPicture]:
    """The pictures of `count` batches, encoded once; classes are rows of `vocabulary`."""
    seen = []
    with autocast(torch.device("cpu"), precision):
        for _ in range(count):
            batch = next(batches)
            height, width = batch.rgb.shape[1:3]
            size = np.array([width, height] * 2, dtype=np.float32)
            for row, maps in enumerate(primary_maps(module.model, batch.rgb)):
                objects = batch.classes[row] >= 0
                seen.append(SeenPicture(
                    maps.image_tokens.float(),
                    (height // _CELL_PX, width // _CELL_PX),
                    tuple(vocabulary[int(c)] for c in batch.classes[row][objects]),
                    np.asarray(batch.truth[row][objects].numpy() / size, dtype=np.float32),
                ))  # fmt: skip
    return seen


def rehearse_pictures(
    module: GroundingTraining,
    builder: SequenceBuilder,
    pictures: list[SeenPicture],
    vocabulary: list[str],
    settings: RehearsalSettings,
    directory: Path,
    *,
    spell: Speller,
) -> None:
    """Train the language model on questions about pictures, its answers as `spell` writes them.

    An interrupted training goes on from its checkpoint in `directory`.
    """

    def batches(_first: int, _stride: int) -> Iterator[tuple[PackedBatch, Tensor]]:
        while True:
            rng = numpy_draws()
            chosen = [pictures[k] for k in rng.integers(len(pictures), size=settings.scenes)]
            scenes = [_asked(builder, one, vocabulary, settings, rng, spell) for one in chosen]
            yield collate_packed(scenes), torch.cat([one.tokens for one in chosen])

    def losses(batch: tuple[PackedBatch, Tensor]) -> tuple[Terms, Figures]:
        packed, tokens = batch
        with settings.loop.autocast(tokens.device):
            image = module.model.image_projector(tokens)
            logits, _ = module(packed, image.new_zeros(0, image.shape[-1]), image)
        reached = token_accuracy(logits.detach(), packed.labels)
        return {"lm": lm_loss(logits, packed.labels)}, {"token": reached}

    def counts(batch: tuple[PackedBatch, Tensor]) -> Figures:
        return answer_counts(batch[0])

    train(module, Objective(batches, losses, counts=counts), settings.loop, directory)


def _asked(
    builder: SequenceBuilder,
    picture: SeenPicture,
    vocabulary: list[str],
    settings: RehearsalSettings,
    rng: np.random.Generator,
    spell: Speller,
) -> PackedScene:
    turns = draw_turns(
        list(picture.names), vocabulary, settings.num_turns, rng, picture.boxes, WITHOUT_REGIONS
    )
    spelt = [spell(turn, picture.boxes) for turn in turns]
    return PackedScene.questions(builder, np.zeros(0, dtype=int), spelt, picture.grid, _NOWHERE)
