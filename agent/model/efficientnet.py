"""EfficientNet-Lite0: ImageNet's 1,000 classes for a picture or for regions of it.

The published mobile network without squeeze-and-excitation (Apache-2.0), batch norm folded into
the convolutions. A picture is looked at twice. Large regions are read off the last map of a small
copy, in which they have about the size the network was trained for. Small ones go through the last
blocks on a crop of a larger copy's map at stride 16, where context would drown them. Pictures in,
maps and probabilities out; knows neither frames nor detectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.frame import RGBArray
from agent.model.roi_pooling import pool_regions
from agent.model.strict_weights import load_network

FINE_SIDE = 512
"""Pixels of the longer side of the copy that small regions are cropped from."""
COARSE_SIDE = 288
"""The same for large regions, whose last map is read (figures in docs/decisions)."""
WIDTH = 1280
"""Channels of the last map, which the classifier reads."""
NUM_CLASSES = 1000
SMALL_SIDE_PX = 120.0
"""Regions whose geometric mean of the sides is less, in pixels of the fine copy, take the late
head."""
CROP_CELLS = 8
"""Cells along each side of a crop of the map at stride 16."""

_MIDDLE_STRIDE, _FINAL_STRIDE = 16, 32
_LATE_BLOCKS = 11
"""The first block after the map at stride 16."""
_BLOCKS = (
    # (kernel, stride, expansion, width, repeats)
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM_WIDTH = 32
_MEAN, _STD = 127.0, 128.0
_ROI_SIZE = 7
_CENTRE = 0.64
"""Of a cell: where the middle of what it sees lies, measured as that of the squared gradient on
photographs (10.3 and 20.4 pixels). Padding as "SAME" moves it from 0.5 towards the far end."""
_SAMPLES = 2
"""Along each side of a crop's cell."""


@dataclass(frozen=True)
class PictureMaps:
    """One picture's maps, waiting for boxes."""

    stride16: Tensor
    """(1, 112, rows, columns) of the fine copy."""
    final: Tensor
    """(1, 1280, rows, columns) of the coarse copy, at stride 32."""
    fine_scale: tuple[float, float] = (1.0, 1.0)
    """Pixels of the fine copy per pixel of the boxes', along x and y."""
    coarse_scale: tuple[float, float] = (1.0, 1.0)


class EfficientNetLite0(nn.Module):
    """EfficientNet-Lite0 (4.6 M parameters), whole or from the map at stride 16 on."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _SameConv(3, _STEM_WIDTH, 3, stride=2)
        blocks: list[nn.Module] = []
        width = _STEM_WIDTH
        for kernel, stride, expansion, out_width, repeats in _BLOCKS:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                blocks.append(_Block(width, out_width, kernel, step, expansion))
                width = out_width
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Conv2d(width, WIDTH, 1)
        self.classifier = nn.Linear(WIDTH, NUM_CLASSES)

    @classmethod
    def from_file(cls, path: Path) -> EfficientNetLite0:
        """The network in evaluation mode, in float32, with the weights of a safetensors file.

        Raises:
            CheckpointMismatch: the file cannot be read or does not fit.
        """
        return load_network(cls, path)

    def forward(self, pixels: Tensor) -> Tensor:
        """(batch, 3, height, width) standardised RGB to (batch, 1000) logits of whole pictures."""
        _, final = self.maps(pixels)
        return self.classify(final.mean(dim=(2, 3)))

    def maps(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The two maps that regions are read from.

        Args:
            pixels: (batch, 3, height, width) standardised RGB; sides are multiples of 32.

        Returns:
            (batch, 112, height / 16, width / 16) and (batch, 1280, height / 32, width / 32).
        """
        middle = self.middle(pixels)
        return middle, self._last(middle)

    def middle(self, pixels: Tensor) -> Tensor:
        """The map at stride 16 alone; see `maps`."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        hidden = nn.functional.relu6(self.stem(pixels), inplace=True)
        for block in self.blocks[:_LATE_BLOCKS]:
            hidden = block(hidden)
        return hidden

    def classify(self, features: Tensor) -> Tensor:
        """(..., 1280) mean of the last map to (..., 1000) logits."""
        return self.classifier(features)

    def late(self, crops: Tensor) -> Tensor:
        """(n, 112, 8, 8) crops of the map at stride 16 to (n, 1280) means of their last maps."""
        return self._last(crops).mean(dim=(2, 3))

    def _last(self, hidden: Tensor) -> Tensor:
        for block in self.blocks[_LATE_BLOCKS:]:
            hidden = block(hidden)
        return nn.functional.relu6(self.head(hidden), inplace=True)

    @torch.inference_mode()
    def look(self, rgb: RGBArray) -> PictureMaps:
        """The maps of one picture, to be described with boxes in its own pixels.

        Args:
            rgb: (height, width, 3) uint8.
        """
        fine, fine_scale = prepare(rgb, long_side=FINE_SIDE)
        coarse, coarse_scale = prepare(rgb, long_side=COARSE_SIDE)
        weight = self.head.weight
        stride16 = self.middle(fine.to(weight.device, weight.dtype))
        _, final = self.maps(coarse.to(weight.device, weight.dtype))
        return PictureMaps(stride16, final, fine_scale, coarse_scale)

    def describe(
        self, maps: PictureMaps, boxes: Tensor, *, small_side_px: float = SMALL_SIDE_PX
    ) -> tuple[Tensor, Tensor]:
        """Class probabilities and features of regions.

        Args:
            maps: of one picture.
            boxes: (num_boxes, 4) xyxy in pixels of the picture that `look` was given.
            small_side_px: regions whose geometric mean of the sides is less, in pixels of the fine
                copy, take the late head; the others the last map's mean.

        Returns:
            (num_boxes, 1000) probabilities, each row summing to 1, and (num_boxes, 1280) pooled
            features, whose `classify` gives them.
        """
        boxes = boxes.to(maps.final.device, torch.float32)
        fine = boxes * boxes.new_tensor(maps.fine_scale * 2)
        sides = (fine[:, 2:] - fine[:, :2]).clamp(min=0.0)
        small = sides.prod(dim=1).sqrt() < small_side_px
        features = maps.final.new_zeros(len(boxes), WIDTH)
        if bool(small.any()):
            features[small] = self.late(crop_map(maps.stride16, fine[small]))
        if not bool(small.all()):
            coarse = boxes[~small] * boxes.new_tensor(maps.coarse_scale * 2)
            shifted = coarse - _cell_centre(_FINAL_STRIDE)
            pooled = pool_regions(
                maps.final, shifted[None], spatial_scale=1.0 / _FINAL_STRIDE, roi_size=_ROI_SIZE
            )
            features[~small] = pooled[0].to(features.dtype)
        return self.classify(features).softmax(dim=-1), features


class _SameConv(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": what is odd of it at the right and bottom."""

    def __init__(
        self, width: int, out_width: int, kernel: int, *, stride: int, groups: int = 1
    ) -> None:
        super().__init__(width, out_width, kernel, stride, groups=groups)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch, out_width, ceil(h / stride), ceil(w / stride))."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        top, bottom = same_padding(hidden.shape[-2], kernel, stride)
        left, right = same_padding(hidden.shape[-1], kernel, stride)
        if (top, left) == (bottom, right):
            return nn.functional.conv2d(
                hidden, self.weight, self.bias, stride, (top, left), groups=self.groups
            )
        return super().forward(nn.functional.pad(hidden, (left, right, top, bottom)))


class _Block(nn.Module):
    """Inverted residual: widen, filter each channel, narrow; added to its input where it fits."""

    def __init__(
        self, width: int, out_width: int, kernel: int, stride: int, expansion: int
    ) -> None:
        super().__init__()
        inner = width * expansion
        self.expand = None if expansion == 1 else nn.Conv2d(width, inner, 1)
        self.depthwise = _SameConv(inner, inner, kernel, stride=stride, groups=inner)
        self.project = nn.Conv2d(inner, out_width, 1)
        self._residual = stride == 1 and width == out_width

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch, out_width, ceil(h / stride), ceil(w / stride))."""
        inner = (
            hidden
            if self.expand is None
            else nn.functional.relu6(self.expand(hidden), inplace=True)
        )
        narrow = self.project(nn.functional.relu6(self.depthwise(inner), inplace=True))
        return hidden + narrow if self._residual else narrow


def prepare(rgb: RGBArray, *, long_side: int) -> tuple[Tensor, tuple[float, float]]:
    """A picture resized so that both sides are multiples of 32, without padding.

    The longer side becomes `long_side`, the other what keeps the proportions, each rounded to the
    nearest multiple of 32.

    Args:
        rgb: (height, width, 3) uint8.
        long_side: pixels of the longer side.

    Returns:
        (1, 3, rows, columns) standardised RGB, and pixels of it per pixel of the given picture
        along x and y.
    """
    height, width = rgb.shape[:2]
    ratio = long_side / max(height, width)
    rows, columns = (
        max(1, round(side * ratio / _FINAL_STRIDE)) * _FINAL_STRIDE for side in (height, width)
    )
    levels = torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)[None]
    if (rows, columns) != (height, width):
        levels = nn.functional.interpolate(levels, (rows, columns), mode="bilinear", antialias=True)
    return (levels.float() - _MEAN) / _STD, (columns / width, rows / height)


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """Zeros before and after an axis so that ceil(length / stride) outputs come out."""
    total = max(0, (math.ceil(length / stride) - 1) * stride + kernel - length)
    return total // 2, total - total // 2


def crop_map(feature_map: Tensor, boxes: Tensor) -> Tensor:
    """RoIAlign of the map at stride 16, two by two samples a cell.

    Args:
        feature_map: (1, channels, height, width).
        boxes: (num_boxes, 4) xyxy in pixels of the network's picture.

    Returns:
        (num_boxes, channels, 8, 8).
    """
    height, width = feature_map.shape[-2:]
    cells = (boxes.float() - _cell_centre(_MIDDLE_STRIDE)) / _MIDDLE_STRIDE
    weights_x = _sampling_weights(cells[:, 0], cells[:, 2], width).to(feature_map.dtype)
    weights_y = _sampling_weights(cells[:, 1], cells[:, 3], height).to(feature_map.dtype)
    columns = torch.einsum("chw,nxw->nchx", feature_map[0], weights_x)
    return torch.einsum("nchx,nyh->ncyx", columns, weights_y)


def _sampling_weights(low: Tensor, high: Tensor, length: int) -> Tensor:
    """(num_boxes, 8, length): what each position of an axis is worth to each cell of a crop."""
    count = CROP_CELLS * _SAMPLES
    share = (torch.arange(count, device=low.device) + 0.5) / count
    position = (low[:, None] + share * (high - low)[:, None]).clamp(0.0, length - 1.0)
    distance = (position[..., None] - torch.arange(length, device=low.device)).abs()
    return (1.0 - distance).clamp(min=0.0).unflatten(1, (CROP_CELLS, _SAMPLES)).mean(dim=2)


def _cell_centre(stride: int) -> float:
    """Pixels from the picture's edge to the middle of what the first cell sees, on either axis."""
    return _CENTRE * stride
