"""What the generation engine is asked and what it answers: ids, embeddings and positions only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from agent.drafting import Guesses
from agent.grammar import Grammar
from agent.region_choice import RegionChoice


@dataclass(frozen=True)
class PrefixInput:
    """What has to be run to get a prefix's keys and values."""

    embeddings: Tensor
    """(length, hidden)."""
    positions: Tensor
    """(axes, length)."""
    next_position: int


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
