"""Resizing on the device gives Pillow's very levels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from agent.device_picture import DevicePicture

SIDE = st.integers(1, 90)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)


@settings(max_examples=150, deadline=None)
@given(
    size=st.tuples(SIDE, SIDE), to=st.tuples(SIDE, SIDE),
    resample=st.sampled_from(FILTERS), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_level_is_pillows(size, to, resample, seed):
    # Black and white noise: the cubic kernel overshoots and is cut at both ends.
    rgb = np.random.default_rng(seed).choice([0, 7, 128, 255], (size[1], size[0], 3))
    rgb = rgb.astype(np.uint8)
    pillow = Image.fromarray(rgb).resize(to, resample)
    ours = DevicePicture.of(rgb, "cpu").resize(to, resample)
    assert ours.size == pillow.size
    assert np.array_equal(ours.pixels.permute(1, 2, 0).numpy(), np.asarray(pillow))


@pytest.mark.parametrize("to", [(448, 336), (1288, 728), (768, 768)])
def test_every_level_of_a_camera_frame(to):
    rgb = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    pillow = Image.fromarray(rgb).resize(to, Image.Resampling.BICUBIC)
    ours = DevicePicture.of(rgb, "cpu").resize(to)
    assert np.array_equal(ours.pixels.permute(1, 2, 0).numpy(), np.asarray(pillow))
