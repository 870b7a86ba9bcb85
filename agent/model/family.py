"""What differs between families of language models, said once for all stages.

A family is the shape of its decoder, the words around a picture, its regions and a question, and
the order in which a region's token and its slots stand. Everything else, the engine, prefixes,
paging, drafts and the answer grammar, is the same for all. How to add one: docs/plug_and_play.md.
Knows no tokenizer and no weights.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from agent.errors import CheckpointMismatch
from agent.model.positions import slot_positions

_TOKEN, _SLOT = "R", "S"


@dataclass(frozen=True)
class PromptFormat:
    """The text around image, regions and question, control tokens included."""

    system_turn: str = "<|im_start|>system\n{}<|im_end|>\n"
    """With one `{}` for the system prompt; empty where the family has no such turn."""
    user: str = "<|im_start|>user\n"
    """Opens a turn of the user."""
    before_image: str = "<|vision_start|>"
    after_image: str = "<|vision_end|>"
    marks_without_image: bool = True
    """Whether these two stand before regions also where there is no image between them."""
    before_regions: str = "\n"
    """Only where there are regions."""
    before_question: str = "\n"
    """Between the image or its regions and the user's words."""
    end_of_turn: str = "<|im_end|>"
    """The token that ends a turn, an answer's included."""
    between_turns: str = "\n"
    assistant: str = "<|im_start|>assistant\n"
    """Opens the answer."""
    opens_lists: bool = False
    """Whether a question that names what to find is put as an opened answer, label by label, in
    place of the user's words: `<ground>dog</ground><objects>` (see `agent.label_lists`)."""
    bounds_answers: bool = False
    """Whether every answer in words is decoded within `agent.grammar.BoundedAnswerGrammar`: small
    models that learned new tokens late run on in them where they do not know what to say."""
    plain_labels: bool = False
    """Whether an opened answer asks for a label's plain noun (`agent.plain_nouns`), for models that
    were taught by these alone."""
    before_label: str = ""
    """What stands in an answer between `<ground>` and the label: a space for models that know
    words by the space before them."""


@dataclass(frozen=True)
class RegionOrder:
    """How one region stands in the prompt: its token and its slots, in order.

    Written as a word of R for the token `<regionN>` and S for a slot: `RS` is VLM-FO1's order. A
    decoder that was never trained on regions reads better what stands before a token it copies,
    so `RSSR` puts the token on both sides.
    """

    word: str = "RS"

    def __post_init__(self) -> None:
        if set(self.word) != {_TOKEN, _SLOT}:
            raise CheckpointMismatch(
                f"the region order {self.word!r} must hold {_TOKEN} for the region's token and "
                f"{_SLOT} for a slot, each at least once, and nothing else"
            )

    @property
    def num_slots(self) -> int:
        """Slots of one region."""
        return self.word.count(_SLOT)

    @property
    def length(self) -> int:
        """Positions of one region."""
        return len(self.word)

    def tokens(self) -> tuple[bool, ...]:
        """For each position whether the region's token stands there, or else a slot."""
        return tuple(letter == _TOKEN for letter in self.word)


@dataclass(frozen=True)
class LanguageFamily:
    """One family of language models."""

    name: str
    """As `groundstream.family` of a model's `config.json` says it."""
    decoder: str
    """Its decoder's key in `agent.model.language_model.DECODERS`."""
    num_axes: int = 1
    """Numbers that make up a position: its place in the text, or time, row and column."""
    prompt: PromptFormat = field(default_factory=PromptFormat)
    order: RegionOrder = field(default_factory=RegionOrder)
    """Where the model's configuration says no other."""

    def positions(
        self, slots: Tensor, grid: tuple[int, int] | None, *, start: int = 0
    ) -> tuple[Tensor, int]:
        """(axes, length) positions of one sequence, and the next free one.

        Args:
            slots: (length,) `SlotType` values; image slots are contiguous.
            grid: (rows, columns) of image slots, or None without an image.
            start: first position.
        """
        return slot_positions(self.num_axes, slots, grid, start=start)


QWEN2_5_VL = LanguageFamily("qwen2_5_vl", "qwen2_5_vl_text", num_axes=3)
"""VLM-FO1's own: positions of three axes, the published prompt."""
LLAMA = LanguageFamily(
    "llama",
    "llama",
    prompt=PromptFormat(
        before_regions="",
        marks_without_image=False,
        opens_lists=True,
        bounds_answers=True,
        plain_labels=True,
        before_label=" ",
    ),
    order=RegionOrder("RSSR"),
)
"""Llama's decoder with SmolLM2's form of conversation.

SmolLM2 has no tokens around a picture: VLM-FO1's own two are appended with the other new ones, and
stand only where image tokens do."""
LLAVA_ONEVISION = LanguageFamily(
    "llava_onevision",
    "qwen2",
    prompt=PromptFormat(
        system_turn="",
        user="<|im_start|>user ",
        before_image="",
        after_image="",
        between_turns="",
    ),
)
"""Qwen2 as LLaVA-OneVision was trained to read it (arXiv 2408.03326)."""

_FAMILIES = {family.name: family for family in (QWEN2_5_VL, LLAMA, LLAVA_ONEVISION)}


def find_family(name: str) -> LanguageFamily:
    """The family of a name.

    Raises:
        CheckpointMismatch: nobody has that name.
    """
    if name not in _FAMILIES:
        known = ", ".join(sorted(_FAMILIES))
        raise CheckpointMismatch(f"the language family {name!r} is unknown; known: {known}")
    return _FAMILIES[name]
