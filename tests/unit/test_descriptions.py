"""What "red car" and "second car from the left" mean: read, and narrowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from agent.answer_rules import AnswerRules
from agent.descriptions import (
    PARTS,
    RANKS,
    Description,
    Part,
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
LEFT_HALF = Part("across", 0.0, 0.5)
RED, BLUE, GRAY = map(COLOURS.index, ("red", "blue", "gray"))


def understood(label: str) -> tuple[str, list[str], str | Part | None]:
    read = read_description(label)
    place = read.rank.form if read.rank else read.part
    return read.noun, [COLOURS[k] for k in read.colours], place


def rank_of(form: str) -> Rank:
    return next(rank for rank in RANKS if rank.form == form)


@pytest.mark.parametrize("form", [rank.form for rank in RANKS])
def test_every_form_is_read_and_means_one_of_its_like(form: str) -> None:
    assert understood(form.format("car")) == ("car", [], form)
    assert rank_of(form).chosen(BOXES) == MEANT[form]


def test_a_rank_among_few_or_none() -> None:
    assert rank_of("{} in the middle").chosen(BOXES[:2]) is None
    assert rank_of("second {} from the left").chosen(BOXES[:1]) is None
    assert rank_of("leftmost {}").chosen(BOXES[:1]) == 0
    assert all(rank.chosen(BOXES[:0]) is None for rank in RANKS)


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("Red cars", ("car", ["red"], None)),
        ("the grey dog.", ("dog", ["gray"], None)),
        ("people in blue", ("person", ["blue"], None)),
        ("red bikes", ("bicycle", ["red"], None)),
        ("tomato in the middle", ("tomato", [], "{} in the middle")),
        ("something red", ("something", ["red"], None)),
        ("red thing", ("thing", ["red"], None)),
        ("The biggest thing", ("thing", [], "biggest {}")),
        ("leftmost person in red", ("person", ["red"], "leftmost {}")),
        ("person in red on the left", ("person", ["red"], "{} on the left")),
        ("People on the left.", ("person", [], LEFT_HALF)),
        ("the left people in red", ("person", ["red"], LEFT_HALF)),
        ("2nd person from the left", ("person", [], "second {} from the left")),
        ("person in the centre", ("person", [], "{} in the middle")),
        ("left-most car", ("car", [], "leftmost {}")),
        ("leftmost people", ("person", [], "leftmost {}")),
        ("sheep on the left", ("sheep", [], "{} on the left")),
        ("largest black and white dog", ("largest black and white dog", [], None)),
        ("red fox", ("red fox", [], None)),
        ("leftmost wine", ("wine", [], "leftmost {}")),
        ("brown bears", ("brown bear", [], None)),
        ("leftmost brown bear", ("brown bear", [], "leftmost {}")),
        ("something", ("something", [], None)),
    ],
)
def test_labels_are_read(label: str, expected: tuple[str, list[str], str | Part | None]) -> None:
    assert understood(label) == expected


@pytest.mark.parametrize(
    "label",
    ["green bean", "red", "left", "leftmost", "red gibberish", "left of the car", "second car",
     "car in the", "top hat", "wet car", "left left left left left car",
     " ".join(["left"] * 390) + " car", "person on the left of the car", "left left car",
     "largest dog on the left", "leftmost dog at the top"],
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
    proposals = Proposals(BOXES, np.ones(3, dtype=np.float32))
    return join_pages(task, shown, proposals, rules=rules, size=(100, 100))


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


def test_several_are_meant_by_the_part_of_the_frame_that_they_lie_in() -> None:
    label = "cars on the left"
    said = [(label, [0, 1, 2], 0.8)]
    found = answer(Task.detect(label), said)
    assert found.detections.region.tolist() == [0, 2]
    assert found.is_placed
    count = answer(replace(Task.detect(label), kind=TaskKind.COUNT), said)
    assert (count.count, len(count.detections)) == (2, 2)


@pytest.mark.parametrize(
    ("part", "held"),
    [("{} on the right", [1]), ("{} in the middle", [0]), ("{} at the top", [2]),
     ("{} at the bottom", [0, 1])],
)  # fmt: skip
def test_parts_of_the_frame(part: str, held: list[int]) -> None:
    assert PARTS[part].holds(BOXES, (100, 100)).nonzero()[0].tolist() == held


def test_the_words_of_a_label_are_no_number_that_was_counted() -> None:
    task = replace(Task.detect("99 red cars"), kind=TaskKind.COUNT)
    assert answer(task, [("99 red cars", [0, 1], 0.8)]).count == 2
    assert answer(task, [("99 red cars", [], 0.8)]).count == 0


def test_a_reference_is_no_other_one_of_its_like_and_neither_are_boxes_around_it() -> None:
    task, like = Task.find_similar(1), "<region1>"
    found = answer(task, [(like, [0, 1, 2], 0.8)])
    assert (found.detections.region.tolist(), found.status) == ([0, 2], AnswerStatus.OK)
    doubled = Proposals(
        np.array([[30, 30, 50, 70], [30, 30, 50, 68]], dtype=np.float32), np.ones(2)
    )
    text = "<ground><region1></ground><objects><region0><region1></objects>"
    page = (Page(np.arange(2)), Generation((text,), (0.8,), False, 1, 0, 1))
    alone = join_pages(task, [page], doubled, rules=RULES, size=(100, 100))
    assert (len(alone.detections), alone.status) == (0, AnswerStatus.NOT_PRESENT)


def test_labels_that_are_regions_carry_the_numbers_of_the_frame() -> None:
    text = "<ground><region0></ground><objects><region1></objects>"
    page = (Page(np.array([2, 0])), Generation((text,), (0.8,), False, 1, 0, 1))
    proposals = Proposals(BOXES, np.ones(3, dtype=np.float32))
    found = join_pages(Task.find_similar(2), [page], proposals, rules=RULES, size=(100, 100))
    assert (found.detections.label, found.detections.region.tolist()) == (("<region2>",), [0])


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
    both = answer(Task.detect("dog", "leftmost car"), said)
    assert (both.placed, both.is_placed) == ({"leftmost car"}, False)
    assert answer(Task.detect("leftmost car"), said).is_placed
    assert not answer(Task.detect("dog", "red car"), said).placed
