"""Initial weights of the nano language model: circuits that would take thousands of steps to form.

Pointing at a region needs three things: to know what stood before a token (`<region3>` before its
slot), to find a token again, and to say what was found. Qwen2.5's biases and rotary positions let
the first two be written down; training then only has to sharpen them. docs/decisions.md has the
runs without.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from agent.model.language_model import LanguageModel

NUM_HEADS = 4
"""Heads of the first three layers that start as circuits; the others start random."""
_EMBEDDING_STD = 0.1
_SMALL = 0.1
_FAST = 6
_SHARPNESS = 6.5
_WRITTEN = 0.15
"""Scale of what a circuit writes: about the length of an embedding, so neither drowns the other."""


def initialise(language_model: LanguageModel) -> None:
    """Random weights for a width of hundreds, then the circuits.

    transformers' flat 0.02 is made for widths of thousands. What a layer writes starts small
    beside the embeddings: a token must still be recognisable after four layers.
    """
    nn.init.normal_(language_model.model.embed_tokens.weight, std=_EMBEDDING_STD)
    for name, linear in language_model.named_modules():
        if isinstance(linear, nn.Linear):
            writes = name.endswith(("o_proj", "down_proj"))
            scale = _SMALL if writes else 1.0
            nn.init.normal_(linear.weight, std=linear.in_features**-0.5 * scale)
    for head in range(NUM_HEADS):
        _install(language_model, head)


@torch.no_grad()
def _install(language_model: LanguageModel, head: int) -> None:
    """Head `head` of layers 0, 1 and 2: look back, find again, say what stood before."""
    back, again, say = (layer.self_attn for layer in language_model.model.layers[:3])
    width = back.head_dim
    rows = slice(head * width, (head + 1) * width)
    hidden = back.q_proj.in_features
    seen = _orthogonal(width, hidden)
    """What of the previous token is carried on."""
    written = _orthogonal(width, hidden)
    """Where in the residual stream it is written."""

    # Layer 0: constant queries and keys whose rotary score, the sum of cos((d - 1) f), is largest
    # one token back; the fast frequencies tell neighbours apart.
    frequency = language_model.model.rotary_emb.inv_freq
    half = width // 2
    for projection in (back.q_proj, back.k_proj):
        projection.weight[rows] = 0.0
        projection.bias[rows] = 0.0
    query, key = back.q_proj.bias[rows], back.k_proj.bias[rows]
    key[:_FAST] = _SHARPNESS
    query[:_FAST] = _SHARPNESS * torch.cos(frequency[:_FAST])
    query[half : half + _FAST] = -_SHARPNESS * torch.sin(frequency[:_FAST])
    back.v_proj.weight[rows] = seen
    back.o_proj.weight[:, rows] = written.T * _WRITTEN

    # Layer 1: the token itself against the previous token of every earlier one (an induction
    # head); only slow frequencies may carry content, or distance would blur it.
    slow = torch.ones(width)
    slow[:half][frequency > 0.02] = 0.0
    slow[half:][frequency > 0.02] = 0.0
    again.q_proj.weight[rows] = 2.0 * slow[:, None] * seen
    again.k_proj.weight[rows] = 2.0 * slow[:, None] * written
    content = _orthogonal(width, hidden)
    again.v_proj.weight[rows] = content
    again.o_proj.weight[:, rows] = content.T * _WRITTEN

    # Layer 2: where it looks is learned; what it says is the token before.
    say.v_proj.weight[rows] = written
    say.o_proj.weight[:, rows] = seen.T * 2.0 * _WRITTEN


def _orthogonal(rows: int, columns: int) -> Tensor:
    return nn.init.orthogonal_(torch.empty(rows, columns))
