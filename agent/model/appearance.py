"""What a box looks like, in words that people use: shares of eleven colours, brightness, contrast.

A picture becomes a small map of such channels once, and a box is described by the mean over the
map's cells inside it, like any other region feature. Arrays and tensors; knows no model.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from agent.frame import RGBArray
from agent.model.roi_pooling import pool_regions
from agent.vocabulary import COLOURS

NUM_CHANNELS = 16
"""Eleven colours, brightness, contrast, saturation, and two that are zero."""
MAP_SIDE = 128
"""Cells along the map's longer side."""
_INSIDE = 0.8
"""Of a box's sides: its margin mostly shows what is behind it."""
_ROI_SIZE = 7
_SHARPNESS = 60.0
# Typical colours in CIE L*a*b* (L 0..100). Several per name where the name spans much.
_TYPICAL = (
    ("black", (10, 0, 0)), ("black", (22, 0, 0)),
    ("white", (96, 0, 0)), ("white", (88, 0, 2)),
    ("gray", (40, 0, 0)), ("gray", (55, 0, 0)), ("gray", (70, 0, 0)),
    ("red", (45, 65, 45)), ("red", (32, 48, 28)), ("red", (52, 75, 35)),
    ("orange", (65, 40, 65)), ("orange", (72, 28, 55)),
    ("yellow", (85, 0, 75)), ("yellow", (88, -5, 45)),
    ("green", (45, -40, 35)), ("green", (65, -50, 50)), ("green", (32, -18, 18)),
    ("green", (70, -25, 35)), ("green", (50, -15, 28)),
    ("blue", (35, 20, -55)), ("blue", (55, -5, -35)), ("blue", (70, -12, -25)),
    ("blue", (25, 8, -28)), ("blue", (45, 2, -40)),
    ("purple", (35, 45, -40)), ("purple", (45, 30, -28)), ("purple", (28, 28, -20)),
    ("pink", (75, 30, 3)), ("pink", (65, 55, -5)), ("pink", (82, 18, 5)),
    ("brown", (35, 18, 28)), ("brown", (25, 12, 16)), ("brown", (50, 15, 32)),
    ("brown", (60, 12, 25)),
)  # fmt: skip


def appearance_map(rgb: RGBArray) -> Tensor:
    """(1, 16, rows, columns): the channels of each cell of a small map of the picture.

    Args:
        rgb: (height, width, 3) uint8.
    """
    height, width = rgb.shape[:2]
    ratio = min(1.0, MAP_SIDE / max(height, width))
    size = (max(1, round(height * ratio)), max(1, round(width * ratio)))
    pixels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    if size != (height, width):
        pixels = nn.functional.interpolate(pixels, size, mode="bilinear", antialias=True)
    lab = _lab(pixels[0].permute(1, 2, 0).float() / 255.0)
    lightness = lab[..., 0] / 100.0
    chroma = lab[..., 1:].norm(dim=-1) / 100.0
    mean = nn.functional.avg_pool2d(lightness[None, None], 5, 1, 2, count_include_pad=False)[0, 0]
    channels = [*_shares(lab), lightness, (lightness - mean).abs() * 4.0, chroma]
    blank = torch.zeros_like(lightness)
    return torch.stack([*channels, *[blank] * (NUM_CHANNELS - len(channels))])[None]


def pool_appearance(channels: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """(n, 16) mean channels inside each box.

    Args:
        channels: what `appearance_map` gave.
        boxes: (n, 4) xyxy in pixels of the picture.
        size: (width, height) of that picture, pixels.
    """
    rows, columns = channels.shape[-2:]
    scale = boxes.new_tensor([columns / size[0], rows / size[1]] * 2)
    inner = boxes * scale
    centre, half = (inner[:, :2] + inner[:, 2:]) / 2, (inner[:, 2:] - inner[:, :2]) / 2 * _INSIDE
    inner = torch.cat([centre - half, centre + half], dim=-1)
    pooled: Tensor = pool_regions(channels, inner[None], spatial_scale=1.0, roi_size=_ROI_SIZE)[0]
    return pooled


def _shares(lab: Tensor) -> list[Tensor]:
    """How much each cell is of each colour, (rows, columns) each; together one."""
    typical = lab.new_tensor([place for _, place in _TYPICAL])
    # Lightness counts half: a shaded red is red.
    weight = lab.new_tensor([0.5, 1.0, 1.0])
    distance = ((lab[..., None, :] - typical) * weight).pow(2).sum(-1)
    nearness = (-distance / _SHARPNESS).softmax(-1)
    return [
        nearness[..., [k for k, (name, _) in enumerate(_TYPICAL) if name == colour]].sum(-1)
        for colour in COLOURS
    ]


def _lab(rgb: Tensor) -> Tensor:
    """(..., 3) sRGB in 0..1 to CIE L*a*b* under D65 (IEC 61966-2-1, CIE 15)."""
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    matrix = rgb.new_tensor(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    xyz = linear @ matrix.T / rgb.new_tensor([0.95047, 1.0, 1.08883])
    root = torch.where(xyz > 0.008856, xyz.clamp(min=1e-6) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)
