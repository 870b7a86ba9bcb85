"""Several questions about one scene in one sequence, isolated by the attention mask.

Each question sees the shared prefix and itself, exactly as in the service, where the prefix's
keys and values are shared. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from agent.detections import FloatArray
from agent.model.language_model import SlotType
from agent.sequence import SequenceBuilder
from agent.training.mixture import Turn

IGNORED = -100
"""Label of a position whose token is not learned."""
_NO_REGION = -2


@dataclass(frozen=True)
class PackedScene:
    """One scene's tokens; `segment` 0 is the prefix, each question has its own."""

    ids: Tensor
    slots: Tensor
    labels: Tensor
    positions: Tensor
    segments: Tensor
    concepts: Tensor
    """(num_regions,) concept of each region slot, -1 for none; empty where slots come from
    pictures."""
    asked: Tensor
    """(length,) where the next token says what a region is: the position at which the question
    names that region; else -1."""
    boxes: Tensor
    """(num_regions, 4) xyxy relative to the picture."""

    @classmethod
    def causal(
        cls,
        ids: list[int],
        slots: list[int],
        labels: list[int],
        concepts: np.ndarray,
        boxes: FloatArray,
    ) -> PackedScene:
        """A plain causal sequence."""
        length = len(ids)
        return cls(
            torch.tensor(ids),
            torch.tensor(slots),
            torch.tensor(labels),
            torch.arange(length).expand(3, -1),
            torch.zeros(length, dtype=torch.long),
            torch.as_tensor(concepts, dtype=torch.long),
            torch.full((length,), -1),
            torch.as_tensor(boxes, dtype=torch.float32),
        )

    @classmethod
    def questions(
        cls,
        builder: SequenceBuilder,
        concepts: np.ndarray,
        turns: list[Turn],
        merged_grid: tuple[int, int] | None,
        boxes: FloatArray,
        written: Sequence[Sequence[int]] | None = None,
    ) -> PackedScene:
        """The service's prompt with all `turns`; loss on answers only.

        `written`: the answers' ids as a model wrote them, for answers that are no plain text.
        """
        prefix = builder.prefix(merged_grid, len(concepts))
        parts, labels = [prefix], [torch.full((len(prefix),), IGNORED)]
        segments = [torch.zeros(len(prefix), dtype=torch.long)]
        asked = [torch.full((len(prefix),), -1)]
        for number, turn in enumerate(turns, start=1):
            question = builder.question(turn.question, start=prefix.next_position)
            ids = None if written is None else written[number - 1]
            answer = builder.answer(turn.answer, ids, start=question.next_position)
            parts += [question, answer]
            labels += [torch.full((len(question),), IGNORED), answer.ids]
            begun = sum(map(len, asked))
            length = len(question) + len(answer)
            segments.append(torch.full((length,), number))
            asked.append(torch.full((length,), -1))
            if turn.region is not None:
                token = builder.tokenizer.region(turn.region)
                named = begun + int((question.ids == token).nonzero()[-1])
                name = len(builder.tokenizer.encode(turn.answer[: turn.name_length]))
                asked[-1][len(question) - 1 : len(question) + name] = named
        return cls(
            torch.cat([part.ids for part in parts]),
            torch.cat([part.slots for part in parts]),
            torch.cat(labels),
            torch.cat([part.positions for part in parts], dim=1),
            torch.cat(segments),
            torch.as_tensor(concepts, dtype=torch.long),
            torch.cat(asked),
            torch.as_tensor(boxes, dtype=torch.float32),
        )


@dataclass(frozen=True)
class PackedBatch:
    """Packed scenes padded on the right."""

    ids: Tensor
    slots: Tensor
    labels: Tensor
    positions: Tensor
    """(3, batch, length)."""
    mask: Tensor
    """(batch, 1, length, length) float, 0 where a position may look and -inf where not."""
    concepts: Tensor
    """(batch, most regions), -2 where there is no region."""
    pointers: Tensor
    """(batch, length) where the next token is a region: the position of its slot; else -1."""
    asked: Tensor
    """(batch, length), as in `PackedScene`."""
    boxes: Tensor
    """(total regions, 4), those of one scene after the other."""


def slot_pointers(ids: Tensor, slots: Tensor, labels: Tensor) -> Tensor:
    """(length,) for each position the slot of the region that its next label names, or -1."""
    places = torch.nonzero(slots == SlotType.REGION).flatten()
    named = ids[places - 1]
    following = torch.cat([labels[1:], labels.new_full((1,), IGNORED)])
    same = following[:, None] == named[None, :]
    index = same.float().argmax(dim=1) if len(places) else torch.zeros_like(following)
    found = same.any(dim=1)
    return torch.where(found, places[index] if len(places) else index, -1)


def collate_packed(scenes: list[PackedScene]) -> PackedBatch:
    """Pad to the longest scene (a multiple of 16, for steady matrix shapes)."""
    length = -(-max(len(scene.ids) for scene in scenes) // 16) * 16
    most = max(1, *(len(scene.concepts) for scene in scenes))

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
        concepts=torch.stack([padded(scene.concepts, _NO_REGION, most) for scene in scenes]),
        pointers=torch.stack(
            [
                padded(slot_pointers(scene.ids, scene.slots, scene.labels), -1, length)
                for scene in scenes
            ]
        ),
        asked=torch.stack([padded(scene.asked, -1, length) for scene in scenes]),
        boxes=torch.cat([scene.boxes for scene in scenes]),
    )
