"""Hybrid Fine-grained Region Encoder (HFRE): one vector per box from both vision encoders.

Split where the service splits it: each encoder pools its own maps (`pool_primary`,
`pool_auxiliary`), and `fuse` joins the pooled vectors wherever the language model lives.
VLM-FO1, section 3.2. Boxes are in pixels of the encoder's own image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.model.configuration import DAVIT_STRIDE, VLMFO1Config
from agent.model.feature_pyramid import SCALES, SimpleFeaturePyramid
from agent.model.position_embedding import box_position_embedding, map_position_embedding
from agent.model.roi_pooling import pool_regions, pool_upsampled_levels


class RegionEncoder(nn.Module):
    """Region pooling, optional norms, fusion and box positions."""

    def __init__(self, config: VLMFO1Config) -> None:
        super().__init__()
        self.config = config
        self._region = config.region
        self.simple_fpn = (
            SimpleFeaturePyramid(config.vision.hidden_size, config.region.pyramid_width)
            if config.region.use_feature_pyramid
            else None
        )
        normed, joined = config.region.layer_norm, not config.region.primary_only
        self.primary_norm = nn.LayerNorm(config.primary_region_width) if normed else None
        self.auxiliary_norm = (
            nn.LayerNorm(config.auxiliary_region_width) if normed and joined else None
        )

    def pool_primary(self, levels: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """(batch, num_boxes, primary_region_width) from the tapped ViT maps.

        Args:
            levels: (batch, hidden, rows, columns) each.
            boxes: (batch, num_boxes, 4) pixels of the ViT's image (patch size times grid).
        """
        patch = self.config.vision.patch_size
        roi_size = self._region.roi_size
        if self.simple_fpn is None:
            joined = torch.cat(levels, dim=1)
            return pool_regions(joined, boxes, spatial_scale=1.0 / patch, roi_size=roi_size)
        pyramid = self.simple_fpn(levels[-1])
        return torch.cat(
            [
                pool_regions(level, boxes, spatial_scale=scale / patch, roi_size=roi_size)
                for level, scale in zip(pyramid, SCALES, strict=True)
            ],
            dim=-1,
        )

    def pool_auxiliary(self, levels: list[Tensor], boxes: Tensor) -> Tensor:
        """(batch, num_boxes, auxiliary_region_width) from the DaViT maps.

        Args:
            levels: (batch, width_i, h_i, w_i), finest first.
            boxes: (batch, num_boxes, 4) pixels of the DaViT's image.
        """
        if self._adds_map_positions:
            levels = [
                level.float()
                + map_position_embedding(
                    level.shape[1], level.shape[2], level.shape[3], level.device
                )
                for level in levels
            ]
        return pool_upsampled_levels(
            levels, boxes, spatial_scale=1.0 / DAVIT_STRIDE, roi_size=self._region.roi_size
        )

    @property
    def _adds_map_positions(self) -> bool:
        return self._region.apply_position and self._region.position_strategy != "bbox_based"

    @property
    def _adds_box_positions(self) -> bool:
        # Alone, the primary encoder always gets box positions, whatever the strategy says.
        alone = self._region.primary_only or self._region.position_strategy != "feature_map_based"
        return self._region.apply_position and alone

    def fuse(self, primary: Tensor, auxiliary: Tensor, normalised_boxes: Tensor) -> Tensor:
        """Join pooled vectors and add box positions.

        Args:
            primary: (..., num_boxes, primary_region_width).
            auxiliary: (..., num_boxes, auxiliary_region_width).
            normalised_boxes: (..., num_boxes, 4) xyxy relative to the image that the
                combination refers to (see `normalise_boxes`).

        Returns:
            (..., num_boxes, region_width), float32.
        """
        if self._region.primary_only:
            # The published code skips the norms on this path; kept for equal numbers.
            fused = primary.float()
        else:
            if self.primary_norm is not None and self.auxiliary_norm is not None:
                primary = self.primary_norm(primary.float())
                auxiliary = self.auxiliary_norm(auxiliary.float())
            fused = torch.cat([auxiliary.float(), primary.float()], dim=-1)
        if self._adds_box_positions:
            fused = fused + box_position_embedding(_centre(normalised_boxes), fused.shape[-1])
        return fused


def _centre(boxes: Tensor) -> Tensor:
    """xyxy to cx, cy, w, h."""
    x1, y1, x2, y2 = boxes.float().unbind(-1)
    return torch.stack([(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], dim=-1)
