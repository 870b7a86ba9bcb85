"""Swin blocks in timm's order: shift the map, then pad it to whole windows.

Swin's authors and transformers pad first. Where the map is a multiple of the window the two agree;
elsewhere a shifted window sees other neighbours, and weights trained one way are wrong the other
way. OmDet-Turbo was trained on timm's backbone at 640 px, where no stage is a multiple of 7.
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.models.swin.modeling_swin import (
    SwinBackbone,
    SwinLayer,
    window_partition,
    window_reverse,
)


class ShiftFirstLayer(SwinLayer):
    """A transformers Swin block that shifts before it pads, and unpads before it shifts back."""

    @classmethod
    def replacing(cls, layer: SwinLayer) -> ShiftFirstLayer:
        """A block made of `layer`'s own parts."""
        attention = layer.attention
        made = cls(
            attention.config,
            attention.num_attention_heads * attention.head_dim,
            layer.input_resolution,
            attention.num_attention_heads,
            shift_size=layer.shift_size,
        )
        for name, part in layer.named_children():
            setattr(made, name, part)
        return made

    def forward(
        self,
        hidden_states: Tensor,
        input_dimensions: tuple[int, int],
        always_partition: bool = False,
        **kwargs: object,
    ) -> tuple[Tensor, Tensor]:
        """(batch, height * width, channels) to the same, and the attention weights."""
        assert always_partition, "a backbone always partitions"
        height, width = input_dimensions
        batch, _, channels = hidden_states.shape
        side = self.window_size
        normed = self.layernorm_before(hidden_states).view(batch, height, width, channels)
        padded, _ = self.maybe_pad(self.cyclic_shift(normed), height, width)
        rows, columns = padded.shape[1:3]
        windows = window_partition(padded, side).view(-1, side * side, channels)
        mask = self.get_attn_mask(rows, columns, dtype=padded.dtype, device=padded.device)
        mixed, weights = self.attention(windows, mask, **kwargs)
        merged = window_reverse(mixed.view(-1, side, side, channels), side, rows, columns)
        shifted_back = self.cyclic_shift(merged[:, :height, :width], reverse=True)
        hidden = hidden_states + self.drop_path(shifted_back.reshape(batch, -1, channels))
        return hidden + self.drop_path(self.mlp(self.layernorm_after(hidden))), weights


def shift_before_padding(backbone: SwinBackbone) -> None:
    """Make every block of `backbone` follow timm's order; parameters and their names stay."""
    for stage in backbone.swin.encoder.layers:
        stage.blocks = nn.ModuleList(ShiftFirstLayer.replacing(layer) for layer in stage.blocks)
