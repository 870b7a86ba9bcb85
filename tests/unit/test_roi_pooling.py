"""Separable region pooling against RoIAlign written out loop by loop."""

from __future__ import annotations

import math

import pytest
import torch

from agent.model.roi_pooling import pool_regions, pool_upsampled_levels, upsampling_matrix


def sample(feature_map, y, x):
    """One bilinear sample as torchvision defines it."""
    _, height, width = feature_map.shape
    if y < -1 or y > height or x < -1 or x > width:
        return torch.zeros(len(feature_map))
    y, x = min(max(y, 0.0), height - 1), min(max(x, 0.0), width - 1)
    y0, x0 = int(y), int(x)
    y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
    fy, fx = y - y0, x - x0
    top = feature_map[:, y0, x0] * (1 - fx) + feature_map[:, y0, x1] * fx
    bottom = feature_map[:, y1, x0] * (1 - fx) + feature_map[:, y1, x1] * fx
    return top * (1 - fy) + bottom * fy


def roi_align_mean(feature_map, box, scale, size):
    """RoIAlign (aligned=False, adaptive sampling) and the mean over its bins."""
    x1, y1, x2, y2 = (float(v) * scale for v in box)
    width, height = max(x2 - x1, 1.0), max(y2 - y1, 1.0)
    bin_w, bin_h = width / size, height / size
    nx, ny = math.ceil(width / size), math.ceil(height / size)
    total = torch.zeros(len(feature_map))
    for by in range(size):
        for bx in range(size):
            for iy in range(ny):
                for ix in range(nx):
                    y = y1 + by * bin_h + (iy + 0.5) * bin_h / ny
                    x = x1 + bx * bin_w + (ix + 0.5) * bin_w / nx
                    total += sample(feature_map, y, x) / (nx * ny)
    return total / size**2


BOXES = [
    [3.0, 2.0, 21.5, 17.25],  # ordinary
    [0.0, 0.0, 40.0, 32.0],  # the whole image
    [10.2, 9.9, 10.4, 10.0],  # smaller than a cell: counts as one cell
    [30.0, 20.0, 60.0, 50.0],  # sticks out at the bottom right
    [-9.0, -8.0, 6.0, 5.0],  # sticks out at the top left
    [80.0, 70.0, 95.0, 90.0],  # wholly outside
]


@pytest.mark.parametrize("size", [7, 14])
@pytest.mark.parametrize("box", BOXES)
def test_equals_roi_align(box, size):
    torch.manual_seed(0)
    feature_map = torch.randn(1, 3, 16, 20)
    pooled = pool_regions(feature_map, torch.tensor([[box]]), spatial_scale=0.5, roi_size=size)
    expected = roi_align_mean(feature_map[0], box, 0.5, size)
    torch.testing.assert_close(pooled[0, 0], expected, atol=1e-5, rtol=1e-5)


def test_folded_upsampling_equals_building_the_map():
    torch.manual_seed(1)
    levels = [torch.randn(2, 4, 15, 19), torch.randn(2, 6, 8, 10), torch.randn(2, 5, 4, 5)]
    boxes = torch.rand(2, 9, 4) * 30
    boxes[..., 2:] += boxes[..., :2] + 4
    folded = pool_upsampled_levels(levels, boxes, spatial_scale=0.25, roi_size=7)
    size = levels[0].shape[-2:]
    upsampled = [levels[0]] + [
        torch.nn.functional.interpolate(level, size, mode="bilinear", align_corners=False)
        for level in levels[1:]
    ]
    built = pool_regions(torch.cat(upsampled, 1), boxes, spatial_scale=0.25, roi_size=7)
    torch.testing.assert_close(folded, built, atol=1e-5, rtol=1e-5)


def test_upsampling_rows_sum_to_one():
    matrix = upsampling_matrix(29, 8, device=torch.device("cpu"))
    torch.testing.assert_close(matrix.sum(1), torch.ones(29))


def test_no_boxes_and_gradients():
    feature_map = torch.randn(1, 3, 8, 8, requires_grad=True)
    none = pool_regions(feature_map, torch.zeros(1, 0, 4), spatial_scale=1.0, roi_size=7)
    assert none.shape == (1, 0, 3)
    box = torch.tensor([[[1.0, 1.0, 6.0, 5.0]]])
    pool_regions(feature_map, box, spatial_scale=1.0, roi_size=7).sum().backward()
    assert float(feature_map.grad.sum()) == pytest.approx(3.0, abs=1e-4)
