"""What "red car" and "second car from the left" mean: read, and narrowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.descriptions import (
    RANKS,
    Description,
    Rank,
    colour_chances,
    read_description,
)
from agent.detections import Proposals
from agent.features import Generation
from agent.paging import Page
from agent.parsing import Answer, AnswerStatus, join_pages
from agent.prompts import Task, TaskKind
from agent.vocabulary import COLOURS

BOXES = np.array(
    [[30, 30, 50, 70], [60, 55, 90, 95], [5, 10, 15, 30]], dtype=np.float32
)  # fmt: skip
"""The middle one, the last and the first, from left to right, from top to bottom and by size."""
MEANT = {
    "leftmost {}": 2, "left {}": 2, "{} on the left": 2, "first {} from the left": 2,
    "rightmost {}": 1, "right {}": 1, "{} on the right": 1, "first {} from the right": 1,
    "second {} from the left": 0, "third {} from the left": 1,
    "second {} from the right": 0, "third {} from the right": 2,
    "middle {}": 0, "{} in the middle": 0,
    "topmost {}": 2, "{} at the top": 2, "lowest {}": 1, "{} at the bottom": 1,
    "smallest {}": 2, "largest {}": 1, "biggest {}": 1,
    "fourth {} from the left": None, "fourth {} from the right": None,
}  # fmt: skip
RULES = AnswerRules(reads_descriptions=True, least_confidence=0.3, one_per_object=True)
RED, BLUE, GRAY = map(COLOURS.index, ("red", "blue", "gray"))


def understood(label: str) -> tuple[str, list[str], list[str]]:
    read = read_description(label)
    return read.noun, [COLOURS[k] for k in read.colours], [rank.form for rank in read.ranks]


def rank_of(form: str) -> Rank:
    return next(rank for rank in RANKS if rank.form == form)


@pytest.mark.parametrize("form", [rank.form for rank in RANKS])
def test_every_form_is_read_and_means_one_of_its_like(form: str) -> None:
    assert understood(form.format("car")) == ("car", [], [form])
    assert rank_of(form).chosen(BOXES) == MEANT[form]


def test_a_rank_among_few_or_none() -> None:
    assert rank_of("{} in the middle").chosen(BOXES[:2]) is None
    assert rank_of("second {} from the left").chosen(BOXES[:1]) is None
    assert rank_of("leftmost {}").chosen(BOXES[:1]) == 0
    assert all(rank.chosen(BOXES[:0]) is None for rank in RANKS)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Red cars", ("car", ["red"], [])),
        ("the grey dog.", ("dog", ["gray"], [])),
        ("people in blue", ("person", ["blue"], [])),
        ("red bikes", ("bicycle", ["red"], [])),
        ("tomato in the middle", ("tomato", [], ["{} in the middle"])),
        ("something red", ("something", ["red"], [])),
        ("red thing", ("thing", ["red"], [])),
        ("The biggest thing", ("thing", [], ["biggest {}"])),
        ("leftmost person in red", ("person", ["red"], ["leftmost {}"])),
        ("person in red on the left", ("person", ["red"], ["{} on the left"])),
        ("largest black and white dog", ("largest black and white dog", [], [])),
        ("red fox", ("red fox", [], [])),
        ("leftmost wine", ("wine", [], ["leftmost {}"])),
        ("brown bears", ("brown bear", [], [])),
        ("leftmost brown bear", ("brown bear", [], ["leftmost {}"])),
        ("something", ("something", [], [])),
    ],
)
def test_labels_are_read(label: str, expected: tuple[str, list[str], list[str]]) -> None:
    assert understood(label) == expected


@pytest.mark.parametrize(
    "label",
    ["green bean", "red", "left", "leftmost", "red gibberish", "left of the car", "second car",
     "car in the", "top hat", "wet car", "left left left left left car",
     " ".join(["left"] * 390) + " car", "person on the left of the car"],
)  # fmt: skip
def test_other_labels_stay_as_they_are(label: str) -> None:
    assert read_description(label) == Description(label)


def test_a_colour_is_half_said_where_another_has_as_much() -> None:
    shares = np.zeros((3, len(COLOURS)), dtype=np.float32)
    shares[:, RED], shares[:, GRAY] = (0.8, 0.4, 0.2), (0.2, 0.4, 0.6)
    assert colour_chances(shares, RED) == pytest.approx([16 / 17, 0.5, 0.1])
    assert colour_chances(shares, BLUE) == pytest.approx([0, 0, 0])
    assert colour_chances(shares[:0], RED).shape == (0,)
    assert np.isfinite(colour_chances(np.zeros((2, len(COLOURS)), dtype=np.float32), RED)).all()


def answer(
    task: Task, *pages: list[tuple[str, list[int], float]], rules: AnswerRules = RULES
) -> Answer:
    """Of three boxes, a page each of (label, regions, confidence)."""
    shown = []
    for page in pages:
        pieces = [
            (piece, confidence)
            for label, regions, confidence in page
            for piece in (f"<ground>{label}</ground><objects>",
                          *(f"<region{k}>" for k in regions), "</objects>")
        ]  # fmt: skip
        generation = Generation(
            tuple(p for p, _ in pieces), tuple(c for _, c in pieces), False, 1, 0, 1
        )
        shown.append(
            (Page(np.arange(3) if len(pages) == 1 else np.array([len(shown)])), generation)
        )
    return join_pages(task, shown, Proposals(BOXES, np.ones(3, dtype=np.float32)), rules=rules)


def test_of_what_was_found_the_one_that_is_meant_is_left() -> None:
    label = "Second car from the left"
    said = [(label, [0, 1, 2], 0.8), ("car", [0, 1, 2], 0.8), ("leftmost dog", [1], 0.8)]
    found = answer(Task.detect(label, "car", "leftmost dog"), said)
    regions = zip(found.detections.label, found.detections.region.tolist(), strict=True)
    assert list(regions) == [(label, 0), ("car", 0), ("car", 1), ("car", 2), ("leftmost dog", 1)]
    assert found.detections.confidence.tolist() == pytest.approx([0.8] * 5)


def test_pages_are_compared_with_each_other() -> None:
    pages = [[("leftmost car", [0], 0.8)]] * 3
    assert answer(Task.detect("leftmost car"), *pages).detections.region.tolist() == [2]


def test_what_is_no_detection_has_no_place() -> None:
    said = [("leftmost car", [0, 1], 0.8), ("leftmost car", [2], 0.2)]
    task = Task.detect("leftmost car")
    assert answer(task, said).detections.region.tolist() == [0]
    # Whoever asks for all chances does not have nothing counted among its like.
    assert answer(replace(task, least_confidence=0.0), said).detections.region.tolist() == [0]
    none = answer(replace(task, least_confidence=0.9), said)
    assert (len(none.detections), none.status) == (0, AnswerStatus.UNSURE)


def test_a_place_that_nobody_has_is_not_present() -> None:
    task = Task.detect("fourth car from the left")
    found = answer(task, [("fourth car from the left", [0, 1, 2], 0.8)])
    assert (len(found.detections), found.status) == (0, AnswerStatus.NOT_PRESENT)


def test_a_number_is_asked_of_all_and_other_models_are_left_alone() -> None:
    said = [("leftmost car", [0, 1, 2], 0.8)]
    count = replace(Task.detect("leftmost car"), kind=TaskKind.COUNT)
    assert len(answer(count, said).detections) == 3
    assert RULES.understood(count, "leftmost car") == Description("leftmost car")
    assert RULES.understood(count, "red cars") == Description("car", colours=(RED,))
    other = replace(RULES, reads_descriptions=False)
    assert len(answer(Task.detect("leftmost car"), said, rules=other).detections) == 3
    assert other.understood(count, "red cars") == Description("red cars")


def test_what_was_compared_is_not_looked_at_again_in_parts() -> None:
    said = [("leftmost car", [0, 1, 2], 0.8)]
    assert answer(Task.detect("dog", "leftmost car"), said).is_compared
    assert not answer(Task.detect("dog", "red car"), said).is_compared
