"""What a generation engine is asked and what it answers: ids, slots and positions only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from agent.drafting import Guesses
from agent.grammar import Grammar
from agent.model.language_model import LanguageModel
from agent.model.positions import SlotType
from agent.region_choice import RegionChoice
from agent.stage_settings import EngineSettings


@dataclass(frozen=True)
class PrefixInput:
    """What has to be run to get a prefix's keys and values."""

    ids: Tensor
    """(length,); those at slots mean nothing."""
    positions: Tensor
    """(axes, length)."""
    next_position: int
    slots: Tensor | None = None
    """(length,) `SlotType`; None: no slots."""
    grid: tuple[int, int] | None = None
    """(rows, columns) of the image's slots."""
    fill: Callable[[SlotType], Tensor] | None = None
    """(slots of a type, hidden): what stands in them, computed when it is asked for."""

    def filled(self, kind: SlotType) -> Tensor | None:
        """What stands in the slots of a type; None where there are none."""
        if self.slots is None or self.fill is None or not (self.slots == kind).any():
            return None
        return self.fill(kind)

    @torch.inference_mode()
    def embedded(self, language: LanguageModel) -> Tensor:
        """(length, hidden): tokens embedded and slots filled."""
        embeddings = language.embed(self.ids.to(language.device))
        for kind in (SlotType.IMAGE, SlotType.REGION):
            values = self.filled(kind)
            if values is not None:
                embeddings[self.slots == kind] = values.to(embeddings.dtype)
        return embeddings


@dataclass(frozen=True)
class PrefixSource:
    """A prefix by key, and how to make it."""

    key: str
    """Equal keys mean equal prefixes; an empty key is shared with nobody."""
    make: Callable[[], PrefixInput]
    parent: PrefixSource | None = None
    """A prefix this one continues."""


@dataclass(frozen=True)
class QuestionInput:
    """A question's tokens, placed behind its prefix."""

    ids: Tensor
    positions: Tensor
    """(axes, length)."""
    next_position: int


@dataclass(frozen=True)
class Sampling:
    """Tokens drawn at random instead of the likeliest; equal seeds draw alike."""

    seed: int
    temperature: float = 1.0


@dataclass(frozen=True)
class Request:
    """One question to be answered."""

    prefix: PrefixSource
    question: Callable[[int], QuestionInput]
    """The question's tokens, given the first free position behind the prefix.

    Raises what the caller is to get instead of an answer."""
    end_of_turn: int
    max_new_tokens: int
    drafter: Guesses | None = None
    grammar: Grammar | None = None
    choice: RegionChoice | None = None
    """The answer is read where it would begin, and nothing is written."""
    sampling: Sampling | None = None
    """None: greedy."""
    deadline_s: float = float("inf")
    """On `time.monotonic`'s clock; earlier ones go first."""
    on_ids: Callable[[Sequence[int]], None] | None = None
    """Told all ids so far after each pass that wrote some, in the engine's thread."""


@dataclass(frozen=True)
class Completion:
    """What was written."""

    ids: tuple[int, ...]
    """Without the end token."""
    probabilities: tuple[float, ...]
    truncated: bool
    num_prompt_tokens: int
    num_reused_tokens: int
    """Prompt tokens whose keys and values were there when the request came."""
    num_passes: int
    """Forward passes this answer took part in, its own prefix's included."""
    num_accepted: int
    """Tokens that a guess had right."""

    @classmethod
    def told(cls, ids: Sequence[int], probabilities: Sequence[float]) -> Completion:
        """What no language model had to write."""
        return cls(
            ids=tuple(ids), probabilities=tuple(probabilities), truncated=False,
            num_prompt_tokens=0, num_reused_tokens=0, num_passes=0, num_accepted=0,
        )  # fmt: skip


class GenerationEngine(Protocol):
    """Whatever decodes: `agent.engine`, or one that another package brings."""

    settings: EngineSettings
    counts: Counter[str]
    """What it did since the start; the names are its own."""

    def submit(self, request: Request) -> Future[Completion]:
        """The answer to come; cancelling it ends its decoding. Safe from any thread.

        Raises:
            Overloaded: too many requests wait already.
        """
        ...

    def stalled_s(self) -> float:
        """Seconds for which the work under way has stood still; zero while there is none."""
        ...

    def close(self) -> None:
        """Answer nothing more; what is under way is cancelled."""
        ...
