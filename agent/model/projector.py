"""Connectors from what the vision parts say to the language model's embeddings.

Projectors (LLaVA 1.5's `mlp2x_gelu`, and less) take one fused vector a region; the mixture of names
takes class evidence.
"""

from __future__ import annotations

from torch import nn

from agent.model.configuration import NAME_MIXTURE, NO_IMAGE_TOKENS, VLMFO1Config
from agent.model.name_mixture import NameMixture


def build_projector(kind: str, in_width: int, out_width: int) -> nn.Module:
    """`identity`, `linear` or `mlp2x_gelu` (linear, GELU, linear)."""
    if kind == "identity":
        return nn.Identity()
    if kind == "linear":
        return nn.Linear(in_width, out_width)
    return nn.Sequential(nn.Linear(in_width, out_width), nn.GELU(), nn.Linear(out_width, out_width))


def build_connector(config: VLMFO1Config) -> nn.Module:
    """What fills the slots of a region, all of them at once."""
    hidden, kind = config.text.hidden_size, config.region_projector
    if kind == NAME_MIXTURE:
        return NameMixture(hidden)
    num_slots = config.language_family.order.num_slots
    return build_projector(kind, config.region_width, num_slots * hidden)


def build_image_projector(config: VLMFO1Config) -> nn.Module:
    """What turns image tokens into embeddings; nothing to learn where the connector does it."""
    kind = config.image_projector
    if kind in (NAME_MIXTURE, NO_IMAGE_TOKENS):
        return nn.Identity()
    width = config.primary_kind.token_width(config.vision)
    return build_projector(kind, width, config.text.hidden_size)
