"""Rewards: bounds, monotonicity, degenerate boxes, and what counts as the same answer."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from agent.training.rewards import (
    Rewards,
    RewardWeights,
    accuracy,
    box_adjustment,
    box_step,
    fit,
    matches,
    region_format,
    region_verification,
    zoom_format,
)

IMAGE = (2048.0, 1536.0)
NUMBERS = st.floats(-3000, 5000, allow_nan=False)
BOXES = st.tuples(NUMBERS, NUMBERS, NUMBERS, NUMBERS)
TARGETS = st.builds(
    lambda x, y, w, h: (x, y, x + w, y + h),
    st.floats(0, 1900), st.floats(0, 1400), st.floats(8, 100), st.floats(8, 100),
)  # fmt: skip


def grown(box: tuple[float, ...], by: float) -> tuple[float, float, float, float]:
    """The box, larger by so many of its own sides on every side."""
    x1, y1, x2, y2 = box
    w, h = (x2 - x1) * by, (y2 - y1) * by
    return x1 - w, y1 - h, x2 + w, y2 + h


@given(crop=BOXES, target=BOXES)
def test_box_rewards_lie_in_bounds(crop: tuple[float, ...], target: tuple[float, ...]) -> None:
    assert box_step(crop, IMAGE) in (0.0, 1.0)
    assert 0.0 <= fit(crop, target, IMAGE) <= 1.0
    assert box_adjustment(crop, IMAGE) == box_step(crop, IMAGE)
    assert box_adjustment(crop, IMAGE, target=target) == fit(crop, target, IMAGE)


@given(target=TARGETS, small=st.floats(0, 30), more=st.floats(0, 30))
def test_a_crop_that_holds_its_target_is_better_the_tighter_it_is(
    target: tuple[float, ...], small: float, more: float
) -> None:
    tight, loose = grown(target, small), grown(target, small + more)
    assert fit(tight, target, IMAGE) >= fit(loose, target, IMAGE) - 1e-9
    assert box_step(tight, IMAGE) >= box_step(loose, IMAGE)


@given(target=TARGETS, part=st.floats(0, 1), more=st.floats(0, 1))
def test_a_crop_is_better_the_more_of_its_target_it_holds(
    target: tuple[float, ...], part: float, more: float
) -> None:
    x1, y1, x2, y2 = target
    shares = sorted((part, max(part, more)))
    less, rest = ((x1, y1, x1 + share * (x2 - x1), y2) for share in shares)
    assert fit(less, target, IMAGE) <= fit(rest, target, IMAGE) + 1e-9


@given(target=TARGETS)
def test_context_is_free_and_the_whole_picture_is_worth_nothing(target: tuple[float, ...]) -> None:
    assert fit(target, target, IMAGE) == 1.0
    x1, y1, x2, y2 = grown(target, 0.49)
    assume(x1 >= 0 and y1 >= 0 and x2 <= IMAGE[0] and y2 <= IMAGE[1])
    assert fit((x1, y1, x2, y2), target, IMAGE) == pytest.approx(1.0)
    assert fit((0, 0, *IMAGE), target, IMAGE) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "box",
    [(5, 5, 5, 5), (10, 10, 5, 5), (0, 3, 9, 3), (-50, -50, -10, -10), (3000, 3000, 4000, 4000)],
)
def test_boxes_without_area_earn_nothing(box: tuple[float, ...]) -> None:
    assert box_step(box, IMAGE) == 0.0
    assert fit(box, (0, 0, 50, 50), IMAGE) == 0.0
    assert fit((0, 0, 50, 50), box, IMAGE) == 0.0


def test_a_target_as_large_as_the_image_is_fitted_by_the_image() -> None:
    assert fit((0, 0, *IMAGE), (0, 0, *IMAGE), IMAGE) == 1.0


def test_the_step_stands_at_six_tenths() -> None:
    assert box_step((0, 0, 600, 1000), (1000.0, 1000.0)) == 1.0
    assert box_step((0, 0, 601, 1000), (1000.0, 1000.0)) == 0.0
    assert box_step((0, 0, 601, 1000), (1000.0, 1000.0), most_area=0.7) == 1.0


@pytest.mark.parametrize(
    ("answer", "truth", "same"),
    [
        ("Red", "red", True),
        ("a red cup.", "red cup", True),
        ("three", "3", True),
        ("3", "Three", True),
        ("13", "3", False),
        ("red", "blue", False),
        ("", "", False),
        ("(B) red", "B", True),
        ("b", "B", True),
        ("B: red", "B", True),
        ("Blue", "B", False),
        ("A", "B", False),
        ("a dog", "A", False),
        ("", "B", False),
    ],
)
def test_the_same_answer(answer: str, truth: str, same: bool) -> None:
    assert matches(answer, truth) is same
    assert accuracy(answer, truth) == region_verification(answer, truth) == float(same)


def test_a_description_verifies_its_noun():
    assert region_verification("A brown cat.", "cat") == 1.0
    assert region_verification("perhaps a traffic light", "traffic light") == 1.0
    assert region_verification("a cat basket", "cat") == region_verification("", "") == 0.0
    assert region_verification("A or B", "B") == accuracy("A or B", "B")


THINK = "<think>it is small</think>"


@pytest.mark.parametrize(
    ("first", "second", "reward"),
    [
        (f"{THINK}<zoom>[1, 2, 3, 4]</zoom>", f"{THINK}\n<answer>B</answer>", 1.0),
        (f"{THINK}<zoom>[1, 2, 3, 4]</zoom>", "B", 0.5),
        ("nothing", f"{THINK}<answer>B</answer>", 0.5),
        (f"{THINK}<zoom>[1, 2, 3]</zoom>", f"{THINK}<answer> </answer>", 0.0),
        (f"{THINK}<zoom>[1,2,3,4]</zoom> and more", "<answer>B</answer>", 0.0),
        (f"{THINK}{THINK}<zoom>[1,2,3,4]</zoom>", f"{THINK}<answer>B", 0.0),
    ],
)
def test_the_protocols_form(first: str, second: str, reward: float) -> None:
    assert zoom_format(first, second) == reward


@pytest.mark.parametrize(
    ("text", "reward"),
    [
        ("<ground>dog</ground><objects><region0><region4></objects>", 1.0),
        ("<ground>dog</ground><objects></objects>", 1.0),
        ("There are <ground>dog</ground><objects><region0></objects> 1", 1.0),
        ("a dog", 1.0),
        ("<ground>dog</ground><objects><region5></objects>", 0.0),  # there are five
        ("<ground>dog</ground><objects><region1><region1></objects>", 0.0),
        ("<ground>dog</ground><objects>here</objects>", 0.0),
        ("<ground>dog</ground>", 0.0),
        ("<region1>", 0.0),
    ],
)
def test_the_grammars_form(text: str, reward: float) -> None:
    assert region_format(text, num_regions=5) == reward


@given(st.text(max_size=100), st.text(max_size=100))
def test_any_text_has_a_reward(one: str, other: str) -> None:
    assert accuracy(one, other) in (0.0, 1.0)
    assert zoom_format(one, other) in (0.0, 0.5, 1.0)
    assert region_format(one, num_regions=3) in (0.0, 1.0)


@given(parts=st.tuples(*[st.floats(0, 1)] * 4), better=st.integers(0, 3))
def test_the_total_grows_with_every_part(parts: tuple[float, ...], better: int) -> None:
    improved = [1.0 if k == better else part for k, part in enumerate(parts)]
    assert 0.0 <= Rewards(*parts).total() <= Rewards(*improved).total() <= RewardWeights().most


def test_the_papers_weights() -> None:
    assert Rewards(1, 1, 1, 1).total() == RewardWeights().most == 3.5
    assert Rewards(1, 0, 0, 0).total(RewardWeights(region=2.0)) == 2.0
