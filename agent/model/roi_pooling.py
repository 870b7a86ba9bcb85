"""RoIAlign followed by a mean over its bins, as two small weight matrices per level.

The mean of RoIAlign's bins is a separable weighted sum: the same weights along x for every row
and along y for every column. A bilinear upsampling before it is linear and separable too, so it
folds into the weights, and each level is pooled on its own grid; the upsampled, concatenated map
of the published procedure is never built. Differentiable in the maps; no custom operator.

Reference: torchvision.ops.roi_align with sampling_ratio=-1 and aligned=False, then mean(2, 3).
"""

from __future__ import annotations

import torch
from torch import Tensor


def roi_axis_weights(low: Tensor, high: Tensor, length: int, *, roi_size: int) -> Tensor:
    """Weights with which positions of one axis enter the mean of RoIAlign's bins.

    Args:
        low, high: (..., num_boxes) box ends in units of the map's cells.
        length: number of cells of the axis.
        roi_size: bins per side.

    Returns:
        (..., num_boxes, length) float32; each row sums to the share of samples inside the map.
    """
    low, high = low.float(), high.float()
    extent = (high - low).clamp(min=1.0)
    # Adaptive sampling: ceil(bin length) samples a bin, all equally spaced over the box.
    samples = (torch.ceil(extent / roi_size) * roi_size).long()
    most = int(samples.max()) if samples.numel() else 0
    step = torch.arange(most, device=low.device)
    position = low[..., None] + (step + 0.5) * (extent / samples)[..., None]
    counted = step < samples[..., None]
    # RoIAlign ignores samples more than a cell outside and clamps the rest to the border.
    counted = counted & (position >= -1.0) & (position <= length)
    position = position.clamp(0.0, length - 1.0)
    below = position.floor().clamp(max=length - 1).long()
    above = (below + 1).clamp(max=length - 1)
    fraction = position - below
    share = counted / samples[..., None]
    weights = torch.zeros(*low.shape, length, device=low.device)
    weights.scatter_add_(-1, below, share * (1.0 - fraction))
    return weights.scatter_add_(-1, above, share * fraction)


def upsampling_matrix(target: int, source: int, *, device: torch.device) -> Tensor:
    """(target, source) matrix of bilinear interpolation along one axis (align_corners=False)."""
    centre = (torch.arange(target, device=device) + 0.5) * (source / target) - 0.5
    centre = centre.clamp(min=0.0)
    below = centre.floor().clamp(max=source - 1).long()
    above = (below + 1).clamp(max=source - 1)
    fraction = centre - below
    matrix = torch.zeros(target, source, device=device)
    matrix.scatter_add_(1, below[:, None], (1.0 - fraction)[:, None])
    return matrix.scatter_add_(1, above[:, None], fraction[:, None])


def pool_map(feature_map: Tensor, weights_y: Tensor, weights_x: Tensor) -> Tensor:
    """Weighted sum of a map for every box.

    Args:
        feature_map: (batch, channels, height, width).
        weights_y: (batch, num_boxes, height); weights_x: (batch, num_boxes, width).

    Returns:
        (batch, num_boxes, channels), float32.
    """
    batch, channels, height, width = feature_map.shape
    rows = feature_map.float().reshape(batch, channels * height, width)
    columns = torch.bmm(rows, weights_x.transpose(1, 2)).view(batch, channels, height, -1)
    return torch.einsum("bchn,bnh->bnc", columns, weights_y)


def pool_regions(
    feature_map: Tensor, boxes: Tensor, *, spatial_scale: float, roi_size: int
) -> Tensor:
    """Mean of RoIAlign's bins on one map.

    Args:
        feature_map: (batch, channels, height, width).
        boxes: (batch, num_boxes, 4) xyxy in pixels of the encoder's image.
        spatial_scale: map cells per pixel.

    Returns:
        (batch, num_boxes, channels), float32.
    """
    height, width = feature_map.shape[-2:]
    scaled = boxes.float() * spatial_scale
    weights_x = roi_axis_weights(scaled[..., 0], scaled[..., 2], width, roi_size=roi_size)
    weights_y = roi_axis_weights(scaled[..., 1], scaled[..., 3], height, roi_size=roi_size)
    return pool_map(feature_map, weights_y, weights_x)


def pool_upsampled_levels(
    levels: list[Tensor], boxes: Tensor, *, spatial_scale: float, roi_size: int
) -> Tensor:
    """Mean of RoIAlign's bins on all levels upsampled to the first and concatenated.

    Args:
        levels: (batch, channels_i, height_i, width_i), finest first.
        boxes: (batch, num_boxes, 4) xyxy in pixels of the encoder's image.
        spatial_scale: cells of the finest level per pixel.

    Returns:
        (batch, num_boxes, sum of channels), float32.
    """
    height, width = levels[0].shape[-2:]
    scaled = boxes.float() * spatial_scale
    weights_x = roi_axis_weights(scaled[..., 0], scaled[..., 2], width, roi_size=roi_size)
    weights_y = roi_axis_weights(scaled[..., 1], scaled[..., 3], height, roi_size=roi_size)
    pooled = [pool_map(levels[0], weights_y, weights_x)]
    for level in levels[1:]:
        up_y = upsampling_matrix(height, level.shape[-2], device=level.device)
        up_x = upsampling_matrix(width, level.shape[-1], device=level.device)
        pooled.append(pool_map(level, weights_y @ up_y, weights_x @ up_x))
    return torch.cat(pooled, dim=-1)
