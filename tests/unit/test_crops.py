"""Crops and looks: inside the frame, within the budget, there and back again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.crops import (
    Crop,
    CropRules,
    cut,
    plan_looks,
    tiles,
    vision_tokens,
    window_around,
)
from agent.frame import frame_from_rgb
from agent.zoom_policy import Arrangement

RULES = CropRules()
FRAME = (2048, 1536)


@st.composite
def boxes_in_frame(draw: st.DrawFn, most: int = 40) -> np.ndarray:
    """(n, 4) boxes of 1 to 400 px inside `FRAME`."""
    rows = []
    for _ in range(draw(st.integers(1, most))):
        w, h = draw(st.integers(1, 400)), draw(st.integers(1, 400))
        x, y = draw(st.integers(0, FRAME[0] - w)), draw(st.integers(0, FRAME[1] - h))
        rows.append((x, y, x + w, y + h))
    return np.array(rows, dtype=np.float32)


@given(
    boxes=boxes_in_frame(),
    arrangement=st.sampled_from(Arrangement),
    budget=st.integers(0, 2000),
)
def test_looks_keep_the_budget_and_the_frame(
    boxes: np.ndarray, arrangement: Arrangement, budget: int
) -> None:
    looks = plan_looks(
        boxes, arrangement, frame=FRAME, longest_px=448, budget_tokens=budget, rules=RULES
    )
    assert sum(look.num_tokens for look in looks) <= budget
    wanted = [number for look in looks for number in look.wanted]
    assert len(wanted) == len(set(wanted))
    for look in looks:
        assert max(look.size) <= 448
        for crop in look.crops:
            x1, y1, x2, y2 = crop.box
            assert 0 <= x1 < x2 <= FRAME[0]
            assert 0 <= y1 < y2 <= FRAME[1]
            left, top, right, bottom = crop.place
            assert 0 <= left < right <= look.size[0]
            assert 0 <= top < bottom <= look.size[1]


@given(boxes=boxes_in_frame(), arrangement=st.sampled_from(Arrangement))
def test_wanted_boxes_go_to_the_picture_and_come_back(
    boxes: np.ndarray, arrangement: Arrangement
) -> None:
    for look in plan_looks(
        boxes, arrangement, frame=FRAME, longest_px=448, budget_tokens=5000, rules=RULES
    ):
        on_picture = look.given(boxes)
        np.testing.assert_allclose(look.to_frame(on_picture), boxes[list(look.wanted)], atol=0.1)
        assert (on_picture[:, :2] < on_picture[:, 2:]).all()


@given(x=st.floats(-500, 900), y=st.floats(-500, 900), w=st.floats(0, 900), h=st.floats(0, 900))
def test_whatever_is_found_comes_back_inside_its_crop(
    x: float, y: float, w: float, h: float
) -> None:
    boxes = np.array([[10, 10, 40, 50], [900, 700, 960, 720]], dtype=np.float32)
    (look,) = plan_looks(
        boxes, Arrangement.SHEET, frame=FRAME, longest_px=448, budget_tokens=900, rules=RULES
    )
    found = np.array([[x, y, x + w, y + h]], dtype=np.float32)
    (owner,) = look.owners(found)
    x1, y1, x2, y2 = look.to_frame(found)[0]
    left, top, right, bottom = look.crops[owner].box
    assert left <= x1 <= x2 <= right
    assert top <= y1 <= y2 <= bottom


def test_a_sheet_costs_a_fraction_of_the_same_crops_one_by_one() -> None:
    corners = np.array([(x, y) for x in range(100, 1900, 400) for y in (100, 800)], np.float32)
    boxes = np.concatenate([corners, corners + 36], axis=1)
    costs = {
        arrangement: sum(
            look.num_tokens
            for look in plan_looks(
                boxes, arrangement, frame=FRAME, longest_px=448, budget_tokens=9999, rules=RULES
            )
        )
        for arrangement in Arrangement
    }
    assert costs[Arrangement.SHEET] < costs[Arrangement.UNION] < costs[Arrangement.SEVERAL]


def test_windows_are_moved_at_the_edges_not_cut() -> None:
    assert window_around((0, 0, 20, 20), FRAME, RULES) == (0, 0, 224, 224)
    assert window_around((2028, 1516, 2048, 1536), FRAME, RULES) == (1824, 1312, 2048, 1536)
    assert window_around((0, 0, 20, 20), FRAME, RULES, square=True) == (0, 0, 56, 56)
    assert window_around((0, 0, 20, 20), (30, 40), RULES) == (0, 0, 30, 40)


def test_overlapping_crops_become_one() -> None:
    boxes = np.array(
        [[100, 100, 140, 140], [900, 900, 940, 940], [150, 100, 190, 140]], dtype=np.float32
    )
    looks = plan_looks(
        boxes, Arrangement.SEVERAL, frame=FRAME, longest_px=448, budget_tokens=900, rules=RULES
    )
    assert sorted(look.wanted for look in looks) == [(0, 2), (1,)]


@pytest.mark.parametrize("size", [(2048, 1536), (7680, 4320), (300, 200), (5000, 100)])
def test_tiles_cover_the_frame(size: tuple[int, int]) -> None:
    covered = np.zeros(size[::-1], dtype=bool)
    windows = tiles(size, 512, 16)
    for x1, y1, x2, y2 in windows:
        covered[y1:y2, x1:x2] = True
    assert covered.all()
    assert len(windows) <= 16


def test_the_picture_shows_the_crop() -> None:
    rgb = np.zeros((300, 400, 3), dtype=np.uint8)
    rgb[100:140, 200:240] = (250, 20, 20)
    frame = frame_from_rgb(rgb)
    boxes = np.array([[200, 100, 240, 140], [10, 10, 30, 30]], dtype=np.float32)
    (look,) = plan_looks(
        boxes, Arrangement.SHEET, frame=(400, 300), longest_px=448, budget_tokens=99, rules=RULES
    )
    picture = cut(rgb, look, frame)
    x1, y1, x2, y2 = look.given(boxes)[0].round().astype(int)
    shown = picture.rgb()[y1 + 4 : y2 - 4, x1 + 4 : x2 - 4].mean(axis=(0, 1))
    assert shown == pytest.approx((250, 20, 20), abs=12)
    assert picture.digest != frame.digest
    assert cut(rgb, look, frame).digest == picture.digest


def test_tokens_are_those_of_the_primary_encoder() -> None:
    assert vision_tokens(448, 336) == 16 * 12
    assert vision_tokens(1, 1) == 1


def test_a_crop_knows_its_scale() -> None:
    assert Crop((0, 0, 10, 20), (0, 0, 30, 40)).scale == (3.0, 2.0)
