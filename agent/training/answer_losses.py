"""What a language model in training is told of its answers: wrong tokens, and eyes elsewhere.

Every loss is a mean over what `answer_counts` counts. Knows no regions' contents and no pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.training.packing import IGNORED, PackedBatch
from agent.training.workers import Figures

POINTER_LAYER = 2
POINTER_HEADS = 4
"""Heads whose attention is taught to look at the region that is pointed at next."""
NAMING_HEADS = slice(POINTER_HEADS, 2 * POINTER_HEADS)
"""Heads taught, while a region is described, to look where the question names it: one layer
earlier the copying heads have brought that region's slot there."""


def lm_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Next-token cross entropy; positions labelled IGNORED do not count, and none costs nothing."""
    wanted = labels[:, 1:].flatten()
    summed = nn.functional.cross_entropy(
        logits[:, :-1].float().flatten(0, 1), wanted, ignore_index=IGNORED, reduction="sum"
    )
    return summed / (wanted != IGNORED).sum().clamp(min=1)


def answer_counts(batch: PackedBatch) -> Figures:
    """What each loss of packed questions is a mean over (`loop.Objective.counts`)."""
    return {
        "lm": float((batch.labels[:, 1:] != IGNORED).sum()),
        "pointing": float((batch.pointers >= 0).sum()),
        "naming": float((batch.asked >= 0).sum()),
    }


def token_accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of counted positions predicted right."""
    counted = labels[:, 1:] != IGNORED
    right = logits[:, :-1].argmax(-1) == labels[:, 1:]
    return float(right[counted].float().mean())


def pointing_loss(attention: Tensor, batch: PackedBatch) -> Tensor:
    """How little the pointer heads look at the slot of the region that comes next.

    The language model loss alone finds this circuit too, but takes ten times the steps.
    """
    return attention_loss(attention[:, :POINTER_HEADS], batch.pointers)


def naming_loss(attention: Tensor, batch: PackedBatch) -> Tensor:
    """How little the naming heads look at the region token of the question being answered."""
    return attention_loss(attention[:, NAMING_HEADS], batch.asked)


def attention_loss(attention: Tensor, target: Tensor) -> Tensor:
    """Mean negative log attention paid to `target` (batch, length), where it is not -1.

    Args:
        attention: (batch, heads, length, length).
    """
    row, position = torch.nonzero(target >= 0, as_tuple=True)
    if not len(row):
        return attention.new_zeros(())
    looked = attention[row, :, position, target[row, position]]
    return -looked.float().clamp(min=1e-6).log().mean()
