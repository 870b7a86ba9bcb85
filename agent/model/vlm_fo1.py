"""VLM-FO1 (arXiv 2509.25916): two views of every region, region tokens, one language model.

The composition and nothing else; which parts there are is the configuration's. A service replica
holds one `part` of it; a notebook holds all. What runs on transformers is imported once it is
built, since that takes a process seconds.
"""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from agent.model.configuration import DAVIT, VLMFO1Config
from agent.model.name_mixture import NameMixture
from agent.model.projector import build_connector, build_image_projector
from agent.model.region_encoder import RegionEncoder

if TYPE_CHECKING:
    from agent.model.auxiliary_encoder import AuxiliaryVisionEncoder
    from agent.model.language_model import LanguageModel


class Part(Enum):
    """What one stage of the service needs of the model."""

    PRIMARY = "primary"
    AUXILIARY = "auxiliary"
    LANGUAGE = "language"
    CONNECTORS = "connectors"
    """Of the language part only what turns features into embeddings."""


ALL_PARTS = frozenset(Part)


class VLMFO1(nn.Module):
    """The model, or the parts of it that were asked for; parts left out are None."""

    def __init__(self, config: VLMFO1Config, parts: frozenset[Part] = ALL_PARTS) -> None:
        super().__init__()
        self.config = config
        self.region_encoder = RegionEncoder(config)
        self.primary_encoder = (
            config.primary_kind.build(config.vision) if Part.PRIMARY in parts else None
        )
        self.auxiliary_encoder: AuxiliaryVisionEncoder | None = None
        if Part.AUXILIARY in parts and config.auxiliary == DAVIT:
            from agent.model.auxiliary_encoder import AuxiliaryVisionEncoder

            self.auxiliary_encoder = AuxiliaryVisionEncoder(config.davit)
        self.language_model: LanguageModel | None = None
        if parts & {Part.LANGUAGE, Part.CONNECTORS}:
            self.image_projector = build_image_projector(config)
            self.region_projector = build_connector(config)
        if Part.LANGUAGE in parts:
            from agent.model.language_model import LanguageModel

            self.language_model = LanguageModel(
                config.language_family.decoder,
                config.text,
                tie_word_embeddings=config.tie_word_embeddings,
            )

    def region_tokens(self, primary: Tensor, auxiliary: Tensor, normalised_boxes: Tensor) -> Tensor:
        """What stands in the slots of each region.

        Args:
            primary: (..., num_boxes, primary_region_width).
            auxiliary: (..., num_boxes, auxiliary_region_width).
            normalised_boxes: (..., num_boxes, 4) xyxy, 0..1.

        Returns:
            (..., num_boxes, hidden); with several slots a region (num_boxes, slots, hidden).
        """
        connector = self.region_projector
        dtype = next(connector.parameters(), torch.empty(0)).dtype
        if isinstance(connector, NameMixture):
            # It reads what either says as it is: class by class there is nothing to fuse.
            mixed: Tensor = connector(auxiliary.to(dtype), primary.to(dtype), normalised_boxes)
            return mixed
        fused = self.region_encoder.fuse(primary, auxiliary, normalised_boxes)
        tokens: Tensor = connector(fused.to(dtype))
        num_slots = self.config.language_family.order.num_slots
        return tokens if num_slots == 1 else tokens.unflatten(-1, (num_slots, -1))

    def image_tokens(self, tokens: Tensor) -> Tensor:
        """(num_image_tokens, token width) to (num_image_tokens, hidden)."""
        if isinstance(self.region_projector, NameMixture):
            # Cells of the picture are mixed of the same names as its regions.
            return self.region_projector.cells(tokens.float())
        projected: Tensor = self.image_projector(tokens)
        return projected
