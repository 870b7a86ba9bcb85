"""Sine-cosine positions: of a box (four numbers) and of a map (two axes).

Formulas as in the published region encoder (VLM-FO1, section 3.2; DETR's sine embedding).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def box_position_embedding(boxes: Tensor, width: int) -> Tensor:
    """Sine-cosine embedding of normalised boxes.

    Args:
        boxes: (..., 4) as cx, cy, w, h, relative to the image (0..1).
        width: channels of the embedding, divisible by 8.

    Returns:
        (..., width) float32: blocks for cy, cx, w, h of width/4 each. With D = width/4,
        channel i of a block is sin (even i) or cos (odd i) of 2 pi v / 10000^(2 floor(i/2) / D).
    """
    quarter = width // 4
    index = torch.arange(quarter, dtype=torch.float32, device=boxes.device)
    frequency = 10000.0 ** (2.0 * torch.div(index, 2, rounding_mode="floor") / quarter)
    angles = boxes.float()[..., None] * (2.0 * math.pi) / frequency
    waves = torch.stack([angles[..., 0::2].sin(), angles[..., 1::2].cos()], dim=-1).flatten(-2)
    cx, cy, w, h = waves.unbind(-2)
    return torch.cat([cy, cx, w, h], dim=-1)


def map_position_embedding(channels: int, height: int, width: int, device: torch.device) -> Tensor:
    """Sine-cosine embedding of a map's cells: (channels, height, width) float32.

    The first half of the channels encodes y / height, the second x / width; each frequency
    10000^(2 floor(i/2) / (channels/4)) emits a sine and a cosine, i running over channels/4.
    """
    quarter = channels // 4
    index = torch.arange(quarter, dtype=torch.float32, device=device)
    frequency = 10000.0 ** (2.0 * torch.div(index, 2, rounding_mode="floor") / quarter)

    def axis(length: int) -> Tensor:
        position = torch.arange(length, dtype=torch.float32, device=device) / length
        angles = position[:, None] * (2.0 * math.pi) / frequency
        return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(-2)

    rows = axis(height)[:, None, :].expand(-1, width, -1)
    columns = axis(width)[None, :, :].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1).permute(2, 0, 1)
