"""A picture on the model's device, resized there to the bit as Pillow does it.

Pillow resizes in two passes, one along each axis, with weights rounded to 22 bits and a result
rounded to whole grey levels after each pass. All of it is arithmetic on integers below 2^53, so
products in float64 give Pillow's very levels on any device, in any order of summation. Knows no
model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from agent.frame import RGBArray

_WEIGHT_BITS = 22

Kernel = Callable[[NDArray[np.float64]], NDArray[np.float64]]


@dataclass(frozen=True)
class DevicePicture:
    """RGB levels where the model computes; resizes like a `PIL.Image`."""

    pixels: Tensor
    """(3, height, width) uint8."""

    @classmethod
    def of(cls, rgb: RGBArray, device: str) -> DevicePicture:
        """The picture, sent to the device as bytes; to a GPU without waiting for the copy."""
        levels = torch.from_numpy(np.array(rgb))
        if torch.device(device).type == "cuda":
            levels = levels.pin_memory()
        return cls(levels.to(device, non_blocking=True).permute(2, 0, 1))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return int(self.pixels.shape[2]), int(self.pixels.shape[1])

    def resize(
        self, size: tuple[int, int], resample: Image.Resampling = Image.Resampling.BICUBIC
    ) -> DevicePicture:
        """The picture at `size`, (width, height), with Pillow's very levels."""
        (width, height), (old_width, old_height) = size, self.size
        axes = [axis for axis in (1, 0) if size[1 - axis] != self.size[1 - axis]]
        lost_rows, lost_columns = old_height - height, old_width - width
        if lost_rows > max(0, 2 * lost_columns) and _begins_with_the_greater_loss():
            axes.reverse()
        levels = self.pixels
        for axis in axes:
            if axis == 1:
                weights = self._weights(old_width, width, resample)
                levels = _levels(levels.double() @ weights.T)
            else:
                levels = _levels(self._weights(old_height, height, resample) @ levels.double())
        return DevicePicture(levels)

    def _weights(self, source: int, target: int, resample: Image.Resampling) -> Tensor:
        return _weights_on(str(self.pixels.device), source, target, resample)


def _levels(sums: Tensor) -> Tensor:
    """Weighted sums to whole levels, halves upwards."""
    half = 2.0 ** (_WEIGHT_BITS - 1)
    return ((sums + half) / 2.0**_WEIGHT_BITS).floor().clamp(0, 255).to(torch.uint8)


@lru_cache(maxsize=64)
def _weights_on(device: str, source: int, target: int, resample: Image.Resampling) -> Tensor:
    """(target, source) weights of 22 bits as float64; frames of a stream are of one size."""
    return torch.from_numpy(resampling_weights(source, target, resample)).to(device)


@lru_cache(maxsize=1)
def _begins_with_the_greater_loss() -> bool:
    """Whether this Pillow resizes columns first where much more of the height goes than of the
    width (version 13 does); earlier ones always begin with the rows. Rounding shows which."""
    probe = np.array([[[0], [255]], [[255], [7]]], dtype=np.uint8).repeat(3, axis=2)
    shrunk = np.asarray(Image.fromarray(probe).resize((3, 1), Image.Resampling.BICUBIC))
    rows, columns = (
        torch.from_numpy(resampling_weights(2, side, Image.Resampling.BICUBIC)) for side in (3, 1)
    )
    levels = torch.from_numpy(probe).permute(2, 0, 1).double()
    columns_first = _levels(_levels(columns @ levels).double() @ rows.T)
    return bool(np.array_equal(columns_first.permute(1, 2, 0).numpy(), shrunk))


def resampling_weights(source: int, target: int, resample: Image.Resampling) -> NDArray[np.float64]:
    """(target, source) whole numbers: what each old pixel is worth to each new one, times 2^22.

    The kernel is stretched over the old pixels when a picture shrinks, cut at the border and
    normalised; Pillow's documentation calls this convolution-based resampling.
    """
    kernel, reach = _KERNELS[resample]
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (np.arange(target) + 0.5) * scale
    first = np.maximum((centre - reach * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + reach * stretch + 0.5).astype(np.int64), source)
    offset = np.arange(int((last - first).max()))
    within = offset < (last - first)[:, None]
    distance = (offset + first[:, None] - centre[:, None] + 0.5) * (1.0 / stretch)
    values = np.where(within, kernel(distance), 0.0)
    # Summed one after the other, as Pillow does: the last bit counts.
    values /= np.cumsum(values, axis=1)[:, -1:]
    rounded = np.trunc(values * 2.0**_WEIGHT_BITS + np.where(values < 0, -0.5, 0.5))
    weights = np.zeros((target, source))
    rows = np.broadcast_to(np.arange(target)[:, None], within.shape)
    columns = offset + first[:, None]
    weights[rows[within], columns[within]] = rounded[within]
    return weights


def _triangle(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.maximum(1.0 - np.abs(x), 0.0)


def _cubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Keys' cubic convolution with a = -0.5."""
    a, x = -0.5, np.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return np.where(x < 1.0, near, np.where(x < 2.0, far, 0.0))


_KERNELS: dict[Image.Resampling, tuple[Kernel, float]] = {
    Image.Resampling.BILINEAR: (_triangle, 1.0),
    Image.Resampling.BICUBIC: (_cubic, 2.0),
}
