"""The vocabulary of the embedded model's classes, from WordNet (see `agent.vocabulary`).

ImageNet's names come from WordNet 3.0 by its synset numbers, COCO's from `everyday_words.yaml`.

    groundstream train vocabulary --wordnet data.noun --synsets imagenet_synsets.txt
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from agent.vocabulary import FILE
from groundstream.errors import SettingsError

_WORDS = Path(__file__).parent / "everyday_words.yaml"


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

_SEEN = frozenset({"05", "06", "08", "13", "17", "20"})
"""WordNet's files of animals, artifacts, parts of bodies, food, natural objects and plants."""
_TOO_WIDE = frozenset({
    "structure", "device", "organ", "upright", "machine", "somebody", "person", "thing", "object",
})  # fmt: skip


def wordnet_lines(path: Path) -> list[str]:
    """Lines of one of WordNet's files, without its licence.

    Raises:
        SettingsError: it cannot be read, or does not begin as WordNet's files do.
    """
    try:
        lines = path.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise SettingsError(f"cannot read {path} of WordNet: {error.strerror}") from error
    if not lines or not lines[0].startswith("  1 "):
        raise SettingsError(f"{path} is none of WordNet 3.0's files, which begin with its licence")
    return [line for line in lines if not line.startswith("  ")]


@dataclass(frozen=True)
class _Synset:
    file: str
    """Number of the lexicographer's file: what sort of noun it is."""
    lemmas: tuple[str, ...]
    parents: tuple[str, ...]


@dataclass
class _WordNet:
    synsets: dict[str, _Synset] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> _WordNet:
        """`data.noun` of WordNet 3.0: offset, lemmas and hypernyms of each noun synset."""
        found = cls()
        for line in wordnet_lines(path):
            parts = line.split(" | ")[0].split(" ")
            count = int(parts[3], 16)
            lemmas = tuple(parts[4 + 2 * k] for k in range(count))
            pointers = parts[5 + 2 * count :]
            parents = tuple(
                pointers[k + 1]
                for k in range(0, len(pointers) - 3, 4)
                if pointers[k] in ("@", "@i")
            )
            found.synsets[parts[0]] = _Synset(parts[1], lemmas, parents)
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

    def senses(self, index: Path) -> Iterator[tuple[str, list[str]]]:
        """Words of `index.noun`, and the synsets in which WordNet's corpora use them."""
        for line in wordnet_lines(index):
            parts = line.split()
            number = int(parts[2])
            word, num_tagged = _plain(parts[0]), int(parts[-number - 1])
            if num_tagged and word.replace(" ", "").isalpha():
                yield word, parts[-number:][:num_tagged]


def build(wordnet: Path, synsets: Path) -> dict[str, list[dict[str, object]]]:
    """The vocabulary as JSON: ImageNet's classes in the order of `synsets`, COCO's in its own.

    Args:
        wordnet: `data.noun` of WordNet 3.0, beside its `index.noun`.
        synsets: ImageNet's, a number a line.

    Raises:
        SettingsError: a file of WordNet cannot be read.
    """
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
    classes = [*coco, *imagenet]
    known = {word for e in classes for word in (*e["names"], e["everyday"], *e["wider"])}  # type: ignore[misc]
    others = _other_entries(nouns, wordnet.with_name("index.noun"), known)
    return {"imagenet": imagenet, "coco": coco, "others": list(others)}


def _other_entries(
    nouns: _WordNet, index: Path, known: Collection[str]
) -> Iterator[dict[str, object]]:
    """Nouns for what can be seen that name no class, with the nearest words of `known` above."""
    for word, offsets in nouns.senses(index):
        if word in known or nouns.synsets[offsets[0]].file not in _SEEN:
            continue
        kinds = [
            next(
                (kind for at in list(nouns.above(offset))[1:] for lemma in nouns.synsets[at].lemmas
                 if (kind := _plain(lemma).lower()) in known), None)
            for offset in offsets if nouns.synsets[offset].file in _SEEN
        ]  # fmt: skip
        told = [kind for kind in dict.fromkeys(kinds) if kind is not None and kind not in _TOO_WIDE]
        if told:
            yield {"name": word, "kinds": told}


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


def write(wordnet: Path, synsets: Path, output: Path = FILE) -> None:
    """Build the vocabulary into a file, a line for each class."""
    built = build(wordnet, synsets)
    lines = (
        f'"{key}": [\n' + ",\n".join(json.dumps(entry) for entry in entries) + "\n]"
        for key, entries in built.items()
    )
    output.write_text("{\n" + ",\n".join(lines) + "\n}\n")
