"""Words for things: the classes that the vision parts know, and what people call them.

Every class of ImageNet and of COCO gets its own names, an everyday name ("dog" for a beagle) and
the words that include it ("animal", "pet"). ImageNet's come from WordNet 3.0 by its synset
numbers, COCO's from `everyday_words.yaml`. `build` writes `vocabulary.json`, which training reads;
nothing here is needed to answer questions.

    groundstream train vocabulary --wordnet data.noun --synsets imagenet_synsets.txt
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import yaml

_FILE = Path(__file__).parent / "vocabulary.json"
_WORDS = Path(__file__).parent / "everyday_words.yaml"


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


@lru_cache(maxsize=1)
def vocabulary(path: Path = _FILE) -> Vocabulary:
    """The committed vocabulary."""
    raw = json.loads(path.read_text())
    return Vocabulary(
        tuple(_thing(entry) for entry in raw["imagenet"]),
        tuple(_thing(entry) for entry in raw["coco"]),
    )


def _thing(entry: dict[str, object]) -> Thing:
    return Thing(
        names=tuple(entry["names"]),  # type: ignore[arg-type]
        everyday=str(entry["everyday"]),
        wider=tuple(entry["wider"]),  # type: ignore[arg-type]
        imagenet=tuple(entry["imagenet"]),  # type: ignore[arg-type]
        coco=entry["coco"],  # type: ignore[arg-type]
    )


_SPOKEN = {
    "musical_instrument": "musical instrument",
    "domestic_animal": "pet",
    "electronic_equipment": "electronics",
    "headdress": "headwear",
    "beverage": "drink",
    "big_cat": "big cat",
    "sports_equipment": "sports equipment",
    "hunting_dog": "hunting dog",
    "timepiece": "timepiece",
}
_USUAL = {
    "crt screen": "screen",
    "notebook": "notebook computer",
    "hotdog": "hot dog",
    "cellular telephone": "cell phone",
    "dial telephone": "telephone",
    "pop bottle": "soda bottle",
    "jean": "jeans",
    "mailbag": "mail bag",
    "bow tie": "bow tie",
    "studio couch": "sofa",
    "trailer truck": "trailer truck",
    "streetcar": "tram",
    "moped": "moped",
    "icebox": "refrigerator",
    "hen-of-the-woods": "mushroom",
    "ice cream": "ice cream",
    "sunglass": "sunglasses",
    "plane": "carpenter's plane",
    "drake": "duck",
    "tabby": "tabby cat",
    "black and gold garden spider": "garden spider",
}


@dataclass(frozen=True)
class _Synset:
    lemmas: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass
class _WordNet:
    synsets: dict[str, _Synset] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _WordNet:
        """`data.noun` of WordNet 3.0: offset, lemmas and hypernyms of each noun synset."""
        found = cls()
        for line in path.read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            parts = line.split(" | ")[0].split(" ")
            count = int(parts[3], 16)
            lemmas = tuple(parts[4 + 2 * k] for k in range(count))
            pointers = parts[5 + 2 * count :]
            parents = tuple(
                pointers[k + 1]
                for k in range(0, len(pointers) - 3, 4)
                if pointers[k] in ("@", "@i")
            )
            found.synsets[parts[0]] = _Synset(lemmas, parents)
        return found

    def above(self, offset: str) -> Iterator[str]:
        """The synset and everything that includes it, nearest first."""
        seen, queue = set(), [offset]
        while queue:
            here = queue.pop(0)
            if here in seen:
                continue
            seen.add(here)
            yield here
            queue += self.synsets[here].parents


def build(wordnet: Path, synsets: Path) -> dict[str, list[dict[str, object]]]:
    """The vocabulary as JSON: ImageNet's classes in the order of `synsets`, COCO's in its own."""
    nouns, words = _WordNet.read(wordnet), yaml.safe_load(_WORDS.read_text())
    everyday, wider = frozenset(words["everyday"].split()), frozenset(words["wider"].split())
    offsets = [line.strip().lstrip("n") for line in synsets.read_text().split()]
    coco = list(_coco_entries(words["coco"]))
    above = [list(nouns.above(offset)) for offset in offsets]
    for entry in coco:
        roots = set(entry.pop("synsets"))  # type: ignore[call-overload]
        entry["imagenet"] = [k for k, line in enumerate(above) if roots & set(line)]
    imagenet = []
    for index, line in enumerate(above):
        # The narrowest class of COCO that includes it: a toy dog's teddy is no dog.
        within = [k for k, entry in enumerate(coco) if index in entry["imagenet"]]  # type: ignore[operator]
        number = within[0] if within else None
        imagenet.append(_imagenet_entry(nouns, index, line, number, coco, everyday, wider))
    return {"imagenet": imagenet, "coco": coco}


def _coco_entries(table: str) -> Iterator[dict[str, object]]:
    for number, line in enumerate(table.strip().splitlines()):
        name, synonyms, wider, roots = (part.strip() for part in line.split("|"))
        yield {
            "names": [name, *(word for word in synonyms.split(", ") if word)],
            "everyday": name,
            "wider": [word for word in wider.split(", ") if word],
            "synsets": roots.split(),
            "coco": number,
        }


def _imagenet_entry(
    nouns: _WordNet,
    index: int,
    line: list[str],
    coco: int | None,
    entries: list[dict[str, object]],
    everyday_words: frozenset[str],
    wider_words: frozenset[str],
) -> dict[str, object]:
    own = [_plain(lemma) for lemma in nouns.synsets[line[0]].lemmas]
    own = [word for word in own if (word.isascii() and not word.istitle()) or word == own[0]]
    lowered = [word.lower() for word in own]
    lowered[0] = _USUAL.get(lowered[0], lowered[0])
    heads = [[lemma.lower() for lemma in nouns.synsets[at].lemmas] for at in line]
    if coco is not None:
        everyday = str(entries[coco]["everyday"])
        wider = list(entries[coco]["wider"])  # type: ignore[call-overload]
        also = [str(word) for word in entries[coco]["names"][:2]]  # type: ignore[index]
    else:
        everyday = next(
            (lemma for lemmas in heads for lemma in lemmas if lemma in everyday_words), lowered[0]
        )
        wider, also = [], []
    for lemmas in heads[1:]:
        wider += [
            _SPOKEN.get(lemma, lemma.replace("_", " "))
            for lemma in lemmas[:2]
            if lemma in wider_words
        ]
    words = dict.fromkeys(word for word in [*also, *wider] if word not in (everyday, *lowered))
    return {
        "names": list(dict.fromkeys(lowered))[:3],
        "everyday": everyday.replace("_", " "),
        "wider": list(words),
        "imagenet": [index],
        "coco": coco,
    }


def _plain(lemma: str) -> str:
    return lemma.replace("_", " ")


def write(wordnet: Path, synsets: Path, output: Path = _FILE) -> None:
    """Build the vocabulary into a file, a line for each class."""
    built = build(wordnet, synsets)
    lines = (
        f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
        for key, entries in built.items()
    )
    output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
