"""Scenes without pictures: regions as the classifiers would describe them, and what is there.

A scene is a list of regions, each with class evidence, appearance and a box. Evidence is drawn so
that its doubts look like the real classifiers': the ImageNet head's confusions come from its own
weights, the detector's from how sure it is of things in and out of its classes. Parts, duplicates
and background stand between the things. What a region may be called follows from its evidence
(`agent.beliefs`), not from what it was drawn for. Knows no tokens.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from agent.beliefs import NameBeliefs
from agent.model.name_mixture import NUM_APPEARANCE, NUM_COCO, NUM_IMAGENET
from agent.vocabulary import COLOURS, Thing, Vocabulary

Array = NDArray[np.float32]


@dataclass(frozen=True)
class SceneRegion:
    """One box of a scene."""

    coco: Array
    """(80,) scores."""
    imagenet: Array
    """(1000,) probabilities."""
    appearance: Array
    """(16,): shares of the 11 colours, then brightness, contrast, saturation, 2 unused."""
    colour: int
    box: Array
    """(4,) xyxy in 0..1."""


@dataclass(frozen=True)
class Scene:
    """Regions in the order a proposal network would give them: the surest first."""

    regions: tuple[SceneRegion, ...]
    likeliest: tuple[Thing, ...]
    """Of each region, the class with the most weight."""
    usual: tuple[tuple[str, float], ...]
    """Of each region, the everyday name with the highest score, and that score."""
    cells: Array = field(repr=False)
    """(25, 1000) class probabilities of a 5x5 grid over the picture."""
    weights: Array = field(repr=False)
    """(regions, 1080) of the classes."""
    beliefs: NameBeliefs = field(repr=False)

    def page(self, start: int, count: int) -> Scene:
        """The same picture with so many of its regions, from `start` on."""
        part = slice(start, start + count)
        return replace(
            self, regions=self.regions[part], likeliest=self.likeliest[part],
            usual=self.usual[part], weights=self.weights[part],
        )  # fmt: skip

    def chances(self, word: str) -> Array:
        """(regions,) how likely `word` names each."""
        return self.beliefs.chances(word, self.weights)

    def said(self, region: int) -> str:
        """What to call a region, by its number (`NameBeliefs.said`)."""
        (name,) = self.beliefs.said(self.weights[[region]])
        return name

    def usual_names(self, least: float) -> dict[int, str]:
        """Everyday names of the regions that have one of at least this score."""
        return {k: name for k, (name, score) in enumerate(self.usual) if score >= least}


_LEFTOVER = 0.12
"""Share of scenes in which nothing is to be found."""
_WORN = (
    "jersey", "suit", "jeans", "sweatshirt", "cowboy hat", "sunglasses", "backpack", "wig",
    "bow tie", "windsor tie",
    "miniskirt", "swimming trunks", "lab coat", "trench coat", "cardigan", "poncho",
    "running shoe", "crash helmet", "military uniform", "academic gown", "groom", "ballplayer",
    "bathing cap", "scuba diver", "sarong", "kimono", "sunglass", "moped", "unicycle",
)  # fmt: skip
"""What ImageNet's classes see where a person is: it has none for people."""


class EvidenceModel:
    """Draws what the two classifiers say about a box.

    The shares and ranges are those seen on hand-labelled photographs (docs/decisions): the
    classifier is sure of something everywhere, right or wrong; the detector's best score, the
    objectness, is what tells whole things from their parts and from background.
    """

    def __init__(self, words: Vocabulary, head: Array, dice: np.random.Generator) -> None:
        """`head`: (1000, width) weights of the ImageNet classifier's last layer."""
        self._words = words
        self._dice = dice
        centred = head - head.mean(0)
        unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
        self._unit = unit.astype(np.float32)
        self._alike = (unit @ unit.T).astype(np.float32)
        """(1000, 1000) how alike two classes look to the classifier."""
        self._coco_alike = np.stack(
            [
                self._alike[list(thing.imagenet)].mean(0)
                if thing.imagenet
                else np.zeros(NUM_IMAGENET, dtype=np.float32)
                for thing in words.coco
            ]
        )
        self._worn = [k for k, t in enumerate(words.imagenet) if t.names[0] in _WORN]

    def imagenet(self, shown: int | None, *, right: float, clarity: tuple[float, float]) -> Array:
        """(1000,) probabilities.

        Args:
            shown: the class to be seen; None for what the classifier has no class for.
            right: how often that class is what it sees.
            clarity: least and greatest sureness, 0 (anything) to 1 (one class alone).
        """
        dice = self._dice
        if shown is None or dice.random() > right:
            target = int(dice.integers(NUM_IMAGENET))
            if shown is not None and dice.random() < 0.5:
                near = np.argpartition(-self._alike[shown], 12)[:12]
                target = int(dice.choice(near))
        else:
            target = shown
        noise = dice.standard_normal(self._unit.shape[1]).astype(np.float32)
        logits = (self._unit @ noise) * dice.uniform(0.8, 2.0)
        logits = logits + self._alike[target] * (2.0 + 10.0 * dice.uniform(*clarity))
        scores = np.exp(logits - logits.max())
        found: Array = (scores / scores.sum()).astype(np.float32)
        return found

    def worn(self) -> int:
        """A class that ImageNet's classifier sees in a person."""
        return int(self._dice.choice(self._worn))

    def coco(self, shown: int | None, imagenet: int | None, objectness: float) -> Array:
        """(80,) scores whose largest is `objectness`."""
        dice = self._dice
        scores = dice.exponential(0.006, NUM_COCO).astype(np.float32)
        scores = np.minimum(scores, 0.5 * objectness)
        first, second = shown, None
        if shown is not None:
            if dice.random() < 0.3:
                second = self._near(shown)
            if second is not None and dice.random() < 0.35:
                first, second = second, first
        elif imagenet is not None and dice.random() < 0.6:
            alike = self._coco_alike[:, imagenet] + dice.normal(0, 0.12, NUM_COCO)
            first = int(alike.argmax())
        else:
            # Any box may be taken for a person or a chair more easily than for a toaster.
            first = int(dice.integers(NUM_COCO)) if dice.random() < 0.6 else 0
        scores[first if first is not None else 0] = objectness
        if second is not None:
            scores[second] = objectness * dice.uniform(0.15, 0.95)
        return scores

    def _near(self, coco: int) -> int:
        """Another class of COCO of the same kind, if there is one."""
        wider = set(self._words.coco[coco].wider)
        kin = [k for k, t in enumerate(self._words.coco) if k != coco and wider & set(t.wider)]
        return int(self._dice.choice(kin)) if kin else int(self._dice.integers(NUM_COCO))


class SceneMaker:
    """Draws scenes."""

    def __init__(self, words: Vocabulary, head: Array, seed: int) -> None:
        self.words = words
        self._dice = np.random.default_rng(seed)
        self._choice = random.Random(seed)
        self._evidence = EvidenceModel(words, head, self._dice)
        self._beliefs = NameBeliefs(words)
        self.doubt = 1.0
        """0: everything is what it seems; 1: as doubtful as photographs are. Pointing is learned
        before doubt is."""
        # People are asked about most, and stand in most pictures.
        self._coco = np.array([8.0 if k == 0 else 1.0 for k in range(NUM_COCO)])
        self._coco /= self._coco.sum()

    def scene(self, num_regions: int) -> Scene:
        """A scene of so many regions."""
        dice = self._dice
        num_things = max(1, int(num_regions * dice.beta(1.6, 3.0)))
        kinds = [self._kind() for _ in range(max(1, int(num_things * dice.uniform(0.4, 1.0))))]
        things = [*kinds, *(self._choice.choice(kinds) for _ in range(num_things - len(kinds)))]
        wholes = [self._whole(thing) for thing in things]
        # The later pages of many boxes show parts and background and nothing else.
        is_leftover = num_regions > 1 and dice.random() < _LEFTOVER
        regions = [] if is_leftover else list(wholes)
        while len(regions) < num_regions:
            kind = dice.random()
            number = int(dice.integers(num_things))
            thing, whole = things[number], wholes[number]
            if kind < 0.12:
                regions.append(self._around(thing, whole, right=0.8, clarity=(0.2, 1.0), near=True))
            elif kind < 0.5:
                regions.append(self._inside(thing, whole))
            elif kind < 0.66:
                regions.append(
                    self._around(thing, whole, right=0.5, clarity=(0.0, 0.5), near=False)
                )
            else:
                regions.append(self._background())
        regions.sort(key=lambda region: -float(region.coco.max()))
        return self.of(regions)

    def of(self, regions: Sequence[SceneRegion]) -> Scene:
        """The scene of these regions."""
        coco = np.stack([region.coco for region in regions])
        weights = self._beliefs.weights(coco, np.stack([region.imagenet for region in regions]))
        return Scene(
            tuple(regions),
            tuple(self._beliefs.likeliest(weights)),
            tuple(self._beliefs.usual(weights)),
            self._cells(regions),
            weights,
            self._beliefs,
        )

    def _kind(self) -> Thing:
        """A class of COCO or of ImageNet."""
        dice = self._dice
        if dice.random() < 0.5:
            return self.words.coco[int(dice.choice(NUM_COCO, p=self._coco))]
        return self.words.imagenet[int(dice.integers(NUM_IMAGENET))]

    def _class_of(self, thing: Thing) -> int | None:
        """The class of ImageNet that a thing shows."""
        if thing.coco == 0:
            return self._evidence.worn() if self._dice.random() < 0.6 else None
        return int(self._dice.choice(thing.imagenet)) if thing.imagenet else None

    def _whole(self, thing: Thing) -> SceneRegion:
        """The box that shows a thing best."""
        dice = self._dice
        shown, sure = self._class_of(thing), 1.0 - self.doubt
        objectness = max(0.1, float(dice.beta(2.8, 3.6)))
        objectness += sure * (0.75 - objectness)
        return SceneRegion(
            self._evidence.coco(thing.coco, shown, objectness),
            self._evidence.imagenet(
                shown, right=0.78 + 0.22 * sure, clarity=(0.2 + 0.5 * sure, 1.0)
            ),
            *self._looks(),
            self._box(float(dice.beta(1.3, 3.0))),
        )

    def _around(
        self, thing: Thing, whole: SceneRegion, *, right: float, clarity: tuple[float, float],
        near: bool,
    ) -> SceneRegion:  # fmt: skip
        """A looser box around a thing: another view of it, or it among other things."""
        dice = self._dice
        shown = self._class_of(thing)
        believed = thing.coco if near or dice.random() < 0.4 else None
        x1, y1, x2, y2 = whole.box
        wide, high = (x2 - x1) * dice.uniform(0.05, 0.4, 2), (y2 - y1) * dice.uniform(0.05, 0.4, 2)
        box = np.array([x1 - wide[0], y1 - high[0], x2 + wide[1], y2 + high[1]])
        return SceneRegion(
            self._evidence.coco(believed, shown, self._low()),
            self._evidence.imagenet(shown, right=right, clarity=clarity),
            whole.appearance, whole.colour, np.clip(box, 0, 1).astype(np.float32),
        )  # fmt: skip

    def _inside(self, thing: Thing, whole: SceneRegion) -> SceneRegion:
        """A part of a thing; a classifier may see the whole in it."""
        dice = self._dice
        shown = self._class_of(thing)
        believed = thing.coco if dice.random() < 0.45 else None
        x1, y1, x2, y2 = whole.box
        cut = dice.uniform(0.25, 0.6)
        corner = dice.uniform(0, 1 - cut, 2)
        left, top = x1 + (x2 - x1) * corner[0], y1 + (y2 - y1) * corner[1]
        box = np.array([left, top, left + (x2 - x1) * cut, top + (y2 - y1) * cut])
        return SceneRegion(
            self._evidence.coco(believed, None, self._low()),
            self._evidence.imagenet(shown, right=0.3 * self.doubt, clarity=(0.2, 0.95)),
            whole.appearance, whole.colour, box.astype(np.float32),
        )  # fmt: skip

    def _background(self) -> SceneRegion:
        return SceneRegion(
            self._evidence.coco(None, None, self._low()),
            self._evidence.imagenet(None, right=0.0, clarity=(0.2, 0.95)),
            *self._looks(),
            self._box(float(self._dice.beta(1.0, 3.0))),
        )

    def _low(self) -> float:
        """Objectness of what is not a whole thing: 0.1 on the whole, one in twenty over 0.25."""
        spread = 0.01 + 0.055 * self.doubt
        return float(np.clip(0.05 + self._dice.exponential(spread), 0.05, 0.6))

    def _box(self, size: float) -> Array:
        dice = self._dice
        width = np.clip(size * dice.uniform(0.6, 1.5), 0.02, 1)
        height = np.clip(size * dice.uniform(0.6, 1.5), 0.02, 1)
        x, y = dice.uniform(0, 1 - width), dice.uniform(0, 1 - height)
        return np.array([x, y, x + width, y + height], dtype=np.float32)

    def _looks(self) -> tuple[Array, int]:
        """Appearance, and the colour it mostly has."""
        dice = self._dice
        colour = int(dice.integers(len(COLOURS)))
        shares = dice.dirichlet(np.full(len(COLOURS), 0.35)).astype(np.float32)
        main = float(dice.uniform(0.4, 0.95))
        shares = shares * (1 - main)
        shares[colour] += main
        rest = dice.uniform(0, 1, NUM_APPEARANCE - len(COLOURS) - 2).astype(np.float32)
        return np.concatenate([shares, rest, np.zeros(2, dtype=np.float32)]), colour

    def _cells(self, regions: Sequence[SceneRegion]) -> Array:
        """What the classifier says of each cell of a 5x5 grid: of what lies over it, and noise."""
        cells = np.empty((25, NUM_IMAGENET), dtype=np.float32)
        for cell in range(25):
            x, y = (cell % 5 + 0.5) / 5, (cell // 5 + 0.5) / 5
            over = [r for r in regions[:12]
                    if r.box[0] <= x <= r.box[2] and r.box[1] <= y <= r.box[3]]  # fmt: skip
            if over and self._dice.random() < 0.7:
                cells[cell] = self._choice.choice(over).imagenet
            else:
                cells[cell] = self._evidence.imagenet(None, right=0.0, clarity=(0.1, 0.8))
        return cells
