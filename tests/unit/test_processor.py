"""Sizes and boxes of both towers against the published preparation (18 image sizes)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from agent.model.configuration import ImageConfig, VLMFO1Config
from agent.processor import ImageGeometry
from tests.unit.tiny_model import tiny_config

CASES = json.loads((Path(__file__).parents[1] / "golden" / "preprocess_cases.json").read_text())


@pytest.fixture(scope="module")
def config():
    tiny = tiny_config(300)
    return VLMFO1Config(
        vision=Qwen2_5_VLVisionConfig(), text=tiny.text, davit=tiny.davit, image=ImageConfig()
    )


@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["size_wh"])))
def test_published_sizes_and_boxes(case, config):
    width, height = case["size_wh"]
    geometry = ImageGeometry.of(width, height, config)
    assert [1, *geometry.grid] == case["grid_thw"][0]
    assert geometry.auxiliary == tuple(reversed(case["aux"]["shape"][1:]))
    if min(width, height) >= 28:  # below, the published code forgets to scale the boxes (F)
        boxes = geometry.auxiliary_boxes(np.array(case["boxes"], dtype=np.float32))
        np.testing.assert_allclose(boxes, case["boxes_prepared"], atol=1e-3)


def test_small_images_scale_their_boxes_too(config):
    geometry = ImageGeometry.of(20, 300, config)
    boxes = geometry.auxiliary_boxes(np.array([[0, 0, 20, 300]], dtype=np.float32))
    np.testing.assert_allclose(boxes, [[0, 0, *geometry.auxiliary]], atol=1e-4)
