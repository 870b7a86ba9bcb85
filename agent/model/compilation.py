"""Compiled parts of the vision towers: pointwise work fused into their matrix products.

The feed-forward parts, which know tokens and no picture sizes, so that one compilation serves all
sizes. Window attention pads by what a picture's sides leave over: tracing a whole DaViT block took
45 s, and again for the next size (docs/decisions.md). Knows no device.
"""

from __future__ import annotations

from torch import nn
from transformers.models.florence2.modeling_florence2 import Florence2VisionMLP

from agent.model.vlm_fo1 import VLMFO1


def compile_blocks(model: VLMFO1, *, backend: str = "inductor") -> list[nn.Module]:
    """Have the feed-forward parts of whatever towers `model` holds compiled when they first run.

    Returns:
        What will be compiled.
    """
    chosen: list[nn.Module] = []
    if model.auxiliary_encoder is not None:
        modules = model.auxiliary_encoder.tower.blocks.modules()
        chosen += [module for module in modules if isinstance(module, Florence2VisionMLP)]
    if model.primary_encoder is not None:
        chosen += [block.mlp for block in model.primary_encoder.tower.blocks]
    for module in chosen:
        module.compile(backend=backend, dynamic=True)
    return chosen
