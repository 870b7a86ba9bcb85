"""From features and a question to the language model's input: ids, slot types, positions.

The prefix (system turn, image, regions) does not depend on the question, so its keys and values
can be shared by every question about a frame. The words around it are the family's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from agent.model.family import QWEN2_5_VL, LanguageFamily
from agent.model.positions import SlotType
from agent.plain_nouns import plain_noun
from agent.prompts import (
    GROUND_CLOSE,
    GROUND_OPEN,
    OBJECTS_OPEN,
    REGION_TOKEN,
    SYSTEM_PROMPT,
    Exchange,
)
from agent.tokenizer import PromptTokenizer


@dataclass(frozen=True)
class TokenSequence:
    """Token ids with a slot type per position; ids at image and region slots mean nothing."""

    ids: Tensor
    """(length,) int64."""
    slots: Tensor
    """(length,) `SlotType`."""
    positions: Tensor
    """(axes, length): M-RoPE's three, or one."""
    next_position: int

    def __len__(self) -> int:
        return len(self.ids)


class SequenceBuilder:
    """Writes prompts the way the model was trained to read them.

    A prompt is split where caching wants it: `prefix` holds what all questions about a frame
    share, `question` the rest. Text is tokenised between the slots, so the newline in front of a
    question belongs to the question.
    """

    def __init__(self, tokenizer: PromptTokenizer, family: LanguageFamily = QWEN2_5_VL) -> None:
        """`family`: whose words, positions and order of a region's slots are used."""
        self.tokenizer = tokenizer
        self.family = family
        self.end_of_turn = tokenizer.control(family.prompt.end_of_turn)
        self._turn_ends = family.prompt.end_of_turn + family.prompt.between_turns

    @property
    def answer_opening(self) -> str:
        """The end of the user's turn and the beginning of the answer's."""
        return self._turn_ends + self.family.prompt.assistant

    def prefix(
        self,
        token_grid: tuple[int, int] | None,
        num_regions: int,
        *,
        system: str = SYSTEM_PROMPT,
        before_image: str = "",
    ) -> TokenSequence:
        """System turn, image and regions: what all questions about a frame share.

        Args:
            token_grid: (rows, columns) of image tokens; None for a conversation without image.
            num_regions: boxes that are listed after the image.
            system: the system turn.
            before_image: user's words in front of the image.
        """
        words = self.family.prompt
        opening = f"{words.system_turn.replace('{}', system)}{words.user}{before_image}"
        if token_grid is None and not num_regions:
            return self._sequence(
                SequenceDraft().text(self.tokenizer.encode(opening)), None, start=0
            )
        marked = token_grid is not None or words.marks_without_image
        before, after = (words.before_image, words.after_image) if marked else ("", "")
        draft = SequenceDraft().text(self.tokenizer.encode(opening + before))
        if token_grid is not None:
            draft.slots(SlotType.IMAGE, token_grid[0] * token_grid[1])
        # Without regions the newline after the image is the one the question begins with.
        ending = after + (words.before_regions if num_regions else "")
        draft.text(self.tokenizer.encode(ending))
        return self._with_regions(draft, num_regions, token_grid, start=0)

    def regions(self, num_regions: int, *, start: int) -> TokenSequence:
        """The regions and what leads to them, to follow the prefix of the bare image."""
        draft = SequenceDraft().text(self.tokenizer.encode(self.family.prompt.before_regions))
        return self._with_regions(draft, num_regions, None, start=start)

    def question(
        self,
        text: str,
        *,
        start: int,
        history: tuple[Exchange, ...] = (),
        after_image: bool = True,
    ) -> TokenSequence:
        """The user's words and the opening of the answer, from position `start` on.

        Args:
            text: the question.
            start: first free position after the prefix.
            history: earlier turns about the same image; the first of them follows the image.
            after_image: whether the prefix ends with an image or its regions.
        """
        words, ends = self.family.prompt, self._turn_ends
        turns = [f"{old.question}{ends}{words.assistant}{old.answer}{ends}" for old in history]
        written = words.user.join([*turns, f"{text}{ends}{words.assistant}"])
        ids = self.tokenizer.encode((words.before_question if after_image else "") + written)
        return self._sequence(SequenceDraft().text(ids), None, start=start)

    def asked(self, label: str) -> str:
        """A label as an opened list asks for it."""
        if not self.family.prompt.plain_labels or REGION_TOKEN.fullmatch(label):
            return label
        return plain_noun(label)

    def opened_list(self, asked: str, *, start: int) -> TokenSequence:
        """The turn's end and an answer that is open where the first region of a label stands.

        Args:
            asked: the label, as `asked` makes it.
            start: first free position after the prefix.
        """
        before = "" if REGION_TOKEN.fullmatch(asked) else self.family.prompt.before_label
        opening = f"{GROUND_OPEN}{before}{asked}{GROUND_CLOSE}{OBJECTS_OPEN}"
        ids = self.tokenizer.encode(self.answer_opening + opening)
        return self._sequence(SequenceDraft().text(ids), None, start=start)

    def answer(self, text: str, ids: Iterable[int] | None = None, *, start: int) -> TokenSequence:
        """An answer in training: `text` and the end token, or `ids` just as they are."""
        written = [*self.tokenizer.encode(text), self.end_of_turn] if ids is None else list(ids)
        return self._sequence(SequenceDraft().text(written), None, start=start)

    def _with_regions(
        self, draft: SequenceDraft, num_regions: int, grid: tuple[int, int] | None, *, start: int
    ) -> TokenSequence:
        order = self.family.order.tokens()
        for index in range(num_regions):
            token = self.tokenizer.region(index)
            for is_token in order:
                if is_token:
                    draft.text([token])
                else:
                    draft.slots(SlotType.REGION, 1)
        return self._sequence(draft, grid, start=start)

    def _sequence(
        self, draft: SequenceDraft, grid: tuple[int, int] | None, *, start: int
    ) -> TokenSequence:
        slots = torch.tensor(draft.kinds, dtype=torch.long)
        positions, following = self.family.positions(slots, grid, start=start)
        return TokenSequence(torch.tensor(draft.ids, dtype=torch.long), slots, positions, following)


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
