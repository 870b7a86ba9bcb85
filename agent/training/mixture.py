"""Questions and answers about a scene whose truth is known.

Works on names and region numbers alone. Knows no pixels and no tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from agent.prompts import Task

_IS_THERE = "Is there any {} in this image? Answer yes or no."


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    kind: str
    question: str
    answer: str


def grounded(label: str, regions: list[int]) -> str:
    """`<ground>label</ground><objects>...</objects>`."""
    objects = "".join(f"<region{index}>" for index in regions)
    return f"<ground>{label}</ground><objects>{objects}</objects>"


def yes_no_turns(
    names: list[str | None], vocabulary: list[str], num_turns: int, rng: np.random.Generator
) -> list[Turn]:
    """Questions whether something is there; half of them about something absent."""
    present = sorted({name for name in names if name is not None})
    turns = []
    for number in range(num_turns):
        is_there = bool(present) and number % 2 == 0
        label = (
            present[int(rng.integers(len(present)))]
            if is_there
            else _absent(present, vocabulary, rng)
        )
        if label is not None:
            turns.append(_yes_no(label, is_there=is_there))
    return turns


def _yes_no(label: str, *, is_there: bool) -> Turn:
    answer = "yes" if is_there else "no"
    return Turn(answer, Task.chat(_IS_THERE.format(label)).text, answer)


def _absent(
    present: Collection[str], vocabulary: list[str], rng: np.random.Generator
) -> str | None:
    left = [label for label in vocabulary if label not in present]
    return left[int(rng.integers(len(left)))] if left else None


def corpus(vocabulary: list[str]) -> list[str]:
    """Texts whose words the tokenizer should know."""
    texts = [f" {name}" for name in vocabulary] * 4 + vocabulary * 4
    for name in vocabulary:
        texts += [Task.detect(name).text, Task.count(name).text, grounded(name, [])]
    return texts + [Task.describe_region(0).text] * 8 + ["system\nYou are a helpful assistant."] * 8
