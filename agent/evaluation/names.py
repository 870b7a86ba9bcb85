"""What a thing may rightly be called, and whether a generated name says so.

The table of words is the vocabulary of training (names, everyday names and wider words of
ImageNet's and COCO's classes); an annotation may list more, or say which of them hold (`also`).
Knows no picture and no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from agent.evaluation.text_match import words_of
from agent.plain_nouns import plural
from agent.vocabulary import Thing, vocabulary

_ARTICLES = frozenset({"a", "an", "the", "some", "one"})
_COLOURS = frozenset(
    {"black", "white", "gray", "grey", "red", "orange", "yellow", "green", "blue", "purple", "pink",
     "violet", "brown", "tan", "beige", "gold", "golden", "silver", "dark", "light", "bright",
     "pale", "colorful", "colourful"}
)  # fmt: skip
_REST = re.compile(r"\b(?:of|with|in|on|at|from|by|and|that|which|is|wearing|holding)\b.*")
_KINDS = frozenset(
    {"man", "woman", "boy", "girl", "child", "pedestrian", "jet", "coach", "kitten", "puppy",
     "hound", "pony", "lamb", "ram", "bull", "ox", "cattle", "mug", "teacup", "armchair", "monitor",
     "screen", "motor scooter", "park bench", "notebook computer", "stuffed animal"}
)  # fmt: skip
"""Words in COCO's rows of names that hold for some of its things only."""


def wider_words(name: str) -> frozenset[str]:
    """Words that include everything of this name: "animal" for "dog"."""
    things = _things(name)
    if things:
        return frozenset(
            word for thing in things for word in (thing.everyday, *thing.wider)
        ) - _own_names(name) - {name}  # fmt: skip
    kinds = _by_everyday_name().get(name, ())
    shared = [frozenset(thing.wider) for thing in kinds]
    return frozenset.intersection(*shared) - {name} if shared else frozenset()


def synonyms(name: str) -> frozenset[str]:
    """Other words for everything of this name: "automobile" for "car"."""
    things = [thing for thing in _things(name) if thing.names[0] == name]
    said = {word for thing in things for word in thing.names[1:]}
    return frozenset(said - _KINDS - {name, plural(name)})


def true_names(name: str, also: Iterable[str] = ()) -> frozenset[str]:
    """The name, its synonyms, the words that include it and those an annotation lists."""
    return frozenset({name, *_own_names(name), *wider_words(name), *also})


def is_known(name: str) -> bool:
    """Whether the vocabulary has the word at all."""
    return name in _all_words()


def is_wider(word: str) -> bool:
    """Whether the vocabulary uses the word for kinds of things: "animal"."""
    return word in _kinds()


def is_named(said: str, names: Iterable[str]) -> bool:
    """Whether a generated name is one of `names`, in the singular or the plural.

    Tried are its whole phrase, the phrase without article and colours, and its head noun: what is
    left when words in front go until it is one of the vocabulary ("a small dog" is a dog, "a hot
    dog" is none).
    """
    accepted = {_plain(form) for name in names for form in (name, plural(name))}
    return any(phrase in accepted for phrase in readings(said))


def readings(said: str) -> tuple[str, ...]:
    """What a generated name may be read as, the whole phrase first."""
    whole = words_of(said)
    found = [" ".join(whole)]
    rest = [word for word in whole if word not in _ARTICLES]
    found.append(" ".join(rest))
    if found[-1] not in _all_words():
        rest = words_of(_REST.sub("", " ".join(rest)))
    found.append(" ".join(rest))
    # "orange" is a fruit, too: a colour is taken away only in front of something else.
    while len(rest) > 1 and (rest[0] in _COLOURS or found[-1] not in _all_words()):
        rest = rest[1:]
        found.append(" ".join(rest))
    return tuple(dict.fromkeys(phrase for phrase in found if phrase))


def _plain(text: str) -> str:
    return " ".join(words_of(text))


def _things(name: str) -> tuple[Thing, ...]:
    """The classes of this name: COCO's where it has one, since ImageNet's kite is a bird."""
    known = vocabulary()
    coco = tuple(thing for thing in known.coco if name in thing.names)
    return coco or tuple(thing for thing in known.imagenet if name in thing.names)


def _own_names(name: str) -> frozenset[str]:
    return frozenset(word for thing in _things(name) for word in thing.names)


@lru_cache(maxsize=1)
def _all_words() -> frozenset[str]:
    known = vocabulary()
    words = {word for thing in (*known.coco, *known.imagenet) for word in thing.words}
    return frozenset(form for word in words for form in (_plain(word), _plain(plural(word))))


@lru_cache(maxsize=1)
def _kinds() -> frozenset[str]:
    known = vocabulary()
    return frozenset(word for thing in (*known.coco, *known.imagenet) for word in thing.wider)


@lru_cache(maxsize=1)
def _by_everyday_name() -> dict[str, tuple[Thing, ...]]:
    found: dict[str, tuple[Thing, ...]] = {}
    for thing in vocabulary().imagenet:
        found[thing.everyday] = (*found.get(thing.everyday, ()), thing)
    return found
