"""Connectors from vision width to the language model's width (LLaVA 1.5's `mlp2x_gelu`)."""

from __future__ import annotations

from torch import nn


def build_projector(kind: str, in_width: int, out_width: int) -> nn.Module:
    """`identity`, `linear` or `mlp2x_gelu` (linear, GELU, linear)."""
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(in_width, out_width)
    return nn.Sequential(nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width))
