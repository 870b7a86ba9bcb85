"""The answer grammar as an automaton over tokens: which token may come next.

Optional while decoding: it forbids only what would break the form (`</objects>` without
`<objects>`, a region that does not exist, a label that never closes), so an answer that is well
formed already is never changed. Knows no model and no text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from agent.prompts import END_OF_TURN
from agent.tokenizer import PromptTokenizer

_MAX_LABEL_TOKENS = 24
_ROUNDS, _LEAST_ROUND = 3, 6
_MEMORY = 36
"""Tokens that a grammar remembers: a phrase of twelve, three times."""


class Place(Enum):
    """Where in an answer the next token stands."""

    TEXT = "text"
    LABEL = "label"
    """Between `<ground>` and `</ground>`."""
    BETWEEN = "between"
    """After `</ground>`: only `<objects>` can follow."""
    OBJECTS = "objects"
    """Between `<objects>` and `</objects>`."""


@dataclass(frozen=True)
class AnswerTokens:
    """Ids that mean something to the grammar."""

    ground_open: int
    ground_close: int
    objects_open: int
    objects_close: int
    end_of_turn: int
    regions: tuple[int, ...]
    """Id of `<region0>`, `<region1>` ..."""

    @classmethod
    def of(
        cls, tokenizer: PromptTokenizer, *, num_regions: int, end_of_turn: int | None = None
    ) -> AnswerTokens:
        """The ids of a tokenizer, for a prompt with `num_regions` boxes.

        `end_of_turn` is the token that ends an answer, if it is not the usual one.
        """
        return cls(
            tokenizer.control("<ground>"),
            tokenizer.control("</ground>"),
            tokenizer.control("<objects>"),
            tokenizer.control("</objects>"),
            tokenizer.control(END_OF_TURN) if end_of_turn is None else end_of_turn,
            tuple(tokenizer.region(index) for index in range(num_regions)),
        )

    def first(self, num_regions: int) -> AnswerTokens:
        """The same for a prompt with fewer boxes."""
        return replace(self, regions=self.regions[:num_regions])

    @cached_property
    def forms(self) -> frozenset[int]:
        """The four tags."""
        return frozenset(
            {self.ground_open, self.ground_close, self.objects_open, self.objects_close}
        )


class Grammar(Protocol):
    """What may come next in an answer."""

    def advanced(self, token: int) -> Grammar:
        """The grammar after one more token."""
        ...

    def constrain(self, logits: Tensor) -> Tensor:
        """(vocabulary,) logits with what may not come next at minus infinity."""
        ...


class AnswerGrammar:
    """Follows an answer token by token."""

    def __init__(
        self, tokens: AnswerTokens, *, all_regions: tuple[int, ...], place: Place = Place.TEXT
    ) -> None:
        """`all_regions` are the ids of every region token, those without a box included."""
        self.tokens = tokens
        self.place = place
        self._all_regions = all_regions

    def advanced(self, token: int) -> AnswerGrammar:
        """The grammar after one more token; a token it forbids leaves the place as it is."""
        tokens = self.tokens
        following = {
            (Place.TEXT, tokens.ground_open): Place.LABEL,
            (Place.LABEL, tokens.ground_close): Place.BETWEEN,
            (Place.BETWEEN, tokens.objects_open): Place.OBJECTS,
            (Place.OBJECTS, tokens.objects_close): Place.TEXT,
        }.get((self.place, token), self.place)
        return AnswerGrammar(tokens, all_regions=self._all_regions, place=following)

    def constrain(self, logits: Tensor) -> Tensor:
        """(vocabulary,) logits with what may not come next at minus infinity."""
        tokens = self.tokens
        if self.place is Place.BETWEEN:
            return _only(logits, [tokens.objects_open])
        if self.place is Place.OBJECTS:
            return _only(logits, [*tokens.regions, tokens.objects_close])
        forbidden = set(self._all_regions) - set(tokens.regions)
        if self.place is Place.LABEL:
            forbidden |= {*self._all_regions, tokens.end_of_turn, *tokens.forms}
            forbidden -= {tokens.ground_close}
        else:
            forbidden |= tokens.forms - {tokens.ground_open}
        constrained = logits.clone()
        constrained[list(forbidden)] = -torch.inf
        return constrained


class BoundedAnswerGrammar:
    """The answer grammar for a model whose words may run on: it comes to an end by itself.

    Regions go upwards and stand once in a list, labels are short, no control token is written that
    means nothing in an answer, and words that say the same again and again end the turn.
    """

    def __init__(
        self,
        inner: AnswerGrammar,
        *,
        never: tuple[int, ...],
        since: int = 0,
        region: int = -1,
        written: tuple[int, ...] = (),
    ) -> None:
        """Begin, or stand within, an answer.

        Args:
            inner: follows the form.
            never: tokens that mean nothing in an answer.
            since: tokens since the place was entered.
            region: the last region of the list, or of the regions that stand side by side.
            written: the last tokens.
        """
        self._inner = inner
        self._never = never
        self._since = since
        self._region = region
        self._written = written

    def advanced(self, token: int) -> BoundedAnswerGrammar:
        """The grammar after one more token."""
        inner, regions = self._inner.advanced(token), self._inner.tokens.regions
        return BoundedAnswerGrammar(
            inner,
            never=self._never,
            since=self._since + 1 if inner.place is self._inner.place else 0,
            region=regions.index(token) if token in regions else -1,
            written=(*self._written, token)[-_MEMORY:],
        )

    def constrain(self, logits: Tensor) -> Tensor:
        """(vocabulary,) logits with what may not come next at minus infinity."""
        tokens, place = self._inner.tokens, self._inner.place
        if place is Place.TEXT and _goes_round(self._written):
            return _only(logits, [tokens.end_of_turn])
        if place is Place.LABEL and self._since >= _MAX_LABEL_TOKENS:
            return _only(logits, [tokens.ground_close])
        constrained = self._inner.constrain(logits)
        forbidden = [*self._never, *tokens.regions[: self._region + 1]]
        if place is Place.LABEL and self._since == 0:
            forbidden.append(tokens.ground_close)
        constrained[forbidden] = -torch.inf
        return constrained


def meaningless_in_answers(tokenizer: PromptTokenizer, tokens: AnswerTokens) -> tuple[int, ...]:
    """Control tokens that a tokenizer has and no answer in words needs."""
    meant = {*tokens.forms, *tokens.regions, tokens.end_of_turn}
    return tuple(sorted(tokenizer.control_ids - meant))


def _goes_round(written: tuple[int, ...]) -> bool:
    """Whether the last tokens say one thing three times or more, `_LEAST_ROUND` tokens in all."""
    for length in range(1, _MEMORY // _ROUNDS + 1):
        rounds = max(_ROUNDS, -(-_LEAST_ROUND // length))
        tail = written[-rounds * length :]
        if len(tail) == rounds * length and tail == tail[:length] * rounds:
            return True
    return False


def _only(logits: Tensor, allowed: list[int]) -> Tensor:
    constrained = torch.full_like(logits, -torch.inf)
    constrained[allowed] = logits[allowed]
    return constrained
