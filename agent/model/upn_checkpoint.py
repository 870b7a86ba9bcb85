"""The published UPN weights (`upn_large.pth`) under our names.

The file alone, or a folder of its own with that file and a `config.json` that says
`{"model_type": "upn"}`, and more where it differs from the published network. The file is a pickle:
only tensors are read from it. Keys that nothing uses are named in a warning and left, because the
published code leaves them too.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from agent.errors import CheckpointMismatch
from agent.model.proposal_network import read_config
from agent.model.universal_proposals import (
    UniversalProposalConfig,
    UniversalProposalNetwork,
)

logger = logging.getLogger(__name__)

MODEL_TYPE = "upn"
_PUBLISHED_SWIN = "backbone.model.backbone."
# (ours, published); every rule is tried, in this order.
_RULES = tuple(
    (re.compile(ours), published)
    for ours, published in (
        (r"^backbone\.swin\.embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
        (r"^backbone\.swin\.embeddings\.norm\.", "patch_embed.norm."),
        (r"^backbone\.swin\.encoder\.(layers\.\d+\.)", r"\1"),
        (r"\.layernorm_before\.", ".norm1."),
        (r"\.layernorm_after\.", ".norm2."),
        (r"\.attention\.[qkv]_proj\.", ".attn.qkv."),
        (r"\.attention\.o_proj\.", ".attn.proj."),
        (r"\.attention\.relative_position_bias\.", ".attn."),
        (r"^(patch_embed|layers)\.", rf"{_PUBLISHED_SWIN}\1."),
        (r"^input_projections\.", "input_proj."),
        (r"^level_embedding$", "transformer.level_embed"),
        (r"^(encoder|decoder)\.(\d+)\.", r"transformer.\1.layers.\2."),
        (r"^(transformer\.encoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm1."),
        (r"^(transformer\.encoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm2."),
        (r"^(transformer\.decoder\.layers\.\d+)\.self_attn_layer_norm\.", r"\1.norm2."),
        (r"^(transformer\.decoder\.layers\.\d+)\.encoder_attn_layer_norm\.", r"\1.norm1."),
        (r"^(transformer\.decoder\.layers\.\d+)\.final_layer_norm\.", r"\1.norm3."),
        (r"^(transformer\.decoder\.layers\.\d+)\.encoder_attn\.", r"\1.cross_attn."),
        (r"^(transformer\.decoder\.layers\.\d+\.self_attn)\.[qkv]_proj\.", r"\1.in_proj_"),
        (r"^(transformer\.decoder\.layers\.\d+\.self_attn)\.o_proj\.", r"\1.out_proj."),
        (r"^(transformer\.\w+\.layers\.\d+)\.mlp\.fc(\d)\.", r"\1.linear\2."),
        (r"^decoder_norm\.", "transformer.decoder.norm."),
        (r"^memory_projection\.0\.", "transformer.enc_output."),
        (r"^memory_projection\.1\.", "transformer.enc_output_norm."),
        (r"^queries\.", "transformer.tgt_embed."),
        (r"^prompts\.(\w+)$", r"transformer.\1_prompt.weight"),
    )
)
_HEADS = {
    "memory_box_head": "transformer.enc_out_bbox_embed",
    "box_head": "bbox_embed.0",
    "query_position": "transformer.decoder.ref_point_head",
}
# The box head once more for every layer, tables, and a head for points that nothing calls.
_REPEATED = re.compile(
    r"^(transformer\.decoder\.)?bbox_embed\.\d+\.|relative_position_index$|ref_point_head_point\."
)
_THIRD = {"q": 0, "k": 1, "v": 2}
_SHOWN = 5


def load_universal_proposals(place: Path) -> UniversalProposalNetwork:
    """The network of a folder with `config.json` and one `.pth` file, or of the file alone.

    Raises:
        CheckpointMismatch: a file is missing or unreadable, or keys do not fit.
    """
    raw, file = ({}, place) if place.is_file() else _folder_parts(place)
    try:
        stored: dict[str, Any] = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        # Of any type: what is no pickle is read as one.
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise CheckpointMismatch(
            f"{file} cannot be read ({reason}); it must be upn_large.pth as published, so "
            "download it again"
        ) from error
    network = UniversalProposalNetwork(UniversalProposalConfig(**raw))
    published = stored.get("model", stored)
    for key, tensor in published.items():
        first = re.sub(r"^(?:transformer\.decoder\.)?bbox_embed\.\d+", "bbox_embed.0", key)
        if first != key and first in published and not torch.equal(tensor, published[first]):
            raise CheckpointMismatch(f"{file}: {key} differs from {first}; they must be shared")
    network.load_state_dict(our_state(network, published, file))
    return network.eval()


def _folder_parts(directory: Path) -> tuple[dict[str, Any], Path]:
    """What a folder's `config.json` says beside its kind, and its weights."""
    raw = {key: v for key, v in read_config(directory).items() if key != "model_type"}
    known = {entry.name for entry in fields(UniversalProposalConfig)}
    if raw.keys() - known:
        unknown = sorted(raw.keys() - known)[0]
        raise CheckpointMismatch(f"{directory}/config.json has the unknown key {unknown!r}")
    files = sorted(directory.glob("*.pth"))
    if len(files) != 1:
        raise CheckpointMismatch(f"{directory} must hold one .pth file, not {len(files)}")
    return raw, files[0]


def our_state(
    network: UniversalProposalNetwork, published: Mapping[str, Tensor], where: Path
) -> dict[str, Tensor]:
    """Tensors under the network's names.

    Raises:
        CheckpointMismatch: names every key that is missing or of another shape.
    """
    state: dict[str, Tensor] = {}
    used, problems = set(), []
    for name, wanted in network.state_dict().items():
        key = published_key(name)
        if key is None:
            state[name] = wanted
            continue
        used.add(key)
        tensor = published.get(key)
        if tensor is None:
            problems.append(f"missing {key}")
            continue
        third = re.search(r"\.([qkv])_proj\.", name)
        if third:
            tensor = tensor.chunk(3)[_THIRD[third[1]]]
        if tensor.numel() != wanted.numel() or tensor.shape[-1:] != wanted.shape[-1:]:
            shape = tuple(published[key].shape)
            problems.append(f"{key} is {shape}, for {name} of {tuple(wanted.shape)}")
            continue
        state[name] = tensor.reshape(wanted.shape)
    left = [key for key in published if key not in used and not _REPEATED.search(key)]
    if left:
        logger.warning("%s has keys that are not used: %s", where, ", ".join(left))
    if problems:
        more = ", ..." if len(problems) > _SHOWN else ""
        raise CheckpointMismatch(
            f"{where} does not fit: {len(problems)} keys: {', '.join(problems[:_SHOWN])}{more}"
        )
    return state


def published_key(name: str) -> str | None:
    """The published key of our parameter; None for one that never acts."""
    if name.startswith("backbone.swin.layernorm."):
        return None  # behind the last stage; a backbone discards it
    norm = re.fullmatch(r"backbone\.hidden_states_norms\.stage(\d)\.(\w+)", name)
    if norm:
        return f"{_PUBLISHED_SWIN}norm{int(norm[1]) - 1}.{norm[2]}"
    head = re.fullmatch(r"(\w+)\.(\d)\.(\w+)", name)
    if head and head[1] in _HEADS:
        return f"{_HEADS[head[1]]}.layers.{int(head[2]) // 2}.{head[3]}"
    for pattern, replacement in _RULES:
        name = pattern.sub(replacement, name)
    return name
