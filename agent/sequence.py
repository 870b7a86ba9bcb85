"""From features and a question to the language model's input: ids, slot types, positions.

The prefix (system turn, image, regions) does not depend on the question, so its keys and values
can be shared by every question about a frame. Layout of VLM-FO1's prompt, piece by piece.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.model.language_model import SlotType, mrope_positions
from agent.prompts import END_OF_TURN, SYSTEM_PROMPT, Exchange
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
    """Writes prompts the way the model was trained to read them.

    A prompt is split where caching wants it: `prefix` holds what all questions about a frame
    share, `question` the rest. Text is tokenised between the slots, so the newline in front of a
    question belongs to the question.
    """

    def __init__(self, tokenizer: PromptTokenizer) -> None:
        self.tokenizer = tokenizer
        self.end_of_turn = tokenizer.control(END_OF_TURN)

    def prefix(
        self,
        merged_grid: tuple[int, int] | None,
        num_regions: int,
        *,
        system: str = SYSTEM_PROMPT,
        before_image: str = "",
    ) -> Sequence:
        """System turn, image and regions: what all questions about a frame share.

        Args:
            merged_grid: (rows, columns) of image tokens; None for a conversation without image.
            num_regions: boxes that are listed after the image.
            system: the system turn.
            before_image: user's words in front of the image.
        """
        opening = f"{_turn('system', system)}<|im_start|>user\n{before_image}"
        if merged_grid is None and not num_regions:
            return self._sequence(
                SequenceDraft().text(self.tokenizer.encode(opening)), None, start=0
            )
        draft = SequenceDraft().text(self.tokenizer.encode(f"{opening}<|vision_start|>"))
        if merged_grid is not None:
            draft.slots(SlotType.IMAGE, merged_grid[0] * merged_grid[1])
        # Without regions the newline after the image is the one the question begins with.
        ending = "<|vision_end|>\n" if num_regions else "<|vision_end|>"
        draft.text(self.tokenizer.encode(ending))
        return self._with_regions(draft, num_regions, merged_grid, start=0)

    def regions(self, num_regions: int, *, start: int) -> Sequence:
        """The newline and the regions alone, to follow the prefix of the bare image."""
        draft = SequenceDraft().text(self.tokenizer.encode("\n"))
        return self._with_regions(draft, num_regions, None, start=start)

    def question(
        self,
        text: str,
        *,
        start: int,
        history: tuple[Exchange, ...] = (),
        after_image: bool = True,
    ) -> Sequence:
        """The user's words and the opening of the answer, from position `start` on.

        Args:
            text: the question.
            start: first free position after the prefix.
            history: earlier turns about the same image; the first of them follows the image.
            after_image: whether the prefix ends with an image or its regions.
        """
        turns = [f"{old.question}<|im_end|>\n{_ASSISTANT}{old.answer}<|im_end|>\n"
                 for old in history]  # fmt: skip
        words = "<|im_start|>user\n".join([*turns, f"{text}<|im_end|>\n{_ASSISTANT}"])
        ids = self.tokenizer.encode(("\n" if after_image else "") + words)
        return self._sequence(SequenceDraft().text(ids), None, start=start)

    def answer(self, text: str, ids: Iterable[int] | None = None, *, start: int) -> Sequence:
        """An answer in training: `text` and the end token, or `ids` just as they are."""
        written = [*self.tokenizer.encode(text), self.end_of_turn] if ids is None else list(ids)
        return self._sequence(SequenceDraft().text(written), None, start=start)

    def _with_regions(
        self, draft: SequenceDraft, num_regions: int, grid: tuple[int, int] | None, *, start: int
    ) -> Sequence:
        for index in range(num_regions):
            draft.text([self.tokenizer.region(index)]).slots(SlotType.REGION, 1)
        return self._sequence(draft, grid, start=start)

    def _sequence(
        self, draft: SequenceDraft, grid: tuple[int, int] | None, *, start: int
    ) -> Sequence:
        slots = torch.tensor(draft.kinds)
        positions, following = mrope_positions(slots, grid, start=start)
        return Sequence(torch.tensor(draft.ids), slots, positions, following)


class SequenceDraft:
    """A sequence being written: ids (0 where no token stands) and slot types."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.kinds: list[SlotType] = []

    def text(self, ids: list[int]) -> SequenceDraft:
        self.ids += ids
        self.kinds += [SlotType.TEXT] * len(ids)
        return self

    def slots(self, kind: SlotType, count: int) -> SequenceDraft:
        self.ids += [0] * count
        self.kinds += [kind] * count
        return self


_ASSISTANT = "<|im_start|>assistant\n"


def _turn(role: str, content: str) -> str:
    return f"<|im_start|>{role}\n{content}<|im_end|>\n"
