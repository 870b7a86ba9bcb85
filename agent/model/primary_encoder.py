"""Primary vision encoder: the VLM's own Qwen2.5-VL ViT, with its full-attention blocks tapped.

Patches in; image tokens for the language model and raster feature maps for region pooling out.
Knows neither boxes nor the language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import (
    Qwen2_5_VisionTransformerPretrainedModel,
    Qwen2_5_VLVisionAttention,
    Qwen2_5_VLVisionRotaryEmbedding,
    apply_rotary_pos_emb_vision,
)
from transformers.vision_utils import get_vision_position_ids, get_vision_window_index

from agent.model.attention import attend
from agent.model.primary_maps import PrimaryMaps
from agent.progress import layer_done


class PrimaryVisionEncoder(nn.Module):
    """Qwen2.5-VL's vision tower with multi-level taps.

    The tower's weights, our loop over its blocks: equally long windows and images attend as one
    batch, where transformers' CPU path attends to each of them in turn.
    """

    def __init__(self, config: Qwen2_5_VLVisionConfig) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.tower = Qwen2_5_VisionTransformerPretrainedModel(config)

    def forward(self, patches: Tensor, grid_thw: Tensor) -> list[PrimaryMaps]:
        """Encode a packed batch of images.

        Args:
            patches: (total patches, channels * temporal * patch * patch), merge order.
            grid_thw: (num_images, 3) patches per axis: (1, rows, columns).
        """
        config, tower = self.config, self.tower
        window_index, window_ends = get_vision_window_index(
            grid_thw,
            spatial_merge_size=config.spatial_merge_size,
            window_size=config.window_size,
            patch_size=config.patch_size,
        )
        window_index = window_index.to(patches.device)
        image_lengths = (grid_thw[:, 1] * grid_thw[:, 2]).tolist()
        window_lengths = [length for length in torch.diff(window_ends).tolist() if length]

        # A convolution whose kernel is its stride is a matrix product, and faster as one.
        weight = tower.patch_embed.proj.weight
        hidden = nn.functional.linear(patches.to(weight.dtype), weight.flatten(1))
        hidden = self._windowed(hidden, window_index)
        positions = get_vision_position_ids(grid_thw, config.spatial_merge_size)
        cos, sin = tower.rotary_pos_emb(hidden, positions.to(patches.device))
        cos = self._windowed(cos, window_index)[:, None, :]
        sin = self._windowed(sin, window_index)[:, None, :]

        taps = []
        order = torch.argsort(window_index)
        for number, block in enumerate(tower.blocks):
            whole = number in config.fullatt_block_indexes
            lengths = image_lengths if whole else window_lengths
            hidden = hidden + _attend(block.attn, block.norm1(hidden), cos, sin, lengths)
            hidden = hidden + block.mlp(block.norm2(hidden))
            layer_done()
            if whole:
                taps.append(self._unwindow(hidden, order))
        tokens = tower.merger(hidden)[order]
        return self._split(tokens, taps, grid_thw)

    def renew_tables(self, device: str, *, rounded: bool) -> None:
        """Make what is computed, not stored, again where it will live; `rounded`: as the published
        loader leaves it."""
        rotary = BFloat16VisionRotary if rounded else Qwen2_5_VLVisionRotaryEmbedding
        self.tower.rotary_pos_emb = rotary(self.config).to(device)

    def _windowed(self, values: Tensor, window_index: Tensor) -> Tensor:
        """(total, width) from merge order to window order."""
        unit = self.config.spatial_merge_size**2
        return values.view(-1, unit, values.shape[-1])[window_index].view(-1, values.shape[-1])

    def _unwindow(self, hidden: Tensor, order: Tensor) -> Tensor:
        """(total, width) in window order to (merge units, merge * merge, width) in raster order."""
        unit = self.config.spatial_merge_size**2
        return hidden.view(-1, unit, hidden.shape[-1])[order]

    def _split(self, tokens: Tensor, taps: list[Tensor], grid_thw: Tensor) -> list[PrimaryMaps]:
        merge = self.config.spatial_merge_size
        maps, start = [], 0
        for _, rows, columns in grid_thw.tolist():
            stop = start + rows * columns // merge**2
            levels = tuple(_raster(tap[start:stop], rows, columns, merge) for tap in taps)
            maps.append(PrimaryMaps(tokens[start:stop], levels))
            start = stop
        return maps


class BFloat16VisionRotary(Qwen2_5_VLVisionRotaryEmbedding):
    """Rotary tables as the published loader leaves them: every step in bfloat16.

    Its `.to(bfloat16)` also casts the frequencies, and the angles, cosines and sines follow.
    """

    @torch.no_grad()
    def forward(self, x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        frequency = self.inv_freq.bfloat16().float()
        angles = (position_ids[..., None].float() * frequency).bfloat16()
        cos, sin = angles.cos().float(), angles.sin().float()
        return self.recomposition_frequencies(cos), self.recomposition_frequencies(sin)


def _raster(units: Tensor, rows: int, columns: int, merge: int) -> Tensor:
    """(units, merge * merge, width) to a (1, width, rows, columns) map."""
    width = units.shape[-1]
    grid = units.view(rows // merge, columns // merge, merge, merge, width)
    return grid.permute(4, 0, 2, 1, 3).reshape(1, width, rows, columns)


def _attend(
    attention: Qwen2_5_VLVisionAttention,
    hidden: Tensor,
    cos: Tensor,
    sin: Tensor,
    lengths: list[int],
) -> Tensor:
    """Self-attention within consecutive segments; segments of one length share a batch."""
    total, heads = hidden.shape[0], attention.num_heads
    query, key, value = attention.qkv(hidden).view(total, 3, heads, -1).unbind(1)
    query, key = apply_rotary_pos_emb_vision(query, key, cos[:, 0], sin[:, 0])
    if len(set(lengths)) == 1:
        return attention.proj(_batched_attention(query, key, value, lengths[0]))
    ends = torch.tensor(lengths).cumsum(0)
    output = torch.empty_like(hidden)
    for length in sorted(set(lengths)):
        starts = torch.tensor(
            [int(end) - length for end, size in zip(ends, lengths, strict=True) if size == length]
        )
        rows = (starts[:, None] + torch.arange(length)).flatten().to(hidden.device)
        output[rows] = _batched_attention(query[rows], key[rows], value[rows], length).to(
            output.dtype
        )
    return attention.proj(output)


def _batched_attention(query: Tensor, key: Tensor, value: Tensor, length: int) -> Tensor:
    """(segments * length, heads, head width) to (segments * length, hidden)."""

    def segments(x: Tensor) -> Tensor:
        return x.view(-1, length, *x.shape[1:]).transpose(1, 2)

    mixed = attend(segments(query), segments(key), segments(value))
    return mixed.transpose(1, 2).reshape(query.shape[0], -1)
