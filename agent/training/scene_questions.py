"""Questions about symbolic scenes, with their answers, as the embedded model is asked and answers.

An answer is what the evidence of the regions says (`Scene.chances`), so it can be told from what
the model is shown.

What is asked: one label as a plain noun (`agent.plain_nouns`), words for kinds ("vehicle"), things
that are absent, things by colour, size or place, a box's likes, a box's name, yes or no. A tenth of
all words is never asked in training, to see whether names need to have been seen.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from agent.beliefs import LEAST_SCORE
from agent.plain_nouns import plain_noun, plural, with_article
from agent.prompts import Task
from agent.training.symbolic_scenes import Array, Scene
from agent.vocabulary import COLOURS, Thing, Vocabulary


@dataclass(frozen=True)
class Asked:
    """Where is what this names? None of the regions is an answer too."""

    label: str
    chances: Array
    """(regions,) how likely each is meant."""
    plain: str = ""
    """The word for its kind: of "red car", "car"."""

    @property
    def regions(self) -> list[int]:
        """Numbers of the regions that are rather meant than not, upwards."""
        return np.flatnonzero(self.chances >= 0.5).tolist()


@dataclass(frozen=True)
class Told:
    """A question in words and its answer in words."""

    question: str
    answer: str


def held_out(word: str) -> bool:
    """Whether a word is never asked in training."""
    if word in _ALWAYS:
        return False
    return hashlib.blake2b(word.encode(), digest_size=2).digest()[0] < 26


def shows_held_out(scene: Scene) -> bool:
    """Whether one of a scene's things has a name that is never asked in training."""
    return any(held_out(word) for thing in scene.likeliest for word in thing.words)


_CROWD = 3
_DRAWS = 2
"""For each label that is wanted: some words are drawn again, and others are no fair question."""
_LEAST_NAMED = 0.1
"""A box that is given may be worse than any that is proposed, and is named all the same."""
_ALWAYS = frozenset({"person", "car", "dog", "cat", "animal", "vehicle", "bird", "bicycle"})


class Questioner:
    """Draws questions."""

    def __init__(
        self,
        words: Vocabulary,
        seed: int,
        *,
        may_ask: Callable[[str], bool] | None = None,
        conversation: Sequence[Told] = (),
    ) -> None:
        """
        Args:
            words: what things are called.
            seed: of the draws.
            may_ask: words that may be asked; None: all that are not held out.
            conversation: questions that have nothing to do with the scene, and their answers.
        """
        self._conversation = conversation
        self._dice = random.Random(seed)
        self._may_ask = may_ask or (lambda word: not held_out(word))
        # COCO's things are asked for most, also where they are not.
        often = [*words.coco] * 3
        self._all = [
            word
            for thing in (*often, *words.imagenet)
            for word in (*thing.names[:2], thing.everyday)
            if self._may_ask(word)
        ]
        self._all += [w for thing in words.coco for w in thing.wider if self._may_ask(w)]
        self._wider = sorted({w for thing in (*words.coco, *words.imagenet) for w in thing.wider})
        self._others: dict[str, list[str]] = {}
        for word, kinds in words.kinds.items():
            for kind in kinds if self._may_ask(word) else ():
                self._others.setdefault(kind, []).append(word)
        self._kin: dict[str, list[Thing]] = {}
        for thing in (*words.coco, *words.imagenet):
            for word in thing.wider:
                self._kin.setdefault(word, []).append(thing)

    def labels(self, scene: Scene, count: int) -> list[Asked]:
        """At most so many different labels, about half of them absent; at least one.

        A scene of few things has fewer words that are true of it than may be asked for.
        """
        dice = self._dice
        asked: dict[str, Asked] = {}
        # Mostly what is there; also what nearly is.
        sure = [scene.likeliest[k] for k in scene.usual_names(LEAST_SCORE)]
        likely = list({thing.names[0]: thing for thing in scene.likeliest}.values())
        # Long lists are the hardest answers, and crowds are what photographs show.
        # In order: that of a set would change from process to process.
        shown = Counter(
            word for thing in sure for word in dict.fromkeys((thing.everyday, *thing.wider))
        )
        crowds = [word for word, times in shown.items() if times >= _CROWD and self._may_ask(word)]
        draws = 0
        while len(asked) < count and (draws < _DRAWS * count or not asked):
            draws += 1
            present = sure if sure and dice.random() < 0.6 else likely
            kind = dice.random()
            if kind < 0.2 and crowds:
                drawn: str | None = dice.choice(crowds)
            elif kind < 0.58:
                drawn = self._word_of(dice.choice(present))
            elif kind < 0.76:
                drawn = self._sibling_of(dice.choice(present))
            elif kind < 0.82:
                drawn = dice.choice(self._wider)
            elif kind < 0.92:
                drawn = self._other_of(dice.choice(present))
            else:
                drawn = dice.choice(self._all)
            if drawn is None:
                continue
            word = plain_noun(drawn)
            if word in asked or not self._may_ask(word):
                continue
            one = Asked(word, scene.chances(word), word)
            if one.regions or not self._arguable(scene, word):
                asked[word] = one
        return list(asked.values())

    def likes(self, scene: Scene) -> Asked | None:
        """The others of a region's everyday kind."""
        names = scene.usual_names(LEAST_SCORE)
        if not names:
            return None
        region = self._dice.choice(list(names))
        chances = scene.chances(names[region])
        chances[region] = 0.0
        return Asked(f"<region{region}>", chances)

    def described(self, scene: Scene) -> Asked | None:
        """A thing by its colour, its size or its place among its like."""
        dice = self._dice
        names = scene.usual_names(LEAST_SCORE)
        if not names:
            return None
        word = dice.choice(list(names.values()))
        if not self._may_ask(word):
            return None
        chances = scene.chances(word)
        regions = Asked(word, chances).regions
        boxes = np.stack([scene.regions[k].box for k in regions])
        kind = dice.random()
        if kind < 0.5:
            colour = dice.choice([scene.regions[k].colour for k in regions])
            if dice.random() < 0.25:
                colour = dice.randrange(len(COLOURS))
            coloured = [region.colour == colour for region in scene.regions]
            return Asked(f"{COLOURS[colour]} {word}", chances * np.array(coloured), word)
        if len(regions) < 2:
            return None
        centre = (boxes[:, 0] + boxes[:, 2]) / 2
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        forms = (
            (f"leftmost {word}", centre.argmin(), centre),
            (f"{word} on the left", centre.argmin(), centre),
            (f"rightmost {word}", centre.argmax(), centre),
            (f"{word} on the right", centre.argmax(), centre),
            (f"largest {word}", area.argmax(), area),
            (f"biggest {word}", area.argmax(), area),
            (f"smallest {word}", area.argmin(), area),
        )
        text, place, values = dice.choice(forms)
        ordered = np.sort(values)
        if min(np.diff(ordered)[:1].min(), np.diff(ordered)[-1:].min()) < 0.03:
            return None
        meant = np.arange(len(chances)) == regions[int(place)]
        return Asked(text, chances * meant, word)

    def names(self, scene: Scene) -> Told | None:
        """What is this box?"""
        dice = self._dice
        names = scene.usual_names(_LEAST_NAMED)
        if not names:
            return None
        region = dice.choice(list(names))
        word = scene.said(region)
        if dice.random() < 0.3:
            colour = COLOURS[scene.regions[region].colour]
            return Told(Task.describe_region(region).text, with_article(f"{colour} {word}"))
        question = dice.choice(
            (f"What is <region{region}>?", f"What is in <region{region}>?",
             f"Name <region{region}>.")
        )  # fmt: skip
        return Told(question, with_article(word))

    def conversation(self) -> Told | None:
        """Something that has nothing to do with the picture."""
        return self._dice.choice(self._conversation) if self._conversation else None

    def yes_or_no(self, scene: Scene) -> Told:
        """Is it there?"""
        (asked,) = self.labels(scene, 1)
        word = asked.plain
        question = self._dice.choice(
            (f"Is there {with_article(word)} in this image?",
             f"Are there any {plural(word)} in the picture? Answer yes or no.",
             f"Do you see {with_article(word)}?")
        )  # fmt: skip
        return Told(question, "Yes." if asked.regions else "No.")

    def lists(self, scene: Scene) -> Told | None:
        """What is in the picture, in a sentence."""
        dice = self._dice
        some = list(dict.fromkeys(scene.usual_names(LEAST_SCORE).values()))[:5]
        if not some:
            return None
        listed = [with_article(word) for word in some]
        sentence = listed[0] if len(listed) == 1 else f"{', '.join(listed[:-1])} and {listed[-1]}"
        question = dice.choice(
            ("What is in this image?", "What do you see?", "Describe this image briefly.")
        )
        return Told(question, f"{sentence.capitalize()}.")

    def _word_of(self, thing: Thing) -> str:
        """One of the words that are true of it."""
        dice = self._dice
        kind = dice.random()
        if kind < 0.3 or (kind >= 0.65 and not thing.wider):
            return thing.everyday
        if kind < 0.65:
            return dice.choice(thing.names)
        return dice.choice(thing.wider)

    def _sibling_of(self, thing: Thing) -> str | None:
        """A word for something of the same kind."""
        dice = self._dice
        if not thing.wider:
            return None
        kin = dice.choice(self._kin[dice.choice(thing.wider)])
        return kin.everyday if dice.random() < 0.7 else kin.names[0]

    def _other_of(self, thing: Thing) -> str | None:
        """A word for something that is of a kind with it, or of any kind, and no class."""
        dice = self._dice
        kinds = [word for word in thing.words if word in self._others]
        kind = dice.choice(sorted(kinds) if kinds else self._all)
        return dice.choice(self._others[kind]) if kind in self._others else None

    def _arguable(self, scene: Scene, word: str) -> bool:
        """Whether somebody could call one of the scene's things so, though our lists do not.

        A dog without a breed may be a beagle: the detector has no breeds.
        """
        for thing in scene.likeliest:
            names = " ".join((*thing.names, thing.everyday))
            if word in names or any(
                part in word.split() for part in names.split() if len(part) > 3
            ):
                return True
        return False
