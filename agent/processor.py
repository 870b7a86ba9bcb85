"""From a frame to what the towers read: sizes, pixels, patches and boxes in their coordinates.

The only place that knows all image sizes. Follows the published preparation to the pixel; facts
are marked in docs/decisions/model.md. Knows no weights and no prompt.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from agent.detections import FloatArray, clip_boxes
from agent.device_picture import DevicePicture
from agent.frame import RGBArray
from agent.model.configuration import NAME_MIXTURE, RegionConfig, VLMFO1Config

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_SQUASH = 768
_SQUARES = (384, 512, 640, 768, 896, 1024, 1152, 1280, 1408, 1536, 1664, 1792, 1920, 2048)


@dataclass(frozen=True)
class ImageGeometry:
    """The sizes one frame has on its way; (width, height) in pixels unless said otherwise."""

    frame: tuple[int, int]
    working: tuple[int, int]
    """After the size limits; both towers start from it."""
    auxiliary: tuple[int, int]
    grid: tuple[int, int]
    """(rows, columns) of primary patches."""
    patch_size: int
    square: int | None = None
    """Pixels of the square that the primary tower sees the frame squashed to, if it does so."""

    @classmethod
    def of(cls, width: int, height: int, config: VLMFO1Config) -> ImageGeometry:
        """All sizes of a width x height frame; pure arithmetic, nothing is decoded."""
        working = _working_size(width, height, config.image.max_long_side, config.image.min_side)
        auxiliary = _auxiliary_size(*working, config.image.auxiliary_aspect)
        patch = config.vision.patch_size
        square = config.primary_kind.squashed_to(config.vision)
        if square is not None:
            cells = (square // patch, square // patch)
            return cls((width, height), working, auxiliary, cells, patch, square)
        rows, columns = _primary_grid(
            *working,
            cell=patch * config.vision.spatial_merge_size,
            limits=(config.image.min_pixels, config.image.max_pixels),
        )
        grid = (rows // patch, columns // patch)
        return cls((width, height), working, auxiliary, grid, patch)

    @property
    def merged_grid(self) -> tuple[int, int]:
        """(rows, columns) of image tokens."""
        return self.grid[0] // 2, self.grid[1] // 2

    def auxiliary_boxes(self, xyxy: FloatArray) -> FloatArray:
        """Frame pixels to pixels of the auxiliary tower's image."""
        working = np.array(xyxy, dtype=np.float32) * _ratio(self.working, self.frame)
        working = clip_boxes(working, width=self.working[0], height=self.working[1])
        return np.asarray(working * _ratio(self.auxiliary, self.working), dtype=np.float32)

    def primary_boxes(self, xyxy: FloatArray) -> FloatArray:
        """Frame pixels to pixels of the primary tower's image, by way of the auxiliary's."""
        ratio = _ratio(self.primary_size, self.auxiliary)
        return np.asarray(self.auxiliary_boxes(xyxy) * ratio, dtype=np.float32)

    @property
    def primary_size(self) -> tuple[int, int]:
        if self.square is not None:
            return self.square, self.square
        return self.grid[1] * self.patch_size, self.grid[0] * self.patch_size

    def normalised_boxes(self, xyxy: FloatArray, region: RegionConfig) -> FloatArray:
        """Frame pixels to 0..1 of the image that the region positions refer to."""
        if region.primary_only or region.combination == "concat":
            return np.asarray(
                self.primary_boxes(xyxy) / _size4(self.primary_size), dtype=np.float32
            )
        # The published code divides by four times the finest map, not by the image.
        cells = tuple(4 * -(-side // 4) for side in self.auxiliary)
        return np.asarray(self.auxiliary_boxes(xyxy) / _size4(cells), dtype=np.float32)


def normalised_boxes(xyxy: FloatArray, width: int, height: int, config: VLMFO1Config) -> FloatArray:
    """Boxes of a width x height frame, in its pixels, as the model's connector wants them: 0..1."""
    if config.region_projector == NAME_MIXTURE:
        return np.asarray(xyxy / _size4((width, height)), dtype=np.float32)
    geometry = ImageGeometry.of(width, height, config)
    return geometry.normalised_boxes(xyxy, config.region)


Picture = Image.Image | DevicePicture
"""Two ways to the same levels: Pillow, the faster one on a CPU, and the device's own."""


def picture(rgb: RGBArray, device: str) -> Picture:
    """The frame where it is best resized for a model on `device`."""
    return Image.fromarray(rgb) if device == "cpu" else DevicePicture.of(rgb, device)


def working_image(image: Picture, geometry: ImageGeometry) -> Picture:
    """The frame at the size both towers start from (bicubic)."""
    width, height = geometry.frame
    lifted = max(width, 28), max(height, 28)
    if lifted != image.size:
        image = image.resize(lifted)
    if image.size != geometry.working:
        image = image.resize(geometry.working, Image.Resampling.BICUBIC)
    return image


def auxiliary_pixels(image: Picture, geometry: ImageGeometry) -> Tensor:
    """(3, height, width) float32, ImageNet mean and deviation."""
    if image.size != geometry.auxiliary:
        image = image.resize(geometry.auxiliary, Image.Resampling.BICUBIC)
    return normalise(image, IMAGENET_MEAN, IMAGENET_STD)


def primary_patches(image: Picture, geometry: ImageGeometry) -> Tensor:
    """(rows * columns, 3 * 2 * patch * patch) float32, in 2x2 merge order.

    The still image is doubled in time, as Qwen2-VL does.
    """
    if image.size != geometry.primary_size:
        image = image.resize(geometry.primary_size, Image.Resampling.BICUBIC)
    pixels = normalise(image, CLIP_MEAN, CLIP_STD)
    return patchify(pixels[None], geometry.patch_size)[0]


def normalise(image: Picture | RGBArray, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """RGB levels to (3, height, width) float32, scaled and standardised, where the levels are."""
    if isinstance(image, DevicePicture):
        levels = image.pixels
    else:
        levels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    centre, spread = (
        torch.tensor(values, device=levels.device)[:, None, None] for values in (mean, std)
    )
    return (levels.float() / 255.0 - centre) / spread


def patchify(pixels: Tensor, patch: int, *, merge: int = 2, frames: int = 2) -> Tensor:
    """(batch, 3, height, width) to (batch, patches, 3 * frames * patch * patch) in merge order."""
    batch, channels, height, width = pixels.shape
    rows, columns = height // patch, width // patch
    grid = pixels.view(batch, channels, rows // merge, merge, patch, columns // merge, merge, patch)
    ordered = grid.permute(0, 2, 5, 3, 6, 1, 4, 7)
    stacked = ordered.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, frames, -1, -1)
    return stacked.reshape(batch, rows * columns, channels * frames * patch * patch)


def _ratio(to: tuple[int, int], of: tuple[int, int]) -> FloatArray:
    return np.array([to[0] / of[0], to[1] / of[1]] * 2, dtype=np.float32)


def _size4(size: tuple[int, ...]) -> FloatArray:
    return np.array([size[0], size[1]] * 2, dtype=np.float32)


def _working_size(width: int, height: int, limit: int, least: int) -> tuple[int, int]:
    width, height = max(width, least), max(height, least)
    long_side = max(width, height)
    if long_side <= limit:
        return width, height
    scale = limit / long_side
    return max(int(width * scale), least), max(int(height * scale), least)


def _auxiliary_size(width: int, height: int, aspect: str) -> tuple[int, int]:
    if aspect == "dynamic":
        return width, height
    if aspect == "dynamic_square":
        side = min(_SQUARES, key=lambda square: abs(square * square - width * height))
        return side, side
    return _SQUASH, _SQUASH


def _primary_grid(
    width: int, height: int, *, cell: int, limits: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) in pixels: sides rounded to cells (half to even), area within limits."""
    least, most = limits
    rows, columns = round(height / cell) * cell, round(width / cell) * cell
    if rows * columns > most:
        shrink = (height * width / most) ** 0.5
        rows = max(cell, int(height / shrink / cell) * cell)
        columns = max(cell, int(width / shrink / cell) * cell)
    elif rows * columns < least:
        grow = (least / (height * width)) ** 0.5
        rows = -int(-(height * grow) // cell) * cell
        columns = -int(-(width * grow) // cell) * cell
    return max(rows, cell), max(columns, cell)
