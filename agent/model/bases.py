"""Models that others publish and ours stand on: their shapes, weights and tokenizers.

A base is known by name, or is a folder as its family publishes it. A model that stands on one holds
only what it adds: in its adapter low-rank changes (`<layer>.lora_a`, `<layer>.lora_b`), or whole
weights in place of the base's; rows for new tokens (`new_tokens.weight`); and its connector
(`connector.`). Knows no regions and no pictures.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from agent.errors import CheckpointMismatch
from agent.model import smollm2
from agent.model.checkpoint_files import header, stored_tensors, tensors
from agent.model.checkpoint_names import our_name
from agent.model.llava_vision import llava_published
from agent.model.low_rank import merge

Wanted = Callable[[str], bool]
"""Whether a parameter, by our name, is of a part that is loaded."""


@dataclass(frozen=True)
class Base:
    """A model by others."""

    weights: Callable[[torch.dtype | None, Wanted], dict[str, Tensor]]
    """Under our parameter names, in a type; None is the stored one, or bfloat16."""
    tokenizer: Callable[[], Tokenizer]


def _smollm2_weights(dtype: torch.dtype | None, wanted: Wanted) -> dict[str, Tensor]:
    if not wanted(_EMBEDDINGS):
        return {}
    found = smollm2.smollm2_weights(dtype or torch.bfloat16)
    return {our_name(key): value for key, value in found.items()}


_BASES = {
    smollm2.NAME: Base(_smollm2_weights, lambda: smollm2.smollm2_tokenizer()),
}
_SHAPES = {smollm2.NAME: smollm2.smollm2_shape}
"""Of the decoders of named bases."""
_EMBEDDINGS, _NEW_TOKENS = "language_model.model.embed_tokens.weight", "new_tokens.weight"
_LOW_RANK, _CONNECTOR = (".lora_a", ".lora_b"), "connector."
# LLaVA-OneVision's names, as they were published and as transformers has them today.
_LLAVA = (
    (re.compile(r"^(?:model\.language_model|language_model\.model)\."), "language_model.model."),
    (re.compile(r"^(?:language_model\.)?lm_head\."), "language_model.lm_head."),
    (
        re.compile(r"^(?:model\.)?vision_tower\.(?:vision_model\.)?"),
        "primary_encoder.model.vision_tower.",
    ),
    (
        re.compile(r"^(?:model\.)?(multi_modal_projector\.|image_newline)"),
        r"primary_encoder.model.\1",
    ),
)


def find_base(name: str, directory: Path) -> Base:
    """The base of a name, or of a folder within `directory` or elsewhere.

    Raises:
        CheckpointMismatch: it is neither.
    """
    if name in _BASES:
        return _BASES[name]
    folder = directory / name  # joined to a folder, an absolute path stays what it is
    if not folder.is_dir():
        known = ", ".join(sorted(_BASES))
        raise CheckpointMismatch(f"the base {name!r} is no folder, and unknown; known: {known}")
    return Base(
        lambda dtype, wanted: _llava_weights(folder, dtype, wanted),
        lambda: _folder_tokenizer(folder),
    )


def base_text(name: str) -> dict[str, Any]:
    """The flat keys of a named base's decoder, for what a configuration leaves out."""
    return _SHAPES[name]().write() if name in _SHAPES else {}


def based_weights(
    base: Base, adapter: Path | None, dtype: torch.dtype | None, wanted: Wanted
) -> dict[str, Tensor]:
    """A base's weights under our parameter names, with what a model adds to them.

    Args:
        base: what it stands on.
        adapter: the model's file; None: the base as it is.
        dtype: of the weights; the connector's stay float32.
        wanted: which of them.

    Raises:
        CheckpointMismatch: a file cannot be read, or changes a layer that the base lacks.
    """
    weights = base.weights(dtype, wanted)
    if adapter is None or not wanted(our_name(_CONNECTOR)):
        return weights
    connector = [key for key in header(adapter) if key.startswith(_CONNECTOR)]
    for key, value in tensors(adapter, connector, device="cpu"):
        weights[our_name(key)] = value.float()
    if not wanted(_EMBEDDINGS):
        return weights
    added = dict(tensors(adapter, header(adapter).keys() - set(connector), device="cpu"))
    rows = added.pop(_NEW_TOKENS, None)
    low_rank = {key: added.pop(key) for key in list(added) if key.endswith(_LOW_RANK)}
    try:
        merge(weights, {our_name(key): value for key, value in low_rank.items()})
    except (KeyError, RuntimeError) as error:
        raise CheckpointMismatch(f"{adapter} does not fit its base: {error}") from error
    held = weights[_EMBEDDINGS]
    weights |= {our_name(key): value.to(held.dtype) for key, value in added.items()}
    if rows is not None:
        weights[_EMBEDDINGS] = torch.cat([weights[_EMBEDDINGS], rows.to(held.dtype)])
    return weights


def _llava_weights(folder: Path, dtype: torch.dtype | None, wanted: Wanted) -> dict[str, Tensor]:
    stored, weights = stored_tensors(folder), {}
    for path in {tensor.file for tensor in stored.values()}:
        names = {key: _llava_name(key) for key in header(path)}
        keys = [key for key, name in names.items() if wanted(name)]
        for key, tensor in tensors(path, keys, device="cpu"):
            weights[names[key]] = tensor.to(dtype or tensor.dtype)
    if llava_published(folder).text_config.tie_word_embeddings:
        weights.pop("language_model.lm_head.weight", None)
    return weights


def _llava_name(key: str) -> str:
    for pattern, replacement in _LLAVA:
        if pattern.match(key):
            return pattern.sub(replacement, key)
    raise CheckpointMismatch(f"the key {key!r} is not part of a LLaVA-OneVision")


def _folder_tokenizer(folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise CheckpointMismatch(f"{path} does not exist; copy the base's tokenizer files")
    return Tokenizer.from_file(str(path))
