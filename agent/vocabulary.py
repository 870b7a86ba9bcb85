"""Words for things: the classes that the vision parts know, and what people call them.

Every class of ImageNet and of COCO has its own names, an everyday name ("dog" for a beagle) and
the words that include it ("animal", "pet"). Other nouns for what can be seen ("tomato") are listed
with the nearest words that include them ("vegetable"). `groundstream train vocabulary` writes the
file from WordNet 3.0 and `agent/training/everyday_words.yaml`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

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
