"""What class evidence says of words.

It is the rule whose answers the embedded language model learns to give, and at run time it speaks
beside the model for the words that it knows (`agent.region_choice`). A name's score for a region
is the weight of all classes that it stands for, the weights being those that the connector starts
with (`agent.model.name_mixture`). A word is believed as far as the everyday names that it covers:
"animal" as far as "dog", "cat" and "bird". Knows which words name which classes, and nothing of
pictures and prompts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate, chain

import numpy as np
import torch
from numpy.typing import NDArray

from agent.model.name_mixture import NUM_COCO, NameMixture
from agent.vocabulary import Thing, Vocabulary

Array = NDArray[np.float32]

LEAST_SCORE = 0.22
"""A word is said of regions with at least this score; chosen on photographs (docs/decisions)."""
LEAST_SURE = 0.1
"""Of regions whose best name scores less hardly any is what that name says (docs/decisions)."""
_SHARE_WITHIN_COCO = 0.3
"""Of the classifier's belief in a class that the detector knows as well."""
_SHARE_WORN = 0.3
"""Of its belief in what is worn: it knows no persons, and calls most of them by their clothes."""
_WORN = frozenset({"clothing", "footwear", "headwear"})
_SHARE_OF_KIND = 0.25
"""Of the belief in "vegetable", for "tomato", which is no class."""
_SHARE_IN_NAMES = 0.6
"""Of all its beliefs, where one name is to be chosen for a region: it is sure of something
everywhere."""
_LEAST_SPECIFIC = 0.2
"""An everyday name with less of all belief in a region is rather wrong than right (docs/decisions),
and gives way to a word for its kind."""
_MOST = 0.5
"""Of all belief in a region, for a word for its kind to be said."""
_ALIKE, _ALIKE_POWER = 0.75, 5.0
"""Of regions that are as alike as the first, every second one is taken for the same kind of
thing; chosen on photographs (docs/decisions)."""


@dataclass(frozen=True)
class _Classes:
    """The classes that a word covers, gathered by their everyday names."""

    numbers: list[int]
    starts: list[int]
    """Where each everyday name's classes begin in `numbers`."""


class NameBeliefs:
    """Scores of words for regions."""

    def __init__(self, words: Vocabulary) -> None:
        self._things = (*words.coco, *words.imagenet)
        self._kinds = words.kinds
        self._weigh = NameMixture(1).requires_grad_(False)
        self._weigh.imagenet_share.copy_(imagenet_shares(words))
        self._classes = {word: self._gathered(found) for word, found in words.classes.items()}
        self._everyday = tuple(dict.fromkeys(thing.everyday for thing in self._things))
        places = {name: place for place, name in enumerate(self._everyday)}
        counts = Counter(word for thing in self._things for word in thing.wider)
        # Of words with as much of the belief the narrowest is found first.
        self._wider = tuple(sorted(counts, key=lambda word: (counts[word], word)))
        columns = {word: column for column, word in enumerate(self._wider)}
        self._usual = np.zeros((len(self._things), len(self._everyday)), dtype=np.float32)
        self._members = np.zeros((len(self._everyday), len(self._wider)), dtype=np.float32)
        for number, thing in enumerate(self._things):
            place = places[thing.everyday]
            self._usual[number, place] = 1.0
            self._members[place, [columns[word] for word in thing.wider]] = 1.0

    def weights(self, coco: Array, imagenet: Array) -> Array:
        """(n, 1080) of each class, from (n, 80) scores and (n, 1000) probabilities."""
        found: Array = self._weigh.weights(
            torch.from_numpy(coco), torch.from_numpy(imagenet)
        ).numpy()
        return found

    def _gathered(self, numbers: Iterable[int]) -> _Classes:
        names: dict[str, list[int]] = {}
        for number in numbers:
            names.setdefault(self._things[number].everyday, []).append(number)
        sizes = [len(alike) for alike in names.values()]
        return _Classes([*chain.from_iterable(names.values())], [0, *accumulate(sizes[:-1])])

    def knows(self, word: str) -> bool:
        """Whether a word stands for classes; of "tomato" only the kind does."""
        return word in self._classes

    def chances(self, word: str, weights: Array) -> Array:
        """(n,) how likely a word is said of each region: half where one everyday name that it
        covers has `LEAST_SCORE`.

        The odds of a name are the square of its score's ratio to `LEAST_SCORE`, and those of a
        word are the sum of its names' odds. A sum of scores would let "animal" follow from a
        little belief in each of 400 classes. A word that names no class has a share of what its
        kinds have, which ranks boxes and is hardly ever a detection; zeros where it has none.
        """
        odds = self._odds(word, weights)
        for kind in self._kinds.get(word, ()):
            odds = np.maximum(odds, _SHARE_OF_KIND**2 * self._odds(kind, weights))
        found: Array = odds / (odds + 1)
        return found

    def anything(self, weights: Array) -> Array:
        """(n,) how likely each region is a thing at all: as its surest everyday name is said."""
        _, scores = self._best(weights)
        odds = (scores.astype(np.float64) / LEAST_SCORE) ** 2
        found: Array = (odds / (odds + 1)).astype(np.float32)
        return found

    def _odds(self, word: str, weights: Array) -> Array:
        classes = self._classes.get(word)
        if classes is None:
            return np.zeros(len(weights), dtype=np.float32)
        scores = np.add.reduceat(weights[:, classes.numbers], classes.starts, axis=1)
        odds: Array = ((scores / LEAST_SCORE) ** 2).sum(-1)
        return odds

    def usual(self, weights: Array) -> list[tuple[str, float]]:
        """Of each region the everyday name that suits it best, and that name's score."""
        places, scores = self._best(weights)
        return list(zip((self._everyday[k] for k in places), scores.tolist(), strict=True))

    def said(self, weights: Array) -> list[str]:
        """What to call each region: its everyday name, or, where that has little of the belief, the
        narrowest word for its kind that has most of it.

        "Fruit" is true of what may be an orange, an apple or a lemon (hedging, Deng et al., CVPR
        2012).
        """
        compared = self._compared(weights)
        shares = compared / (compared.sum(-1, keepdims=True) + 1e-6)
        kinds = shares @ self._members
        said = []
        for place, share, kind in zip(shares.argmax(-1), shares, kinds, strict=True):
            wider = np.flatnonzero((kind >= _MOST) & (self._members[place] > 0))
            hedged = share[place] < _LEAST_SPECIFIC and len(wider)
            said.append(self._wider[wider[0]] if hedged else self._everyday[place])
        return said

    def alike(self, weights: Array, region: int) -> Array:
        """(n,) how likely each region shows the same kind of thing as one of them.

        The odds are a power of the Bhattacharyya coefficient of the two regions' beliefs in names,
        the sum of the roots of their products, relative to `_ALIKE`; and at most those that the
        region shows a thing of any name that is hardly believed (`LEAST_SURE`), since patches of
        pavement are alike, too.
        """
        compared = self._compared(weights)
        roots = np.sqrt(compared / (compared.sum(-1, keepdims=True) + 1e-6))
        odds = (roots @ roots[region] / _ALIKE) ** _ALIKE_POWER
        _, scores = self._best(weights)
        bounded = np.minimum(odds, (scores / LEAST_SURE) ** 2)
        found: Array = bounded / (bounded + 1)
        return found

    def _best(self, weights: Array) -> tuple[NDArray[np.int64], Array]:
        """(n,) which everyday name suits each region best, and (n,) its score."""
        places = self._compared(weights).argmax(-1)
        return places, (weights @ self._usual)[np.arange(len(weights)), places]

    def _compared(self, weights: Array) -> Array:
        """(n, names) the scores of the everyday names where one is to be chosen."""
        fair = np.concatenate(
            [weights[:, :NUM_COCO], _SHARE_IN_NAMES * weights[:, NUM_COCO:]], axis=-1
        )
        found: Array = fair @ self._usual
        return found

    def likeliest(self, weights: Array) -> list[Thing]:
        """The class with the most weight of each region."""
        return [self._things[number] for number in weights.argmax(-1)]


def imagenet_shares(words: Vocabulary) -> torch.Tensor:
    """(1000,) how much each of the classifier's classes counts beside the detector's."""
    inside = torch.tensor([thing.coco is not None for thing in words.imagenet])
    worn = torch.tensor([not _WORN.isdisjoint(thing.words) for thing in words.imagenet])
    return torch.where(inside, _SHARE_WITHIN_COCO, 1.0) * torch.where(worn, _SHARE_WORN, 1.0)
