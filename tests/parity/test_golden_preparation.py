"""Both towers' pixels for 18 image sizes, against what the published processors made of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

from agent.device_picture import DevicePicture
from agent.model.configuration import ImageConfig, VLMFO1Config
from agent.processor import ImageGeometry, auxiliary_pixels, primary_patches, working_image
from tests.parity.golden_sets import FOLDER
from tests.unit.tiny_model import tiny_config

CASES = json.loads((FOLDER / "preprocess_cases.json").read_text())


def recipe_image(width: int, height: int, seed: int) -> np.ndarray:
    """The picture of a case: gradients, rectangles, discs and noise from a seed."""
    state = np.random.RandomState(seed)
    y, x = np.mgrid[0:height, 0:width]
    ramps = (x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1),
             (x + y) * 255 // (width + height))  # fmt: skip
    image = np.stack(ramps, axis=-1).astype(np.int64)
    for _ in range(12):
        left, top = state.randint(0, width), state.randint(0, height)
        right = min(width, left + state.randint(8, max(9, width // 2)))
        bottom = min(height, top + state.randint(8, max(9, height // 2)))
        image[top:bottom, left:right] = state.randint(0, 256, 3)
    for _ in range(8):
        cx, cy = state.randint(0, width), state.randint(0, height)
        radius = state.randint(4, max(5, min(width, height) // 4))
        image[(x - cx) ** 2 + (y - cy) ** 2 <= radius * radius] = state.randint(0, 256, 3)
    image = image + state.randint(-12, 13, (height, width, 3))
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def config():
    tiny = tiny_config(300)
    return VLMFO1Config(
        vision=Qwen2_5_VLVisionConfig(), text=tiny.text, davit=tiny.davit, image=ImageConfig()
    )


@pytest.mark.parametrize("read", [Image.fromarray, lambda rgb: DevicePicture.of(rgb, "cpu")],
                         ids=["pillow", "on the device"])  # fmt: skip
@pytest.mark.parametrize("case", CASES, ids=lambda case: "x".join(map(str, case["size_wh"])))
def test_golden_preparation(case, config, read):
    width, height = case["size_wh"]
    geometry = ImageGeometry.of(width, height, config)
    image = working_image(read(recipe_image(width, height, case["img_seed"])), geometry)
    for pixels, expected in (
        (primary_patches(image, geometry), case["pixel_values"]),
        (auxiliary_pixels(image, geometry), case["aux"]),
    ):
        assert list(pixels.shape) == expected["shape"]
        flat = pixels.flatten().double()
        middle = len(flat) // 2
        np.testing.assert_allclose(flat[:16], expected["first16"], atol=1e-4)
        np.testing.assert_allclose(flat[middle : middle + 16], expected["mid16"], atol=1e-4)
        assert float(flat.mean()) == pytest.approx(expected["mean"], abs=1e-4)
        assert float(flat.std()) == pytest.approx(expected["std"], abs=1e-4)
