"""Simple feature pyramid over the single-scale map of a plain ViT (ViTDet, arXiv 2203.16527).

Four levels at 4x, 2x, 1x and 0.5x of the input map. Knows neither boxes nor encoders; the names
of its children are the published checkpoint's.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

SCALES = (4.0, 2.0, 1.0, 0.5)


class ChannelNorm(nn.Module):
    """LayerNorm over the channels of a (batch, channels, height, width) map, eps 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = 1e-6

    def forward(self, x: Tensor) -> Tensor:
        channels_last = x.permute(0, 2, 3, 1)
        normed = nn.functional.layer_norm(
            channels_last, channels_last.shape[-1:], self.weight, self.bias, self.eps
        )
        return normed.permute(0, 3, 1, 2)


class NormedConv(nn.Conv2d):
    """Bias-free convolution followed by a `ChannelNorm` that hangs below it as `norm`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.norm = ChannelNorm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(super().forward(x))
        return normed


def _resampling(scale: float, width: int) -> tuple[list[nn.Module], int]:
    """Layers that change the map's size by `scale`, and the channels they leave."""
    if scale == 4.0:
        return [
            nn.ConvTranspose2d(width, width // 2, 2, 2),
            ChannelNorm(width // 2),
            nn.GELU(),
            nn.ConvTranspose2d(width // 2, width // 4, 2, 2),
        ], width // 4
    if scale == 2.0:
        return [nn.ConvTranspose2d(width, width // 2, 2, 2)], width // 2
    if scale == 1.0:
        return [], width
    return [nn.MaxPool2d(2, 2)], width


class SimpleFeaturePyramid(nn.Module):
    """(batch, in_width, h, w) to four maps of `out_width` channels."""

    def __init__(self, in_width: int, out_width: int) -> None:
        super().__init__()
        for number, scale in enumerate(SCALES, start=1):
            layers, channels = _resampling(scale, in_width)
            layers += [NormedConv(channels, out_width, 1), NormedConv(out_width, out_width, 3)]
            self.add_module(f"simfp_{number}", nn.Sequential(*layers))

    def forward(self, feature_map: Tensor) -> list[Tensor]:
        return [
            self.get_submodule(f"simfp_{number}")(feature_map)
            for number in range(1, len(SCALES) + 1)
        ]
