"""Questions and answers about a scene whose truth is known: the instruction mixture.

Works on names and region numbers alone, so symbolic scenes and composed pictures ask alike.
Knows no pixels and no tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from agent.prompts import Task

DETECT_SHARE, ABSENT_SHARE, NAME_SHARE = 0.4, 0.22, 0.3
"""What remains is counting. A third of the questions about whereabouts ask for something absent."""


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    kind: str
    question: str
    answer: str
    region: int | None = None
    """The region the question is about, if it names one."""


def grounded(label: str, regions: list[int]) -> str:
    """`<ground>label</ground><objects>...</objects>`."""
    objects = "".join(f"<region{index}>" for index in regions)
    return f"<ground>{label}</ground><objects>{objects}</objects>"


def draw_turns(
    names: list[str | None], vocabulary: list[str], num_turns: int, rng: np.random.Generator
) -> list[Turn]:
    """Questions about one scene.

    Args:
        names: name of each region, None for a region that holds no known object.
        vocabulary: names to ask for when something absent is wanted.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(index)
    present = list(places)
    turns = []
    for _ in range(num_turns):
        draw = rng.random()
        if not present or draw < ABSENT_SHARE:
            label = _absent(places, vocabulary, rng)
            turns.append(Turn("absent", Task.detect(label).text, grounded(label, [])))
        elif draw < ABSENT_SHARE + DETECT_SHARE:
            label = present[int(rng.integers(len(present)))]
            turns.append(Turn("detect", Task.detect(label).text, grounded(label, places[label])))
        elif draw < ABSENT_SHARE + DETECT_SHARE + NAME_SHARE:
            turns += naming_turns(names, 1, rng)
        else:
            label = present[int(rng.integers(len(present)))]
            answer = f"{grounded(label, places[label])} {len(places[label])}"
            turns.append(Turn("count", Task.count(label).text, answer))
    return turns


def naming_turns(names: list[str | None], num_turns: int, rng: np.random.Generator) -> list[Turn]:
    """Questions what a region is, about regions that have a name; none if no region has."""
    known = np.flatnonzero([name is not None for name in names])
    chosen = rng.choice(known, size=num_turns).tolist() if len(known) else []
    return [
        Turn("name", Task.describe_region(index).text, str(names[index]), index) for index in chosen
    ]


def _absent(places: dict[str, list[int]], vocabulary: list[str], rng: np.random.Generator) -> str:
    while True:
        label = vocabulary[int(rng.integers(len(vocabulary)))]
        if label not in places:
            return label


def corpus(vocabulary: list[str]) -> list[str]:
    """Texts whose words the tokenizer should know."""
    texts = [f" {name}" for name in vocabulary] * 4 + vocabulary * 4
    for name in vocabulary:
        texts += [Task.detect(name).text, Task.count(name).text, grounded(name, [])]
    return texts + [Task.describe_region(0).text] * 8 + ["system\nYou are a helpful assistant."] * 8
