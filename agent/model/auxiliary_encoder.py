"""Auxiliary vision encoder: DaViT (Florence-2's backbone), four levels at strides 4 to 32.

Pixels in, maps out; knows neither boxes nor the other encoder.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from agent.model.configuration import DaViTConfig
from agent.progress import layer_done

STRIDE = 4
"""Pixels per cell of the finest level."""


class AuxiliaryVisionEncoder(nn.Module):
    """DaViT with the output of every stage, not only the last."""

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        self.tower = Florence2VisionBackbone(config.to_transformers())

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(batch, 3, height, width) normalised pixels to four (batch, width_i, h_i, w_i) maps."""
        hidden = pixels
        levels = []
        for embed, blocks in zip(self.tower.convs, self.tower.blocks, strict=True):
            hidden = embed(hidden)
            for block in blocks:
                hidden = block(hidden)
                layer_done()
            levels.append(hidden)
        return levels
