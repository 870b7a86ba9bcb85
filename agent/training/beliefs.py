"""What class evidence says of words: the rule whose answers the language model learns to give.

A word's score for a region is the weight of all classes that it names, the weights being those that
the connector starts with (`agent.model.name_mixture`). Knows which words name which classes, and
nothing of scenes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from agent.model.name_mixture import NameMixture
from agent.training.vocabulary import Thing, Vocabulary

Array = NDArray[np.float32]

LEAST_SCORE = 0.22
"""A word is said of regions with at least this score; chosen on photographs (docs/decisions)."""
_SHARE_WITHIN_COCO = 0.3
"""Of the classifier's belief in a class that the detector knows as well."""


class NameBeliefs:
    """Scores of words for regions."""

    def __init__(self, words: Vocabulary) -> None:
        self._things = (*words.coco, *words.imagenet)
        self._weigh = NameMixture(1).requires_grad_(False)
        self._weigh.imagenet_share.copy_(imagenet_shares(words))
        self._classes: dict[str, list[int]] = {}
        for number, thing in enumerate(self._things):
            for word in thing.words:
                self._classes.setdefault(word, []).append(number)
        self._everyday = tuple(dict.fromkeys(thing.everyday for thing in self._things))
        places = {name: place for place, name in enumerate(self._everyday)}
        self._usual = np.zeros((len(self._things), len(self._everyday)), dtype=np.float32)
        for number, thing in enumerate(self._things):
            self._usual[number, places[thing.everyday]] = 1.0

    def weights(self, coco: Array, imagenet: Array) -> Array:
        """(n, 1080) of each class, from (n, 80) scores and (n, 1000) probabilities."""
        found: Array = self._weigh.weights(
            torch.from_numpy(coco), torch.from_numpy(imagenet)
        ).numpy()
        return found

    def scores(self, word: str, weights: Array) -> Array:
        """(n,) of a word; zeros for a word that names no class."""
        found: Array = weights[:, self._classes.get(word, [])].sum(-1)
        return found

    def chances(self, word: str, weights: Array) -> Array:
        """(n,) how likely a word is said of each region: half at `LEAST_SCORE`.

        The odds are the square of the score's ratio to `LEAST_SCORE`.
        """
        squared = self.scores(word, weights) ** 2
        found: Array = squared / (squared + LEAST_SCORE**2)
        return found

    def usual(self, weights: Array) -> list[tuple[str, float]]:
        """Of each region the everyday name with the highest score, and that score."""
        scores = weights @ self._usual
        names = (self._everyday[place] for place in scores.argmax(-1))
        return list(zip(names, scores.max(-1).tolist(), strict=True))

    def likeliest(self, weights: Array) -> list[Thing]:
        """The class with the most weight of each region."""
        return [self._things[number] for number in weights.argmax(-1)]


def imagenet_shares(words: Vocabulary) -> torch.Tensor:
    """(1000,) how much each of the classifier's classes counts beside the detector's."""
    inside = torch.tensor([thing.coco is not None for thing in words.imagenet])
    return torch.where(inside, _SHARE_WITHIN_COCO, 1.0)
