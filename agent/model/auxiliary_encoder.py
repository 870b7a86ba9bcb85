"""Auxiliary vision encoder: DaViT (Florence-2's backbone), four levels at strides 4 to 32.

Pixels in, maps out; knows neither boxes nor the other encoder.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig
from transformers.models.florence2.modeling_florence2 import Florence2VisionBackbone

from agent.model.configuration import DaViTConfig
from agent.progress import layer_done


class AuxiliaryVisionEncoder(nn.Module):
    """DaViT with the output of every stage, not only the last."""

    def __init__(self, config: DaViTConfig) -> None:
        super().__init__()
        self.tower = Florence2VisionBackbone(_florence(config))

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


def _florence(config: DaViTConfig) -> Florence2VisionConfig:
    """The same shape in the words of transformers' Florence-2 backbone."""
    return Florence2VisionConfig(
        depths=list(config.depths),
        embed_dim=list(config.widths),
        num_heads=list(config.num_heads),
        num_groups=list(config.num_heads),
        window_size=config.window_size,
        patch_size=[7, 3, 3, 3],
        patch_stride=[4, 2, 2, 2],
        patch_padding=[3, 1, 1, 1],
        patch_prenorm=[False, True, True, True],
        drop_path_rate=0.0,
        attn_implementation="sdpa",
    )
