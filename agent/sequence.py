"""From features and a question to the language model's input: ids, slot types, positions.

The prefix (system turn, image, regions) does not depend on the question, so its keys and values
can be shared by every question about a frame. Layout of VLM-FO1's prompt, piece by piece.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from agent.model.language_model import SlotType, mrope_positions
from agent.prompts import SYSTEM_PROMPT
from agent.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class Sequence:
    """Token ids with a slot type per position; ids at image and region slots mean nothing."""

    ids: Tensor
    """(length,) int64."""
    slots: Tensor
    """(length,) `SlotType`."""
    positions: Tensor
    """(3, length) M-RoPE."""
    next_position: int

    def __len__(self) -> int:
        return len(self.ids)


class SequenceBuilder:
    """Writes prompts the way the model was trained to read them."""

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self.tokenizer = tokenizer
        control = tokenizer.control
        start, end = control("<|im_start|>"), control("<|im_end|>")
        newline = tokenizer.encode("\n")
        self._before_image = [
            start, *tokenizer.encode(f"system\n{SYSTEM_PROMPT}"), end, *newline,
            start, *tokenizer.encode("user\n"), control("<|vision_start|>"),
        ]  # fmt: skip
        self._after_image = [control("<|vision_end|>"), *newline]
        self._after_text = [end, *newline, start, *tokenizer.encode("assistant\n")]
        self.end_of_turn = end

    def prefix(self, merged_grid: tuple[int, int] | None, num_regions: int) -> Sequence:
        """System turn, image and regions: what all questions about a frame share."""
        ids = list(self._before_image)
        slots = [SlotType.TEXT] * len(ids)
        if merged_grid is not None:
            count = merged_grid[0] * merged_grid[1]
            ids += [0] * count
            slots += [SlotType.IMAGE] * count
        ids += self._after_image
        slots += [SlotType.TEXT] * len(self._after_image)
        for index in range(num_regions):
            ids += [self.tokenizer.region(index), 0]
            slots += [SlotType.TEXT, SlotType.REGION]
        return self._sequence(ids, slots, merged_grid, start=0)

    def question(self, text: str, *, start: int) -> Sequence:
        """The user's words and the opening of the answer, from position `start` on."""
        ids = [*self.tokenizer.encode("\n" + text), *self._after_text]
        return self._sequence(ids, [SlotType.TEXT] * len(ids), None, start=start)

    def answer(self, text: str, *, start: int) -> Sequence:
        """A complete answer with its end token (training)."""
        ids = [*self.tokenizer.encode(text), self.end_of_turn]
        return self._sequence(ids, [SlotType.TEXT] * len(ids), None, start=start)

    def _sequence(
        self, ids: list[int], slots: list[SlotType], grid: tuple[int, int] | None, *, start: int
    ) -> Sequence:
        slot_tensor = torch.tensor(slots)
        positions, following = mrope_positions(slot_tensor, grid, start=start)
        return Sequence(torch.tensor(ids), slot_tensor, positions, following)
