"""Several questions about one scene in one sequence, isolated by the attention mask.

Each question sees the shared prefix and itself, exactly as in the service, where the prefix's
keys and values are shared. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.sequence import SequenceBuilder
from agent.training.mixture import Turn

IGNORED = -100
"""Label of a position whose token is not learned."""


@dataclass(frozen=True)
class PackedScene:
    """One scene's tokens; `segment` 0 is the prefix, each question has its own."""

    ids: Tensor
    slots: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor

    @classmethod
    def questions(
        cls,
        builder: SequenceBuilder,
        num_regions: int,
        turns: list[Turn],
        token_grid: tuple[int, int] | None,
        written: Sequence[Sequence[int]] | None = None,
    ) -> PackedScene:
        """The service's prompt with all `turns`; loss on answers only.

        `written`: the answers' ids as a model wrote them, for answers that are no plain text.
        """
        prefix = builder.prefix(token_grid, num_regions)
        parts, labels = [prefix], [torch.full((len(prefix),), IGNORED)]
        segments = [torch.zeros(len(prefix), dtype=torch.long)]
        for number, turn in enumerate(turns, start=1):
            question = builder.question(turn.question, start=prefix.next_position)
            ids = None if written is None else written[number - 1]
            answer = builder.answer(turn.answer, ids, start=question.next_position)
            parts += [question, answer]
            labels += [torch.full((len(question),), IGNORED), answer.ids]
            segments.append(torch.full((len(question) + len(answer),), number))
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.slots for part in parts]),
            torch.cat(labels),
            torch.cat([part.positions for part in parts], dim=1),
            torch.cat(segments),
        )


@dataclass(frozen=True)
class PackedBatch:
    """Packed scenes padded on the right."""

    ids: Tensor
    slots: Tensor
    labels: Tensor
    positions: Tensor
    """(axes, batch, length)."""
    mask: Tensor
    """(batch, 1, length, length) float, 0 where a position may look and -inf where not."""


def collate_packed(scenes: list[PackedScene]) -> PackedBatch:
    """Pad to the longest scene (a multiple of 16, for steady matrix shapes)."""
    length = -(-max(len(scene.ids) for scene in scenes) // 16) * 16

    def padded(values: Tensor, fill: int, size: int) -> Tensor:
        return torch.nn.functional.pad(values, (0, size - values.shape[-1]), value=fill)

    segments = torch.stack([padded(scene.segments, -1, length) for scene in scenes])
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    allowed = causal & (same | (segments[:, None, :] == 0))
    mask = torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return PackedBatch(
        ids=torch.stack([padded(scene.ids, 0, length) for scene in scenes]),
        slots=torch.stack([padded(scene.slots, 0, length) for scene in scenes]),
        labels=torch.stack([padded(scene.labels, IGNORED, length) for scene in scenes]),
        positions=torch.stack([padded(scene.positions, 0, length) for scene in scenes], dim=1),
        mask=mask[:, None],
    )
