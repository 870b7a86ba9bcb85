"""Questions and answers about a scene whose truth is known: the instruction mixture.

Works on names and region numbers alone, so symbolic scenes and composed pictures ask alike.
Knows no pixels and no tokens.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from agent.detections import FloatArray
from agent.prompts import GROUND_CLOSE, Task
from agent.training.referring import RELATIONS, refer_to


@dataclass(frozen=True)
class MixtureSettings:
    """Shares of the questions; what remains is counting."""

    absent: float = 0.2
    """Questions about something that is not there, in any form a search has (rejection)."""
    detect: float = 0.2
    name: float = 0.14
    refer: float = 0.16
    similar: float = 0.06
    yes_no: float = 0.05
    reason: float = 0.05
    caption: float = 0.04


@dataclass(frozen=True)
class Turn:
    """One question and its only right answer."""

    kind: str
    question: str
    answer: str
    region: int | None = None
    """The region the question is about, if it names one."""

    @property
    def name_length(self) -> int:
        """Characters of the answer that say what `region` is."""
        return self.answer.find(GROUND_CLOSE) if GROUND_CLOSE in self.answer else len(self.answer)


_DEFAULT = MixtureSettings()


def grounded(label: str, regions: list[int]) -> str:
    """`<ground>label</ground><objects>...</objects>`."""
    objects = "".join(f"<region{index}>" for index in regions)
    return f"<ground>{label}</ground><objects>{objects}</objects>"


def draw_turns(
    names: list[str | None],
    vocabulary: list[str],
    num_turns: int,
    rng: np.random.Generator,
    boxes: FloatArray,
    mixture: MixtureSettings = _DEFAULT,
) -> list[Turn]:
    """Questions about one scene.

    Args:
        names: name of each region, None for a region that holds no known object.
        vocabulary: names to ask for when something absent is wanted; where all of them are there,
            all questions are about something present, and with nothing there, there are none.
        boxes: (num_regions, 4) xyxy relative to the picture.
        mixture: how often what is asked.
    """
    places: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        if name is not None:
            places.setdefault(name, []).append(index)
    drawn = [_draw_turn(names, places, vocabulary, rng, boxes, mixture) for _ in range(num_turns)]
    return [turn for turn in drawn if turn is not None]


def _draw_turn(
    names: list[str | None],
    places: dict[str, list[int]],
    vocabulary: list[str],
    rng: np.random.Generator,
    boxes: FloatArray,
    mixture: MixtureSettings,
) -> Turn | None:
    draw = rng.random()
    if not places or draw < mixture.absent:
        absent = _absent(places, vocabulary, rng)
        if absent is not None:
            return _absent_turn(absent, rng, mixture)
        if not places:
            return None
        draw = rng.uniform(mixture.absent, 1.0)
    label = list(places)[int(rng.integers(len(places)))]
    here = places[label]
    for share, turns in (
        (mixture.detect, lambda: [Turn("detect", Task.detect(label).text, grounded(label, here))]),
        (mixture.name, lambda: naming_turns(names, 1, rng)),
        (mixture.refer, lambda: _refer_turns(places, rng, boxes)),
        (mixture.similar, lambda: _similar_turns(places, rng)),
        (mixture.yes_no, lambda: [_yes_no(label, is_there=True)]),
        (mixture.reason, lambda: _reasoning_turns(names, places, rng)),
        (mixture.caption, lambda: _caption_turns(places)),
    ):
        draw -= share
        if draw < mixture.absent:
            found = turns()
            if found:
                return found[0]
    answer = f"{grounded(label, here)} {len(here)}"
    return Turn("count", Task.count(label).text, answer)


_MOST_KINDS = 5
"""A brief description names no more."""
_SAME_KIND = "Are {} and {} the same kind of thing?"
_MORE = "Is there more {} or more {} in this image?"
_IS_THERE = "Is there any {} in this image? Answer yes or no."


def _absent_turn(label: str, rng: np.random.Generator, mixture: MixtureSettings) -> Turn:
    """A question about something that is not there, in any of the forms a search has."""
    draw = rng.random()
    if draw < 0.2 and mixture.yes_no > 0.0:
        return _yes_no(label, is_there=False)
    if draw < 0.4:
        label = RELATIONS[int(rng.integers(len(RELATIONS)))].template.format(label)
    return Turn("absent", Task.detect(label).text, grounded(label, []))


def _refer_turns(
    places: dict[str, list[int]], rng: np.random.Generator, boxes: FloatArray
) -> list[Turn]:
    """One thing out of several of its kind, where there are any."""
    several = [label for label, here in places.items() if len(here) > 1] or list(places)
    label = several[int(rng.integers(len(several)))]
    referred = refer_to(label, places[label], boxes, rng)
    if referred is None:
        return []
    words, region = referred
    return [Turn("refer", Task.refer(words).text, grounded(words, [region]))]


def _similar_turns(places: dict[str, list[int]], rng: np.random.Generator) -> list[Turn]:
    """Everything else of the kind of one region."""
    several = [label for label, here in places.items() if len(here) > 1] or list(places)
    label = several[int(rng.integers(len(several)))]
    shown = places[label][int(rng.integers(len(places[label])))]
    others = [index for index in places[label] if index != shown]
    return [Turn("similar", Task.find_similar(shown).text, grounded(label, others), shown)]


def _reasoning_turns(
    names: list[str | None], places: dict[str, list[int]], rng: np.random.Generator
) -> list[Turn]:
    """A comparison of two kinds, or of two regions, thought through by naming them first."""
    if len(places) < 2:
        return []
    first, second = (list(places)[row] for row in rng.permutation(len(places))[:2])
    if rng.random() < 0.5:
        pair = places[first], places[second]
        if len(pair[0]) == len(pair[1]):
            return []
        answer = first if len(pair[0]) > len(pair[1]) else second
        task = Task.reason(_MORE.format(first, second))
    else:
        if rng.random() < 0.5:
            several = [label for label, here in places.items() if len(here) > 1]
            if not several:
                return []
            first = second = several[int(rng.integers(len(several)))]
            chosen = [int(index) for index in rng.permutation(places[first])[:2]]
        else:
            chosen = [int(rng.choice(places[label])) for label in (first, second)]
        pair = [chosen[0]], [chosen[1]]
        answer = "yes" if first == second else "no"
        task = Task.reason(_SAME_KIND, regions=(chosen[0], chosen[1]))
    thoughts = f"{grounded(first, pair[0])} {grounded(second, pair[1])}"
    return [Turn("reason", task.text, f"<think>{thoughts}</think><answer>{answer}</answer>")]


def _caption_turns(places: dict[str, list[int]]) -> list[Turn]:
    """What there is, in the order of the regions; only of scenes that a few words describe."""
    if len(places) > _MOST_KINDS:
        return []
    answer = ", ".join(grounded(label, here) for label, here in places.items())
    return [Turn("caption", Task.describe_image().text, answer)]


def naming_turns(names: list[str | None], num_turns: int, rng: np.random.Generator) -> list[Turn]:
    """Questions what a region is, about regions that have a name; none if no region has."""
    known = np.flatnonzero([name is not None for name in names])
    chosen = rng.choice(known, size=num_turns).tolist() if len(known) else []
    return [
        Turn("name", Task.describe_region(index).text, str(names[index]), index) for index in chosen
    ]


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
    # Later questions came when the tokenizer's words were settled; its pieces spell them.
    return texts + [Task.describe_region(0).text] * 8 + ["system\nYou are a helpful assistant."] * 8
