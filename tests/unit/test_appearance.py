"""Colours by name, and boxes of one colour."""

import numpy as np
import pytest
import torch

from agent.model.appearance import (
    COLOURS,
    NUM_CHANNELS,
    appearance_map,
    pool_appearance,
)

PAINTS = {
    "black": (8, 8, 8), "white": (250, 250, 250), "gray": (128, 128, 128), "red": (200, 20, 25),
    "orange": (250, 140, 20), "yellow": (245, 220, 30), "green": (40, 150, 50),
    "blue": (30, 60, 190), "purple": (120, 40, 140), "pink": (250, 150, 190),
    "brown": (110, 65, 30),
}  # fmt: skip


@pytest.mark.parametrize("name", COLOURS)
def test_a_paint_has_its_name(name):
    rgb = np.full((20, 30, 3), PAINTS[name], np.uint8)
    channels = appearance_map(rgb)[0, :11, 10, 15]
    assert COLOURS[int(channels.argmax())] == name
    assert channels.sum().item() == pytest.approx(1.0)


def test_each_box_has_its_own_colour():
    rgb = np.zeros((240, 320, 3), np.uint8)
    rgb[:, :160] = PAINTS["red"]
    rgb[:, 160:] = PAINTS["blue"]
    boxes = torch.tensor([[20.0, 40.0, 140.0, 200.0], [180.0, 40.0, 300.0, 200.0]])
    pooled = pool_appearance(appearance_map(rgb), boxes, (320, 240))
    assert pooled.shape == (2, NUM_CHANNELS)
    assert [COLOURS[k] for k in pooled[:, :11].argmax(dim=1)] == ["red", "blue"]


def test_small_and_huge_pictures_have_maps():
    assert appearance_map(np.zeros((1, 1, 3), np.uint8)).shape == (1, 16, 1, 1)
    assert appearance_map(np.zeros((2000, 3000, 3), np.uint8)).shape == (1, 16, 85, 128)
