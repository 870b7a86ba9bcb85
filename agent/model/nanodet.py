"""NanoDet-g: a small one-stage detector of COCO's 80 classes, as proposals with class evidence.

A CSP backbone, a pyramid that adds resized levels, and on each of three levels one head for class
scores and for box sides as distributions (RangiLyu/nanodet, Apache-2.0). Batch norm is folded into
the convolutions. Pictures in, scored boxes out; knows neither frames nor the other encoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from agent.detections import non_maximum_suppression
from agent.frame import RGBArray
from agent.model.strict_weights import load_network

COCO_NAMES = (
    "person", "bicycle", "car", "motorcycle", "airplane", "bus", "train", "truck", "boat",
    "traffic light", "fire hydrant", "stop sign", "parking meter", "bench", "bird", "cat", "dog",
    "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "backpack", "umbrella",
    "handbag", "tie", "suitcase", "frisbee", "skis", "snowboard", "sports ball", "kite",
    "baseball bat", "baseball glove", "skateboard", "surfboard", "tennis racket", "bottle",
    "wine glass", "cup", "fork", "knife", "spoon", "bowl", "banana", "apple", "sandwich", "orange",
    "broccoli", "carrot", "hot dog", "pizza", "donut", "cake", "chair", "couch", "potted plant",
    "bed", "dining table", "toilet", "tv", "laptop", "mouse", "remote", "keyboard", "cell phone",
    "microwave", "oven", "toaster", "sink", "refrigerator", "book", "clock", "vase", "scissors",
    "teddy bear", "hair drier", "toothbrush",
)  # fmt: skip
"""The 80 classes in the order of the scores."""

LONG_SIDE = 416
"""Pixels of the longer side of a picture as the network sees it."""
STRIDES = (8, 16, 32)
"""Pixels per cell of each level, finest first."""

_MEAN_BGR = (103.53, 116.28, 123.675)
_STD_BGR = (57.375, 57.12, 58.395)
_WIDTH = 128
_BINS = 11
"""Of the distribution over a side's distance from its cell's centre, in strides: 0 to 10."""
_SLOPE = 0.1
_LEAST_SIDE_PX = 2.0
_CANDIDATES = 1000
"""Best cells that enter suppression, which compares each with each."""


@dataclass(frozen=True)
class PreparedPicture:
    """A picture as the network reads it."""

    pixels: Tensor
    """(1, 3, height, width) BGR, standardised; sides are multiples of 32, padded at the right and
    at the bottom with black."""
    scale: tuple[float, float]
    """Pixels of the network's picture per pixel of the given one, along x and y."""
    size: tuple[int, int]
    """(width, height) of the given picture in pixels."""


@dataclass(frozen=True)
class ClassedProposals:
    """Boxes of one picture, best first."""

    xyxy: Tensor
    """(num_boxes, 4) pixels of the given picture."""
    objectness: Tensor
    """(num_boxes,) in 0..1: the largest class score."""
    evidence: Tensor
    """(num_boxes, 80) class scores in 0..1, in the order of `COCO_NAMES`."""

    def __len__(self) -> int:
        return len(self.xyxy)


@dataclass(frozen=True)
class Cells:
    """All that the network says of one picture: a box and class scores for each cell."""

    xyxy: Tensor
    """(cells, 4) pixels of the given picture, cut to it."""
    scores: Tensor
    """(cells, 80) in 0..1."""

    def propose(
        self, *, score_threshold: float = 0.05, nms_iou: float = 0.8, max_boxes: int = 100
    ) -> ClassedProposals:
        """The best boxes, whatever their class.

        Args:
            score_threshold: least objectness of a box.
            nms_iou: of two boxes that overlap more than this the better stays.
            max_boxes: most boxes returned.
        """
        objectness = self.scores.amax(dim=1)
        sides = self.xyxy[:, 2:] - self.xyxy[:, :2]
        sound = (objectness >= score_threshold) & (sides >= _LEAST_SIDE_PX).all(dim=1)
        order = objectness.masked_fill(~sound, -1.0).argsort(descending=True, stable=True)
        best = order[: min(int(sound.sum()), _CANDIDATES)]
        kept = non_maximum_suppression(
            self.xyxy[best].cpu().numpy(), objectness[best].cpu().numpy(), iou=nms_iou
        )
        rows = best[torch.from_numpy(kept[:max_boxes]).to(best.device)]
        return ClassedProposals(self.xyxy[rows], objectness[rows], self.scores[rows])

    def describe(self, boxes: Tensor, *, least_iou: float = 0.3, sharpness: float = 4.0) -> Tensor:
        """Class evidence for boxes of any origin, from the cells whose boxes overlap them.

        For each class the largest score times weight. A cell's weight falls with its IoU with the
        given box relative to the best cell's, by the power `sharpness`, and is the IoU itself for
        the best cell. So a proposal's own cell has the weight 1 for the proposal's box, and of
        cells with other boxes little is heard.

        Args:
            boxes: (num_boxes, 4) xyxy in pixels of the given picture.
            least_iou: cells that overlap less have no say.
            sharpness: the larger, the less is heard of cells other than the best.

        Returns:
            (num_boxes, 80) in 0..1; zeros for a box that no cell overlaps enough.
        """
        overlap = _iou(boxes.to(self.xyxy), self.xyxy)
        evidence = self.scores.new_zeros(len(boxes), self.scores.shape[1])
        for row, own in enumerate(overlap):
            near = (own >= least_iou).nonzero()[:, 0]
            if len(near):
                best = own.amax()
                weight = best * (own[near, None] / best) ** sharpness
                evidence[row] = (self.scores[near] * weight).amax(dim=0)
        return evidence


class NanoDet(nn.Module):
    """NanoDet-g (3.8 M parameters) with its decoding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _convolution(3, 32, stride=2)
        self.stages = nn.ModuleList(
            [_Stage(32, 1, stride=1), _Stage(64, 2), _Stage(128, 2), _Stage(256, 3)]
        )
        self.laterals = nn.ModuleList(nn.Conv2d(width, _WIDTH, 1) for width in (128, 256, 512))
        self.heads = nn.ModuleList(
            nn.Sequential(
                _convolution(_WIDTH, _WIDTH), nn.Conv2d(_WIDTH, len(COCO_NAMES) + 4 * _BINS, 1)
            )
            for _ in STRIDES
        )

    @classmethod
    def from_file(cls, path: Path) -> NanoDet:
        """The network in evaluation mode, in float32, with the weights of a safetensors file.

        Raises:
            CheckpointMismatch: the file cannot be read or does not fit.
        """
        return load_network(cls, path)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes and class scores of every cell, level by level, rows before columns.

        Args:
            pixels: (batch, 3, height, width) BGR, standardised; sides are multiples of 32.

        Returns:
            (batch, cells, 4) xyxy in pixels of this picture, not cut to it, and
            (batch, cells, 80) class scores in 0..1.
        """
        boxes, scores = [], []
        for level, head, stride in zip(self._levels(pixels), self.heads, STRIDES, strict=True):
            rows, columns = level.shape[-2:]
            flat = head(level).flatten(2).transpose(1, 2)
            logits, regression = flat.split([len(COCO_NAMES), 4 * _BINS], dim=-1)
            boxes.append(decode(regression, rows, columns, stride))
            scores.append(logits.sigmoid())
        return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)

    def _levels(self, pixels: Tensor) -> list[Tensor]:
        """Three maps of 128 channels at strides 8, 16 and 32."""
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        hidden = nn.functional.max_pool2d(self.stem(pixels), 3, stride=2, padding=1)
        maps = []
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        fine, middle, coarse = (
            lateral(level) for lateral, level in zip(self.laterals, maps[1:], strict=True)
        )
        middle = middle + _resized(coarse, middle)
        fine = fine + _resized(middle, fine)
        middle = middle + _resized(fine, middle)
        return [fine, middle, coarse + _resized(middle, coarse)]

    @torch.inference_mode()
    def look(self, rgb: RGBArray, *, long_side: int = LONG_SIDE) -> Cells:
        """What the network says of one picture; propose from it and describe with it.

        Args:
            rgb: (height, width, 3) uint8.
            long_side: pixels of the longer side at which the network looks; a multiple of 32.
        """
        prepared = prepare(rgb, long_side=long_side)
        weight = next(self.parameters())
        boxes, scores = self(prepared.pixels.to(weight.device, weight.dtype))
        corners = boxes[0].float() / boxes.new_tensor(prepared.scale * 2).float()
        limits = corners.new_tensor(prepared.size * 2)
        return Cells(torch.minimum(corners.clamp(min=0.0), limits), scores[0].float())

    def propose(
        self,
        rgb: RGBArray,
        *,
        score_threshold: float = 0.05,
        nms_iou: float = 0.8,
        max_boxes: int = 100,
    ) -> ClassedProposals:
        """The best boxes of a (height, width, 3) uint8 picture; see `Cells.propose`."""
        return self.look(rgb).propose(
            score_threshold=score_threshold, nms_iou=nms_iou, max_boxes=max_boxes
        )

    def describe(self, rgb: RGBArray, boxes: Tensor) -> Tensor:
        """(num_boxes, 80) class evidence for (num_boxes, 4) boxes; see `Cells.describe`."""
        return self.look(rgb).describe(boxes)


class _Stage(nn.Module):
    """Cross-stage partial: what `units` make of the entry, beside the entry itself."""

    def __init__(self, width: int, units: int, *, stride: int = 2) -> None:
        super().__init__()
        self.entry = _convolution(width, width, stride=stride)
        self.units = nn.Sequential(*(_Unit(width) for _ in range(units)))
        self.exit = _convolution(width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, width, h, w) to (batch, 2 * width, h / stride, w / stride)."""
        entered = self.entry(hidden)
        return torch.cat([self.exit(self.units(entered)), entered], dim=1)


class _Unit(nn.Module):
    """Two convolutions of half the width, the second's output beside the first's."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = _convolution(width, width // 2)
        self.second = _convolution(width // 2, width // 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """(batch, width, h, w) to the same."""
        first = self.first(hidden)
        return torch.cat([self.second(first), first], dim=1)


def prepare(rgb: RGBArray, *, long_side: int = LONG_SIDE) -> PreparedPicture:
    """A picture scaled to `long_side` and padded to multiples of 32 at the right and the bottom.

    Args:
        rgb: (height, width, 3) uint8.
        long_side: pixels of the longer side, a multiple of 32.
    """
    height, width = rgb.shape[:2]
    ratio = long_side / max(height, width)
    rows, columns = max(1, round(height * ratio)), max(1, round(width * ratio))
    levels = torch.from_numpy(np.ascontiguousarray(rgb[..., ::-1])).permute(2, 0, 1)[None]
    if (rows, columns) != (height, width):
        levels = nn.functional.interpolate(levels, (rows, columns), mode="bilinear", antialias=True)
    padding = (0, _to_multiple(columns) - columns, 0, _to_multiple(rows) - rows)
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN_BGR, _STD_BGR))
    pixels = (nn.functional.pad(levels, padding).float() - mean) / std
    return PreparedPicture(pixels, (columns / width, rows / height), (width, height))


def decode(regression: Tensor, rows: int, columns: int, stride: int) -> Tensor:
    """Boxes of one level's cells.

    Args:
        regression: (batch, rows * columns, 44) logits of 11 distances for the left, top, right and
            bottom side in turn.
        rows, columns: of the level's map.
        stride: pixels per cell.

    Returns:
        (batch, rows * columns, 4) xyxy in pixels of the network's picture.
    """
    device = regression.device
    shares = regression.float().unflatten(-1, (4, _BINS)).softmax(dim=-1)
    distances = torch.arange(_BINS, device=device, dtype=torch.float32) * stride
    left, top, right, bottom = (shares @ distances).unbind(-1)
    centre_y = (torch.arange(rows, device=device) + 0.5) * stride
    centre_x = (torch.arange(columns, device=device) + 0.5) * stride
    grid_y, grid_x = torch.meshgrid(centre_y, centre_x, indexing="ij")
    x, y = grid_x.flatten(), grid_y.flatten()
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-1)


def _convolution(width: int, out_width: int, *, stride: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width, out_width, 3, stride, padding=1)
    return nn.Sequential(convolution, nn.LeakyReLU(_SLOPE, inplace=True))


def _resized(level: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(level, like.shape[-2:], mode="bilinear", align_corners=False)


def _to_multiple(side: int) -> int:
    """The next multiple of 32 pixels."""
    return math.ceil(side / STRIDES[-1]) * STRIDES[-1]


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """Pairwise intersection over union of (n, 4) and (m, 4) boxes: (n, m) in 0..1."""
    top_left = torch.maximum(a[:, None, :2], b[None, :, :2])
    bottom_right = torch.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = (bottom_right - top_left).clamp(min=0.0).prod(dim=-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clamp(min=0.0).prod(dim=-1) for boxes in (a, b)]
    return shared / (areas[0][:, None] + areas[1][None] - shared).clamp(min=1e-9)
