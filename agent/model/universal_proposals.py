"""Universal Proposal Network (UPN): the detector VLM-FO1 was published with.

A two-stage deformable DETR with learned queries and, where others have classes, one of two learned
prompts: whole objects, or also their parts. From ChatRex (arXiv 2411.18363), after T-Rex2 and DINO
(arXiv 2203.03605). Pixels in, scored boxes out; knows neither frames nor thresholds.
"""

from __future__ import annotations

import itertools
import math
import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DeformableDetrConfig, SwinConfig
from transformers.models.deformable_detr.modeling_deformable_detr import (
    DeformableDetrDecoderLayer,
    DeformableDetrEncoderLayer,
)
from transformers.models.swin.modeling_swin import SwinBackbone

WIDTH = 256
_LEVELS = 5
_GRANULARITIES = ("fine_grained", "coarse_grained")


def _swin_large() -> dict[str, Any]:
    return {
        "embed_dim": 192,
        "depths": [2, 2, 18, 2],
        "num_heads": [6, 12, 24, 48],
        "window_size": 12,
    }


@dataclass(frozen=True)
class UniversalProposalConfig:
    """Shape of the network; the defaults are the published `upn_large`."""

    swin: dict[str, Any] = field(default_factory=_swin_large)
    num_layers: int = 6
    """Of encoder and decoder each."""
    feedforward: int = 2048
    num_heads: int = 8
    num_queries: int = 900
    granularity: str = "fine_grained"
    """Which prompt: `fine_grained` also proposes parts, `coarse_grained` whole objects."""
    short_side: int = 800
    long_side: int = 1333
    """Pixels; the image is scaled to one of them, whichever makes it smaller."""

    def image_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which the network looks at an image of this size."""
        short, long = min(width, height), max(width, height)
        side = self.short_side
        if long / short * side > self.long_side:
            side = round(self.long_side * short / long)
        other = int(side * long / short)
        return (side, other) if width < height else (other, side)

    def layers(self) -> DeformableDetrConfig:
        """What transformers' layers read."""
        config = DeformableDetrConfig(
            backbone_config=SwinConfig(**self.swin),
            d_model=WIDTH,
            num_feature_levels=_LEVELS,
            encoder_ffn_dim=self.feedforward,
            decoder_ffn_dim=self.feedforward,
            encoder_attention_heads=self.num_heads,
            decoder_attention_heads=self.num_heads,
            dropout=0.0,
        )
        config._attn_implementation = "sdpa"
        return config


class UniversalProposalNetwork(nn.Module):
    """Class-agnostic boxes with objectness, for images of any size."""

    def __init__(self, config: UniversalProposalConfig) -> None:
        super().__init__()
        self.config = config
        swin = SwinConfig(**config.swin, out_indices=[1, 2, 3, 4], drop_path_rate=0.0)
        self.backbone = SwinBackbone(swin)
        widths = self.backbone.channels
        self.input_projections = nn.ModuleList(
            [_projection(width, kernel_size=1) for width in widths]
            + [_projection(widths[-1], kernel_size=3, stride=2, padding=1)]
        )
        self.level_embedding = nn.Parameter(torch.zeros(_LEVELS, WIDTH))
        layers = config.layers()
        with warnings.catch_warnings():
            # Advice about a CUDA kernel that is not used here.
            warnings.filterwarnings("ignore", "You'd better set embed_dim", UserWarning)
            self.encoder = nn.ModuleList(
                DeformableDetrEncoderLayer(layers) for _ in range(config.num_layers)
            )
            self.decoder = nn.ModuleList(
                DeformableDetrDecoderLayer(layers) for _ in range(config.num_layers)
            )
        self.decoder_norm = nn.LayerNorm(WIDTH)
        self.memory_projection = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.LayerNorm(WIDTH))
        self.memory_box_head = _mlp(WIDTH, WIDTH, WIDTH, 4)
        self.box_head = _mlp(WIDTH, WIDTH, WIDTH, 4)
        self.query_position = _mlp(2 * WIDTH, WIDTH, WIDTH)
        self.queries = nn.Embedding(config.num_queries, WIDTH)
        self.prompts = nn.ParameterDict(
            {name: nn.Parameter(torch.zeros(WIDTH)) for name in _GRANULARITIES}
        )

    def size_of(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) at which it sees a picture, in pixels: in its own proportions."""
        return self.config.image_size(width, height)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and objectness of a batch of equally large images.

        Args:
            pixels: (batch, 3, height, width), ImageNet-normalised.

        Returns:
            (batch, num_queries, 4) cx, cy, w, h in 0..1 and (batch, num_queries) in 0..1.
        """
        prompt = self.prompts[self.config.granularity]
        maps = list(self.backbone(pixels).feature_maps)
        maps = [
            project(m) for project, m in zip(self.input_projections, [*maps, maps[-1]], strict=True)
        ]
        shapes = [(m.shape[2], m.shape[3]) for m in maps]
        geometry = {
            "spatial_shapes": torch.tensor(shapes, device=pixels.device),
            "spatial_shapes_list": shapes,
            "level_start_index": None,
        }
        memory = self._encode(maps, geometry)
        references = self._choose(memory, shapes, prompt)
        hidden, references = self._decode(memory, references, geometry)
        normed = self.decoder_norm(hidden)
        boxes = (self.box_head(normed) + _logit(references)).sigmoid()
        return boxes, (normed @ prompt).sigmoid()

    def _encode(self, maps: list[Tensor], geometry: dict[str, Any]) -> Tensor:
        """(batch, cells of all levels, width) after deformable self-attention."""
        device = maps[0].device
        hidden = torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)
        shapes = geometry["spatial_shapes_list"]
        positions = torch.cat(
            [
                _cell_positions(*shape, device=device) + level
                for shape, level in zip(shapes, self.level_embedding, strict=True)
            ]
        )
        centres = torch.cat([_cell_centres(*shape, device=device) for shape in shapes])
        references = centres[None, :, None].expand(len(hidden), -1, _LEVELS, -1)
        for layer in self.encoder:
            hidden = layer(
                hidden,
                None,
                spatial_position_embeddings=positions[None],
                reference_points=references,
                **geometry,
            )
        return hidden

    def _choose(self, memory: Tensor, shapes: list[tuple[int, int]], prompt: Tensor) -> Tensor:
        """(batch, num_queries, 4) boxes in 0..1 of the cells most like the prompt."""
        anchors = torch.cat(
            [
                torch.cat([centres, torch.full_like(centres, 0.05 * 2.0**level)], dim=-1)
                for level, shape in enumerate(shapes)
                for centres in [_cell_centres(*shape, device=memory.device)]
            ]
        )
        # Anchors at the very border are out of bounds for the published code, and so never move.
        inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1, keepdim=True)
        logits = torch.where(inside, torch.log(anchors / (1.0 - anchors)), torch.inf)
        projected = self.memory_projection(memory.masked_fill(~inside, 0.0))
        boxes = self.memory_box_head(projected) + logits
        best = torch.topk(projected @ prompt, self.config.num_queries, dim=1).indices
        return boxes.gather(1, best[..., None].expand(-1, -1, 4)).sigmoid()

    def _decode(
        self, memory: Tensor, references: Tensor, geometry: dict[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """Queries after the last layer, and the boxes that layer looked at."""
        hidden = self.queries.weight[None].expand(len(memory), -1, -1)
        looked_at = references
        for layer in self.decoder:
            looked_at = references
            hidden = layer(
                hidden,
                object_queries_position_embeddings=self.query_position(_box_waves(looked_at)),
                reference_points=looked_at[:, :, None].expand(-1, -1, _LEVELS, -1),
                encoder_hidden_states=memory,
                **geometry,
            )
            references = (self.box_head(hidden) + _logit(looked_at)).sigmoid()
        return hidden, looked_at


def _projection(in_width: int, kernel_size: int, stride: int = 1, padding: int = 0) -> nn.Module:
    convolution = nn.Conv2d(in_width, WIDTH, kernel_size, stride, padding)
    return nn.Sequential(convolution, nn.GroupNorm(32, WIDTH))


def _mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for in_width, out_width in itertools.pairwise(widths):
        layers += [nn.Linear(in_width, out_width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _logit(share: Tensor) -> Tensor:
    """Inverse sigmoid, blunt near 0 and 1 as the network was trained with."""
    blunt = 1e-3
    share = share.clamp(0.0, 1.0)
    return torch.log(share.clamp(min=blunt) / (1.0 - share).clamp(min=blunt))


def _cell_centres(rows: int, columns: int, *, device: torch.device) -> Tensor:
    """(rows * columns, 2) x, y in 0..1."""
    y = (torch.arange(rows, device=device) + 0.5) / rows
    x = (torch.arange(columns, device=device) + 0.5) / columns
    grid_y, grid_x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([grid_x, grid_y], -1).flatten(0, 1)


def _waves(angles: Tensor, count: int, temperature: float) -> Tensor:
    """(...) to (..., count): sine and cosine of the angle at falling frequencies, in turn."""
    index = torch.arange(count // 2, device=angles.device)
    turned = angles[..., None] / temperature ** (2.0 * index / count)
    return torch.stack([turned.sin(), turned.cos()], dim=-1).flatten(-2)


def _cell_positions(rows: int, columns: int, *, device: torch.device) -> Tensor:
    """(rows * columns, width): y, then x, as fractions of a turn (DETR's, temperature 20)."""
    epsilon = 1e-6
    half = WIDTH // 2

    def axis(count: int) -> Tensor:
        steps = torch.arange(1, count + 1, device=device, dtype=torch.float32)
        return _waves(steps / (count + epsilon) * 2.0 * math.pi, half, 20.0)

    y = axis(rows)[:, None].expand(-1, columns, -1)
    x = axis(columns)[None].expand(rows, -1, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


def _box_waves(boxes: Tensor) -> Tensor:
    """(..., 4) cx, cy, w, h to (..., 2 * width): y, x, w, h (DAB-DETR's)."""
    x, y, width, height = _waves(boxes * 2.0 * math.pi, WIDTH // 2, 10_000.0).unbind(-2)
    return torch.cat([y, x, width, height], dim=-1)
