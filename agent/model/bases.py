"""Language models that others publish and ours stand on: their shapes, weights and tokenizers.

A model that stands on a base holds only what it adds, in one file: low-rank changes
(`<layer>.lora_a`, `<layer>.lora_b`), or whole weights in place of the base's; rows for new tokens
(`new_tokens.weight`); and its connector (`connector.`). Knows no regions and no pictures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig

from agent.errors import CheckpointMismatch
from agent.model import smollm2
from agent.model.checkpoint_files import header, tensors
from agent.model.checkpoint_names import our_name
from agent.model.family import flat_text
from agent.model.low_rank import merge


@dataclass(frozen=True)
class Base:
    """A language model by others."""

    text: Callable[[], PretrainedConfig]
    """Shape of its decoder."""
    weights: Callable[[torch.dtype], dict[str, Tensor]]
    """Under transformers' names of the decoder within its model: `model.` and `lm_head.`."""
    tokenizer: Callable[[tuple[str, ...]], Tokenizer]
    """Its own, with those of the given control tokens that it lacks appended."""


_BASES = {
    smollm2.NAME: Base(smollm2.smollm2_config, smollm2.smollm2_weights, smollm2.smollm2_tokenizer),
}


_EMBEDDINGS, _NEW_TOKENS = "model.embed_tokens.weight", "new_tokens.weight"
_LOW_RANK = (".lora_a", ".lora_b")


def find_base(name: str) -> Base:
    """The base of a name.

    Raises:
        CheckpointMismatch: nobody has that name.
    """
    if name not in _BASES:
        known = ", ".join(sorted(_BASES))
        raise CheckpointMismatch(f"the base {name!r} is unknown; known: {known}")
    return _BASES[name]


def base_text(name: str) -> dict[str, Any]:
    """The flat keys of a base's decoder, for what a configuration leaves out; none without one.

    Raises:
        CheckpointMismatch: nobody has that name.
    """
    return flat_text(find_base(name).text()) if name else {}


def adapted_weights(name: str, adapter: Path | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """A base's weights under our parameter names, with what a model adds to them.

    Args:
        name: of the base.
        adapter: the model's file; None: the base as it is.
        dtype: of the language model's weights; the connector's stay float32.

    Raises:
        CheckpointMismatch: the file cannot be read, or changes a layer that the base lacks.
    """
    weights = find_base(name).weights(dtype)
    added = {} if adapter is None else dict(tensors(adapter, header(adapter), device="cpu"))
    low_rank = {key: added.pop(key) for key in list(added) if key.endswith(_LOW_RANK)}
    try:
        merge(weights, low_rank)
    except (KeyError, RuntimeError) as error:
        raise CheckpointMismatch(f"{adapter} does not fit {name}: {error}") from error
    rows = added.pop(_NEW_TOKENS, None)
    if rows is not None:
        weights[_EMBEDDINGS] = torch.cat([weights[_EMBEDDINGS], rows.to(dtype)])
    connector = {key: added.pop(key) for key in list(added) if key.startswith("connector.")}
    weights |= {key: value.to(dtype) for key, value in added.items()}
    weights |= {key: value.float() for key, value in connector.items()}
    return {our_name(key): value for key, value in weights.items()}
