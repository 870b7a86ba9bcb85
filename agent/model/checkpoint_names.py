"""Published parameter names and ours: one table, both directions, no tensors.

What a key means is decided by the key, never by the spelling of a path.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from agent.errors import CheckpointMismatch

# (published, ours); both directions are derived from this table, first match wins. A connector
# that was never published has its name from training.
_PREFIXES = (
    ("model.vision_tower.image_tower.", "primary_encoder.tower."),
    ("model.vision_tower_aux.image_tower.", "auxiliary_encoder.tower."),
    ("model.object_vp_extractor.simple_fpn.", "region_encoder.simple_fpn."),
    ("model.object_vp_extractor.vt_region_norm.", "region_encoder.primary_norm."),
    ("model.object_vp_extractor.aux_region_norm.", "region_encoder.auxiliary_norm."),
    ("model.mm_projector_aux.", "region_projector."),
    ("connector.", "region_projector."),
    ("model.mm_projector.", "image_projector."),
    ("lm_head.", "language_model.lm_head."),
    ("model.", "language_model.model."),
)
# Inside DaViT the published tree is Florence-2's original one; ours is transformers'.
_DAVIT = (
    (re.compile(r"^convs\.(\d+)\.proj\."), r"convs.\1.conv."),
    (re.compile(r"\.(conv[12])\.fn\.dw\."), r".\1."),
    (re.compile(r"\.(?:window|channel)_attn\.norm\."), r".norm1."),
    (re.compile(r"\.((?:window|channel)_attn)\.fn\."), r".\1."),
    (re.compile(r"\.ffn\.norm\."), r".norm2."),
    (re.compile(r"\.ffn\.fn\.net\."), r".ffn."),
)
_DAVIT_BACK = (
    (re.compile(r"^convs\.(\d+)\.conv\."), r"convs.\1.proj."),
    (re.compile(r"\.(conv[12])\.(weight|bias)$"), r".\1.fn.dw.\2"),
    (re.compile(r"\.(spatial)_block\.norm1\."), r".spatial_block.window_attn.norm."),
    (re.compile(r"\.(channel)_block\.norm1\."), r".channel_block.channel_attn.norm."),
    (re.compile(r"\.((?:window|channel)_attn)\.(qkv|proj)\."), r".\1.fn.\2."),
    (re.compile(r"\.norm2\."), r".ffn.norm."),
    (re.compile(r"\.ffn\.(fc[12])\."), r".ffn.fn.net.\1."),
)
_AUXILIARY = "auxiliary_encoder.tower."


def our_name(published: str) -> str:
    """Our parameter name for a published key.

    Raises:
        CheckpointMismatch: the key belongs to no part of the model.
    """
    for theirs, ours in _PREFIXES:
        if published.startswith(theirs):
            rest = published[len(theirs) :]
            return ours + (_substitute(rest, _DAVIT) if ours == _AUXILIARY else rest)
    raise CheckpointMismatch(f"the key {published!r} is not part of a VLM-FO1 checkpoint")


def published_name(name: str) -> str:
    """The published key of our parameter `name`."""
    for theirs, ours in _PREFIXES:
        if name.startswith(ours):
            rest = name[len(ours) :]
            return theirs + (_substitute(rest, _DAVIT_BACK) if ours == _AUXILIARY else rest)
    raise CheckpointMismatch(f"the parameter {name!r} has no published name")


def _substitute(name: str, rules: Iterable[tuple[re.Pattern[str], str]]) -> str:
    for pattern, replacement in rules:
        name = pattern.sub(replacement, name)
    return name
