"""The plain noun behind a label as people write it: "The Dogs." asks for what "dog" asks for.

For models that were taught by plain nouns alone (`agent.model.family.PromptFormat.plain_labels`).
English only, by rules and short tables; a word that the rules get wrong is still read, as a word
that the model was not taught. Knows no tokens and no classes.
"""

from __future__ import annotations

import re

_PLURALS = {
    "person": "people", "man": "men", "woman": "women", "child": "children", "mouse": "mice",
    "goose": "geese", "ox": "oxen", "tooth": "teeth", "foot": "feet", "knife": "knives",
    "wolf": "wolves", "shelf": "shelves", "leaf": "leaves", "calf": "calves", "loaf": "loaves",
    "scarf": "scarves", "half": "halves", "hoof": "hooves", "thief": "thieves",
    "something to sit on": "things to sit on", "axe": "axes", "mustache": "mustaches",
    "moustache": "moustaches", "lens": "lenses", "gas": "gases", "menu": "menus", "emu": "emus",
    "quiz": "quizzes", "tomato": "tomatoes", "potato": "potatoes", "buffalo": "buffaloes",
    "taxi": "taxis", "kiwi": "kiwis", "bikini": "bikinis", "corgi": "corgis",
    "zucchini": "zucchinis", "tv": "tvs", "wine glass": "wine glasses",
    "beer glass": "beer glasses",
}  # fmt: skip
_SINGULARS = {many: one for one, many in _PLURALS.items()}
_UNCOUNTED = frozenset({
    "food", "furniture", "clothing", "luggage", "cutlery", "jewelry", "footwear", "headwear",
    "tableware", "electronics", "equipment", "broccoli", "cattle", "news", "somebody", "something",
    "scissors", "skis", "jeans", "sunglasses", "glasses", "shears", "pants", "shorts", "pajamas",
    "pyjamas", "binoculars", "headphones", "goggles", "trousers", "tights", "overalls", "clothes",
    "stairs", "pliers", "tongs", "tweezers", "parallel bars", "breeches", "slacks",
    "castanets", "suds",
})  # fmt: skip
"""Without a singular, or without a plural: no article stands before them."""
_SAME = _UNCOUNTED | frozenset({
    "sheep", "fish", "deer", "aircraft", "watercraft", "longlegs", "series", "species", "canvas",
    "atlas", "rhinoceros", "triceratops",
})  # fmt: skip
"""Plural and singular in one."""
_IN_IE = frozenset({
    "cookie", "movie", "hoodie", "brownie", "smoothie", "selfie", "zombie", "collie", "birdie",
    "bowtie", "bow-tie", "necktie", "magpie", "potpie", "kelpie", "rotisserie",
})  # fmt: skip
"""Whose plural's -ies is no -y."""
_IN_OES = frozenset({"mangoes", "heroes", "volcanoes", "mosquitoes", "tornadoes"})
_KEEP_S = ("ss", "us", "is")
_SYNONYMS = {
    "human": "person", "pedestrian": "person", "auto": "car", "automobile": "car",
    "bike": "bicycle", "motorbike": "motorcycle", "aeroplane": "airplane", "plane": "airplane",
    "lorry": "truck", "railway train": "train", "traffic signal": "traffic light",
    "stoplight": "traffic light", "hydrant": "fire hydrant", "kitty": "cat",
    "knapsack": "backpack", "rucksack": "backpack", "necktie": "tie",
    "flying disc": "frisbee", "racket": "tennis racket", "racquet": "tennis racket",
    "hotdog": "hot dog", "doughnut": "donut", "settee": "couch", "sofa": "couch",
    "houseplant": "potted plant", "computer mouse": "mouse",
    "remote control": "remote", "computer keyboard": "keyboard", "mobile phone": "cell phone",
    "cellphone": "cell phone", "smartphone": "cell phone", "microwave oven": "microwave",
    "washbasin": "sink", "fridge": "refrigerator", "flower vase": "vase",
    "hair dryer": "hair drier",
}  # fmt: skip
"""Of the detector's classes; what is asked is the name that was taught most. Words that hold for
some things of a class alone ("kitten"), or for others too ("glass"), are asked as they are."""
_HEADS_END = re.compile(
    r" (?:on|in|of|with|without|at|by|near|to|from|behind|under|over|next|for|that|who|which)\b"
)
_DETERMINERS = re.compile(r"^(?:(?:an?|the|all|any|some|every|each|this|that|these|those) )+")


def plain_noun(label: str) -> str:
    """The label without article, capitals, final punctuation and plural, by its usual name.

    Of a longer phrase the noun that it is about loses its plural: "people on bikes" becomes
    "person on bikes".
    """
    noun = _plain(label)
    return _SYNONYMS.get(noun, noun)


def names_several(label: str) -> bool:
    """Whether the noun that a label is about stands in the plural: "people on bikes"."""
    return _plain(label) != _phrase(label)


def _phrase(label: str) -> str:
    written = " ".join(label.split()).casefold()
    words = written.rstrip(" .?!,;:") or written
    return _DETERMINERS.sub("", words) or words


def _plain(label: str) -> str:
    phrase = _phrase(label)
    if phrase in _SINGULARS:
        return _SINGULARS[phrase]
    found = _HEADS_END.search(phrase)
    end = found.start() if found else len(phrase)
    before, space, noun = phrase[:end].rpartition(" ")
    return f"{before}{space}{_singular(noun)}{phrase[end:]}"


def plural(noun: str) -> str:
    """The plural of an English noun phrase, by its last word."""
    if noun in _PLURALS:
        return _PLURALS[noun]
    head, space, last = noun.rpartition(" ")
    return f"{head}{space}{_plural(last)}"


def with_article(noun: str) -> str:
    """ "a dog", "an apple"; "scissors", of which there is not one."""
    if not _UNCOUNTED.isdisjoint((noun, noun.rpartition(" ")[2], noun.partition(" ")[0])):
        return noun
    is_open = noun[:1].lower() in "aeiou" and not noun.startswith(("uni", "eu"))
    return f"{'an' if is_open else 'a'} {noun}"


def _plural(word: str) -> str:
    if word in _SAME:
        return word
    if word in _PLURALS:
        return _PLURALS[word]
    if word.endswith(("s", "x", "z", "ch", "sh")):
        return f"{word}es"
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}s"


def _singular(word: str) -> str:
    """The singular of one word in lower case."""
    if word in _SINGULARS:
        return _SINGULARS[word]
    if len(word) < 4 or word in _SAME or word in _PLURALS:
        return word
    if not word.endswith("s") or word.endswith(_KEEP_S):
        return word
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 or word[:-1] in _IN_IE else f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    if word.endswith("uses") and not word.endswith(("ouses", "fuses")):
        return word[:-2]
    return word[:-2] if word in _IN_OES else word[:-1]
