"""Guesses of what the language model will write, to be verified many tokens at a time.

Two sources: the form of the answer to the asked labels, and an earlier answer carried over.
A guess costs nothing but the verification of its tokens; right or wrong, the output is greedy
decoding's. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from agent.grammar import AnswerTokens


@dataclass(frozen=True)
class Node:
    """One guessed token."""

    token: int
    parent: int
    """Index of the node before it, -1 behind what is certain."""
    depth: int
    """0 for the first guessed token."""


@dataclass(frozen=True)
class DraftTree:
    """Several guesses with their common beginnings shared; parents come before children."""

    nodes: tuple[Node, ...] = ()

    @classmethod
    def of(cls, guesses: Sequence[Sequence[int]], *, limit: int) -> DraftTree:
        """The tree of some guesses, earlier ones first, of at most `limit` tokens."""
        nodes: list[Node] = []
        children: dict[tuple[int, int], int] = {}
        for guess in guesses:
            parent = -1
            for depth, token in enumerate(guess):
                found = children.get((parent, token))
                if found is None:
                    if len(nodes) == limit:
                        break
                    nodes.append(Node(token, parent, depth))
                    found = children[(parent, token)] = len(nodes) - 1
                parent = found
        return cls(tuple(nodes))

    def child(self, parent: int, token: int) -> int | None:
        """The node that guesses `token` after `parent`, if any."""
        for index, node in enumerate(self.nodes):
            if node.parent == parent and node.token == token:
                return index
        return None

    def ancestors(self, index: int) -> list[int]:
        """The node and everything before it."""
        line = []
        while index >= 0:
            line.append(index)
            index = self.nodes[index].parent
        return line


class Guesses(Protocol):
    """Something that guesses."""

    def guesses(self, written: Sequence[int]) -> list[list[int]]:
        """What may follow `written`, best first; the end token is never guessed."""
        ...


class Drafter:
    """Guesses for one question."""

    def __init__(
        self,
        tokens: AnswerTokens,
        *,
        label: Sequence[int] = (),
        answers: Sequence[Sequence[int]] = (),
        num_leading: int = 0,
    ) -> None:
        """
        Args:
            tokens: the grammar's ids.
            label: tokens of the asked label; empty where the question names none.
            answers: whole answers that may come again, likeliest first, end token left out.
            num_leading: so many of the best proposals are guessed as the only or the next one.
        """
        self._tokens = tokens
        self._opening = [
            tokens.ground_open, *label, tokens.ground_close, tokens.objects_open
        ] if label else []  # fmt: skip
        self._answers = [list(answer) for answer in answers]
        self._likely = _regions_of(self._answers, tokens)
        self._likely += [r for r in tokens.regions[:num_leading] if r not in self._likely]

    def guesses(self, written: Sequence[int]) -> list[list[int]]:
        """What may follow `written`, best first.

        The end token is never guessed: what the model says after the last token guessed right is
        known without it.
        """
        tokens, done = self._tokens, list(written)
        found = [
            answer[len(done) :]
            for answer in self._answers
            if len(answer) > len(done) and answer[: len(done)] == done
        ]
        closing = [tokens.objects_close]
        if self._opening and done == self._opening[: len(done)]:
            rest = self._opening[len(done) :]
            found += [[*rest, *more, *closing] for more in ([], *([r] for r in self._likely))]
        elif done and done[-1] in tokens.regions:
            # Most lists are short: after each region they may well end. Numbers go upwards.
            number = {region: index for index, region in enumerate(tokens.regions)}
            after = [r for r in self._likely if number[r] > number[done[-1]]]
            found += [closing, *([r, *closing] for r in after)]
        return found


def _regions_of(answers: Sequence[Sequence[int]], tokens: AnswerTokens) -> list[int]:
    """Every region that some answer names, in order of first mention."""
    known = frozenset(tokens.regions)
    return list(dict.fromkeys(token for answer in answers for token in answer if token in known))
