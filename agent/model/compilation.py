"""Compiled parts: pointwise work fused into matrix products, and kernels started as one graph.

Of the vision towers the feed-forward parts, which know tokens and no picture sizes, so that one
compilation serves all sizes. Window attention pads by what a picture's sides leave over: tracing a
whole DaViT block took 45 s, and again for the next size (docs/decisions/vision.md). Of the
language model all of a layer but its attention, for a few fixed numbers of tokens: a decoding pass
is short, so starting its kernels one by one takes longer than they do. Knows no device.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.models.florence2.modeling_florence2 import Florence2VisionMLP

from agent.model.language_model import LanguageModel
from agent.model.primary_encoder import PrimaryVisionEncoder
from agent.model.vlm_fo1 import VLMFO1

PASS_SIZES = (8, 32, 128, 512)
"""Tokens of a compiled pass; a shorter one is filled up, a longer one is not worth it."""


def compile_blocks(model: VLMFO1, *, backend: str = "inductor") -> list[nn.Module]:
    """Have the feed-forward parts of whatever towers `model` holds compiled when they first run.

    Of primary encoders Qwen's ViT alone is worth it.

    Returns:
        What will be compiled.
    """
    chosen: list[nn.Module] = []
    if model.auxiliary_encoder is not None:
        modules = model.auxiliary_encoder.tower.blocks.modules()
        chosen += [module for module in modules if isinstance(module, Florence2VisionMLP)]
    if isinstance(model.primary_encoder, PrimaryVisionEncoder):
        chosen += [block.mlp for block in model.primary_encoder.tower.blocks]
    for module in chosen:
        module.compile(backend=backend, dynamic=True)
    return chosen


def compile_layers(language: LanguageModel, *, backend: str = "inductor") -> None:
    """Have the decoder layers compiled when they first run with each of `PASS_SIZES`.

    Attention stays as it is (`agent.model.ragged_attention` leaves the graph). On a GPU each part
    between two attentions becomes a CUDA graph.
    """
    options: dict[str, Any] | None = None
    if backend == "inductor":
        options = {"triton.cudagraphs": True}
    # One function for all layers, which differ in their weights alone and share its graphs.
    compiled = torch.compile(_run, backend=backend, dynamic=False, options=options)
    for layer in language.model.layers:
        layer.forward = _by_size(compiled, layer.forward)


def _run(forward: Callable[..., Tensor], hidden_states: Tensor, **kwargs: Any) -> Tensor:
    return forward(hidden_states, **kwargs)


def _by_size(
    compiled: Callable[..., Tensor], forward: Callable[..., Tensor]
) -> Callable[..., Tensor]:
    def run(hidden_states: Tensor, **kwargs: Any) -> Tensor:
        if hidden_states.shape[1] in PASS_SIZES:
            return compiled(forward, hidden_states, **kwargs)
        return forward(hidden_states, **kwargs)

    return run


def pass_size(num_tokens: int) -> int | None:
    """The least of `PASS_SIZES` that holds a pass; None: it is larger than all."""
    return next((size for size in PASS_SIZES if size >= num_tokens), None)
