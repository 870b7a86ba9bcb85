"""What a primary encoder with feature maps says about one image."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PrimaryMaps:
    """Image tokens, and the maps that regions are pooled from."""

    image_tokens: Tensor
    """(num_image_tokens, out_width) merged 2x2, raster order."""
    levels: tuple[Tensor, ...]
    """(1, hidden, rows, columns) after each tapped block, stride one patch."""
