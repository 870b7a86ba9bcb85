"""Labels as people write them, and the plain nouns that are asked for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.plain_nouns import _SYNONYMS, plain_noun, plural, with_article
from agent.vocabulary import vocabulary

_IRREGULAR = {"people", "parallel bars"}
"""Words of the vocabulary that are plurals themselves."""
_AMBIGUOUS = {"glass", "ski", "jean", "pajama", "bird of prey", "indri"}
"""Their plural is another word of everyday English, or a phrase turned round."""


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("The Dogs.", "dog"),
        ("A Person", "person"),
        ("people", "person"),
        ("all the people on bikes", "person on bikes"),
        ("dogs on the left", "dog on the left"),
        ("things to sit on", "something to sit on"),
        ("Traffic lights?", "traffic light"),
        ("  red   cars ", "red car"),
        ("women's shoes", "women's shoe"),
        ("computer mice", "mouse"),
        ("wine glasses", "wine glass"),
        ("sunglasses", "sunglasses"),
        ("TVs", "tv"),
        ("bus", "bus"),
        ("buses", "bus"),
        ("cookies", "cookie"),
        ("puppies", "puppy"),
        ("tomatoes", "tomato"),
        ("shoes", "shoe"),
        ("axes", "axe"),
        ("red automobiles", "red automobile"),
        ("Automobiles", "car"),
        ("a sofa", "couch"),
        ("pedestrians", "person"),
        ("the TVs", "tv"),
        ("the", "the"),
        ("?", "?"),
    ],
)
def test_plain_nouns(written, asked):
    assert plain_noun(written) == asked


def test_every_word_that_was_taught_is_found_in_the_singular_and_in_the_plural():
    words = vocabulary()
    taught = {word for thing in words.coco for word in thing.words}
    taught |= {word for thing in words.imagenet for word in (thing.everyday, *thing.wider)}
    taught -= _SYNONYMS.keys()
    assert len(taught) > 700
    assert {word for word in taught if plain_noun(word) != word} == _IRREGULAR
    lost = {word for word in taught - _IRREGULAR if plain_noun(plural(word)) != word}
    assert lost == _AMBIGUOUS & taught


def test_a_synonym_is_of_one_class_and_asked_by_its_usual_name():
    words = vocabulary()
    usual = {thing.names[0]: number for number, thing in enumerate(words.coco)}
    assert _SYNONYMS.keys().isdisjoint(usual)
    things = (*words.coco, *words.imagenet)
    for synonym, name in _SYNONYMS.items():
        assert plain_noun(plural(synonym)) == plain_noun(synonym) == name
        classes = {thing.coco for thing in things if synonym in thing.words}
        if synonym != "plane":  # A carpenter's is rarely meant.
            assert classes <= {usual[name]}, synonym


@given(st.text(max_size=60))
def test_any_text_has_a_plain_noun(text):
    found = plain_noun(text)
    assert found == found.strip() == found.casefold()
    assert bool(found) == bool(text.strip())


@pytest.mark.parametrize(
    ("noun", "many"),
    [("dog", "dogs"), ("bus", "buses"), ("traffic light", "traffic lights"), ("puppy", "puppies"),
     ("person", "people"), ("wine glass", "wine glasses"), ("knife", "knives"), ("sheep", "sheep"),
     ("toy", "toys"), ("computer mouse", "computer mice")],
)  # fmt: skip
def test_plurals(noun, many):
    assert plural(noun) == many


def test_articles():
    nouns = ("apple", "unicycle", "dog", "big scissors", "food", "something to sit on")
    assert [with_article(noun) for noun in nouns] == [
        "an apple", "a unicycle", "a dog", "big scissors", "food", "something to sit on"
    ]  # fmt: skip
