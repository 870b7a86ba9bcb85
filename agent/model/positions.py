"""What fills the positions of a sequence, and where each stands for the decoder.

Knows no weights and no tokens.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor


class SlotType(IntEnum):
    """What fills a position of the sequence."""

    TEXT = 0
    IMAGE = 1
    REGION = 2


def slot_positions(
    num_axes: int, slots: Tensor, grid: tuple[int, int] | None, *, start: int = 0
) -> tuple[Tensor, int]:
    """Positions of one sequence for a decoder with so many axes, and the next free one.

    With one axis every slot takes one step, whatever fills it; with three see `mrope_positions`.
    """
    if num_axes > 1:
        return mrope_positions(slots, grid, start=start)
    following = start + len(slots)
    return torch.arange(start, following)[None], following


def mrope_positions(
    slots: Tensor, grid: tuple[int, int] | None, *, start: int = 0
) -> tuple[Tensor, int]:
    """M-RoPE positions of one sequence (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text and region slots take one step on all three axes; the image block keeps its time and
    counts rows and columns of merged cells; what follows starts after the largest position.

    Args:
        slots: (length,) `SlotType` values; image slots are contiguous.
        grid: (rows, columns) of merged image cells, or None without an image.
        start: first position.

    Returns:
        (3, length) positions and the next free position.
    """
    image = torch.nonzero(slots == SlotType.IMAGE).flatten()
    length = len(slots)
    if not len(image) or grid is None:
        steps = torch.arange(start, start + length)
        return steps.expand(3, -1), start + length
    first, rows, columns = int(image[0]), *grid
    before = torch.arange(start, start + first).expand(3, -1)
    base = start + first
    row = torch.arange(rows).repeat_interleave(columns) + base
    column = torch.arange(columns).repeat(rows) + base
    block = torch.stack([torch.full_like(row, base), row, column])
    after_start = base + max(rows, columns)
    after = torch.arange(after_start, after_start + length - first - len(image)).expand(3, -1)
    return torch.cat([before, block, after], dim=1), after_start + after.shape[1]
