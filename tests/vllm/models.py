"""Small models with random weights whose heads are as wide as vLLM's CPU kernels want them."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from agent.model.checkpoint import save_model
from agent.model.configuration import VLMFO1Config
from agent.model.vlm_fo1 import VLMFO1
from tests.unit.tiny_families import family_config
from tests.unit.tiny_model import tiny_tokenizer

_HEAD_WIDTH, _NUM_HEADS = 32, 4


def wide_config(family: str) -> VLMFO1Config:
    """The tiny configuration of a family, four times as wide."""
    config = family_config(family, tiny_tokenizer().vocab_size)
    vision = copy.deepcopy(config.vision)
    vision.out_hidden_size = _HEAD_WIDTH * _NUM_HEADS
    text = replace(
        config.text,
        hidden_size=_HEAD_WIDTH * _NUM_HEADS,
        mrope_section=config.text.mrope_section and (4, 6, 6),
    )
    return replace(config, text=text, vision=vision)


def write_model(family: str, directory: Path, *, seed: int = 3) -> VLMFO1Config:
    """A folder with a model whose next token depends on what stands before."""
    torch.manual_seed(seed)
    config = wide_config(family)
    model = VLMFO1(config)
    assert model.language_model is not None
    decoder = model.language_model.model
    for weight in decoder.parameters():
        if weight.ndim == 2:
            torch.nn.init.normal_(weight, std=0.2)
    # Wider than this, and a model with tied embeddings repeats its last token.
    torch.nn.init.normal_(decoder.embed_tokens.weight, std=0.1)
    save_model(model, directory)
    tiny_tokenizer().save(directory)
    return config
