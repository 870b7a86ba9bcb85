"""How people ask for a thing: singular, plural, with an article, in capitals, with a full stop."""

from __future__ import annotations

import random

_IRREGULAR = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "computer mouse": "computer mice", "goose": "geese", "sheep": "sheep", "ox": "oxen",
    "fish": "fish", "deer": "deer", "knife": "knives", "wolf": "wolves", "shelf": "shelves",
    "leaf": "leaves", "calf": "calves", "loaf": "loaves", "scarf": "scarves", "tooth": "teeth",
    "foot": "feet", "aircraft": "aircraft", "watercraft": "watercraft", "food": "food",
    "furniture": "furniture", "clothing": "clothing", "luggage": "luggage", "cutlery": "cutlery",
    "jewelry": "jewelry", "footwear": "footwear", "headwear": "headwear", "tableware": "tableware",
    "electronics": "electronics", "sports equipment": "sports equipment", "scissors": "scissors",
    "skis": "skis", "jeans": "jeans", "sunglasses": "sunglasses", "shears": "shears",
    "something to sit on": "things to sit on", "people": "people", "cattle": "cattle",
    "somebody": "people", "broccoli": "broccoli", "game bird": "game birds",
}  # fmt: skip
_KEEPS_F = ("roof", "cliff", "chef", "reef")


def plural(noun: str) -> str:
    """The plural of an English noun phrase, by its last word."""
    if noun in _IRREGULAR:
        return _IRREGULAR[noun]
    head, _, last = noun.rpartition(" ")
    start = f"{head} " if head else ""
    if last in _IRREGULAR:
        return start + _IRREGULAR[last]
    if last.endswith(("s", "x", "z", "ch", "sh")):
        return f"{start}{last}es"
    if last.endswith("y") and last[-2:-1] not in "aeiou":
        return f"{start}{last[:-1]}ies"
    if (
        last.endswith("o")
        and last[-2:-1] not in "aeiou"
        and last in ("tomato", "potato", "buffalo")
    ):
        return f"{start}{last}es"
    return f"{start}{last}s"


def article(noun: str) -> str:
    """ "a" or "an"."""
    return "an" if noun[:1].lower() in "aeiou" and not noun.startswith(("uni", "eu")) else "a"


def spelled(noun: str, dice: random.Random) -> str:
    """The noun as somebody may write it; half the time plainly."""
    kind = dice.random()
    if kind < 0.45:
        return noun
    many = plural(noun)
    forms = (
        many, f"{article(noun)} {noun}", f"the {noun}", noun.capitalize(), f"{noun}.",
        many.capitalize(), f"the {many}", f"all {many}", f"any {noun}",
        f"{article(noun).capitalize()} {noun}.", noun.upper(), f"{noun}?", f"{many}.",
    )  # fmt: skip
    weights = (5, 4, 3, 4, 2, 2, 2, 1, 1, 1, 0.5, 0.5, 1)
    return dice.choices(forms, weights)[0]
