"""What counts as a thing's name."""

from __future__ import annotations

import pytest

from agent.evaluation.names import is_known, is_named, readings, synonyms, true_names, wider_words


@pytest.mark.parametrize(
    ("said", "name"),
    [("dog", "dog"), ("a brown dog", "dog"), ("A dog.", "dog"), ("dogs", "dog"),
     ("a small dog", "dog"), ("an orange", "orange"), ("an orange car", "car"),
     ("a dog on a sofa", "dog"), ("a bird of prey", "bird of prey"), ("hot dog", "hot dog"),
     ("people", "person"), ("two wine glasses", "wine glass"),
     ("a brown bear", "bear"), ("small hot dog", "hot dog")],
)  # fmt: skip
def test_a_phrase_that_names_it(said: str, name: str) -> None:
    assert is_named(said, {name})


@pytest.mark.parametrize(
    ("said", "name"),
    [("a hot dog", "dog"), ("", "dog"), ("the", "dog"), ("an orange car", "orange"),
     ("a sofa with a dog", "dog"), ("teddy bear", "bear")],
)  # fmt: skip
def test_a_phrase_that_does_not(said: str, name: str) -> None:
    assert not is_named(said, {name})


def test_readings_from_the_whole_phrase_to_the_head_noun() -> None:
    assert readings("A dark brown small dog") == (
        "a dark brown small dog", "dark brown small dog", "brown small dog", "small dog", "dog",
    )  # fmt: skip


def test_words_of_the_vocabulary() -> None:
    assert "automobile" in synonyms("car")
    assert "vehicle" in wider_words("car")
    assert "vehicle" not in synonyms("car")
    # What holds for some things of a name only is no synonym, but may be what a box is called.
    assert "woman" not in synonyms("person")
    assert "woman" in true_names("person")
    # COCO's kite is a toy; the kite of ImageNet, a bird, does not count.
    assert "bird" not in true_names("kite")
    # A shark has no class of its own: what all sharks are.
    assert wider_words("shark") == {"fish", "animal"}
    assert true_names("quokka", ["marsupial"]) == {"quokka", "marsupial"}
    assert is_known("beagle")
    assert not is_known("quokka")
