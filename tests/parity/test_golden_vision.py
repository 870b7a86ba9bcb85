"""Vision, region and projector stages against tensors of the published implementation.

The folders under tests/golden hold its inputs, weights and outputs; `GOLDEN_SETS` (colon
separated) adds more of the same layout.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from agent.model.checkpoint import load_model
from agent.model.configuration import VLMFO1Config
from agent.processor import ImageGeometry, auxiliary_pixels, primary_patches, working_image

GOLDEN = Path(__file__).parents[1] / "golden"
SETS = [GOLDEN / "A", *(Path(p) for p in os.environ.get("GOLDEN_SETS", "").split(":") if p)]
ATOL = 1e-4


@pytest.fixture(scope="module", params=SETS, ids=lambda path: path.name)
def golden(request):
    folder = request.param
    meta = json.loads((folder / "meta.json").read_text())
    raw = json.loads((folder / "ckpt" / "config.json").read_text())
    # Small sets shrink what the published code keeps in source; meta.json says how.
    raw["groundstream"] = {
        "pyramid_width": meta["simple_fpn"]["out_channels"],
        "davit": {
            "depths": meta["davit"]["depths"],
            "widths": meta["davit"]["dim_embed"],
            "num_heads": meta["davit"]["num_heads"],
        },
    }
    config = VLMFO1Config.from_dict(raw)
    model = load_model(folder / "ckpt", config=config)
    inputs = load_file(folder / "inputs.safetensors")
    outputs = load_file(folder / "outputs.safetensors")
    rgb = np.asarray(Image.open(folder / "image.png").convert("RGB"))
    geometry = ImageGeometry.of(rgb.shape[1], rgb.shape[0], config)
    return config, model, inputs, outputs, rgb, geometry


def close(actual, expected, atol=ATOL):
    torch.testing.assert_close(actual.float(), expected.float(), atol=atol, rtol=1e-4)


def test_golden_pixels(golden):
    _, _, _, outputs, rgb, geometry = golden
    image = working_image(rgb, geometry)
    close(primary_patches(image, geometry), outputs["pixel_values"])
    close(auxiliary_pixels(image, geometry), outputs["aux_pixel_values"])


def test_golden_boxes(golden):
    config, _, inputs, outputs, _, geometry = golden
    boxes = inputs["boxes_in"].numpy()
    close(torch.from_numpy(geometry.auxiliary_boxes(boxes)), outputs["boxes_aux"])
    close(torch.from_numpy(geometry.primary_boxes(boxes)), outputs["boxes_vt"])
    x1, y1, x2, y2 = geometry.normalised_boxes(boxes, config.region.combination).T
    centre = np.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], axis=-1)
    close(torch.from_numpy(centre), outputs["pos_in"][0])


@torch.inference_mode()
def test_golden_primary_encoder(golden):
    config, model, inputs, outputs, _, _ = golden
    maps = model.primary_encoder(outputs["pixel_values"], inputs["image_grid_thw"])[0]
    close(maps.image_tokens, outputs["vt_out"])
    for number, level in enumerate(maps.levels):
        close(level, outputs[f"vt_level{number}"])
    close(model.image_projector(maps.image_tokens), outputs["image_tokens"])
    if config.region.use_feature_pyramid:
        for number, level in enumerate(model.region_encoder.simple_fpn(maps.levels[-1])):
            close(level, outputs[f"fpn_level{number}"])


@torch.inference_mode()
def test_golden_auxiliary_encoder(golden):
    _, model, _, outputs, _, _ = golden
    levels = model.auxiliary_encoder(outputs["aux_pixel_values"][None])
    for number, level in enumerate(levels):
        close(level, outputs[f"aux_level{number}"])


@torch.inference_mode()
def test_golden_regions(golden):
    config, model, inputs, outputs, _, geometry = golden
    region = model.region_encoder
    aux = [outputs[f"aux_level{number}"] for number in range(4)]
    vt = tuple(outputs[f"vt_level{number}"] for number in range(4))
    auxiliary = region.pool_auxiliary(aux, outputs["boxes_aux"][None])
    primary = region.pool_primary(vt, outputs["boxes_vt"][None])
    close(auxiliary[0], outputs["roi_mean0"], atol=1e-5)
    close(primary[0], torch.cat([outputs[f"roi_mean{i}"] for i in range(1, 5)], dim=-1))
    boxes = geometry.normalised_boxes(inputs["boxes_in"].numpy(), config.region.combination)
    fused = region.fuse(primary, auxiliary, torch.from_numpy(boxes)[None])
    close(fused, outputs["region_features"])
    close(model.region_projector(fused)[0], outputs["region_tokens"])
