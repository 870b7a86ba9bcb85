"""Words for things: the classes that the vision parts know, and what people call them.

Every class of ImageNet and of COCO has its own names, an everyday name ("dog" for a beagle) and
the words that include it ("animal", "pet"). Other nouns for what can be seen ("tomato") are listed
with the nearest words that include them ("vegetable"). `groundstream train vocabulary` writes the
file from WordNet 3.0 and `agent/training/everyday_words.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

from agent.plain_nouns import plain_noun

COLOURS = (
    "black", "white", "gray", "red", "orange", "yellow", "green", "blue", "purple", "pink", "brown",
)  # fmt: skip
"""Basic colour terms after Berlin and Kay (1969)."""
FILE = Path(__file__).parent / "vocabulary.json"


@dataclass(frozen=True)
class Thing:
    """One class of ImageNet or COCO and the words that are true of it."""

    names: tuple[str, ...]
    """Its own names, the usual one first: "golden retriever"."""
    everyday: str
    """What most people would say: "dog"."""
    wider: tuple[str, ...] = ()
    """Words for more than it: "animal", "pet"."""
    imagenet: tuple[int, ...] = ()
    """Classes of ImageNet that show it; for a class of ImageNet, itself."""
    coco: int | None = None
    """The class of COCO it belongs to."""

    @property
    def words(self) -> frozenset[str]:
        """Everything it may rightly be called."""
        return frozenset({*self.names, self.everyday, *self.wider})


@dataclass(frozen=True)
class Vocabulary:
    """The classes of both parts, in the order of their outputs."""

    imagenet: tuple[Thing, ...]
    coco: tuple[Thing, ...]
    kinds: Mapping[str, tuple[str, ...]]
    """Of nouns that name none of the classes the nearest words for more than them that do."""

    @cached_property
    def classes(self) -> Mapping[str, Sequence[int]]:
        """Of every word for classes, as it is written and as a plain noun, which they are: COCO's
        numbers, then ImageNet's behind them."""
        found: dict[str, list[int]] = {}
        for number, thing in enumerate((*self.coco, *self.imagenet)):
            for word in thing.words:
                found.setdefault(word, []).append(number)
        # What is asked is the plain noun: "swimming trunk" for "swimming trunks".
        for word in sorted(found):
            found.setdefault(plain_noun(word), found[word])
        return found


@lru_cache(maxsize=1)
def vocabulary(path: Path = FILE) -> Vocabulary:
    """The committed vocabulary."""
    raw = json.loads(path.read_text())
    return Vocabulary(
        tuple(_thing(entry) for entry in raw["imagenet"]),
        tuple(_thing(entry) for entry in raw["coco"]),
        {entry["name"]: tuple(entry["kinds"]) for entry in raw["others"]},
    )


def _thing(entry: dict[str, object]) -> Thing:
    return Thing(
        names=tuple(entry["names"]),  # type: ignore[arg-type]
        everyday=str(entry["everyday"]),
        wider=tuple(entry["wider"]),  # type: ignore[arg-type]
        imagenet=tuple(entry["imagenet"]),  # type: ignore[arg-type]
        coco=entry["coco"],  # type: ignore[arg-type]
    )
