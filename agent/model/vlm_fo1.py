"""VLM-FO1 (arXiv 2509.25916): two vision encoders, region tokens, one language model.

The composition and nothing else. A service replica holds one `part` of it; a notebook holds all.
"""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor, nn

from agent.model.auxiliary_encoder import AuxiliaryVisionEncoder
from agent.model.configuration import VLMFO1Config
from agent.model.language_model import LanguageModel
from agent.model.primary_encoder import PrimaryVisionEncoder
from agent.model.projector import build_projector
from agent.model.region_encoder import RegionEncoder


class Part(Enum):
    """What one stage of the service needs of the model."""

    PRIMARY = "primary"
    AUXILIARY = "auxiliary"
    LANGUAGE = "language"


ALL_PARTS = frozenset(Part)


class VLMFO1(nn.Module):
    """The model, or the parts of it that were asked for; parts left out are None."""

    def __init__(self, config: VLMFO1Config, parts: frozenset[Part] = ALL_PARTS) -> None:
        super().__init__()
        self.config = config
        self.region_encoder = RegionEncoder(config)
        self.primary_encoder = (
            PrimaryVisionEncoder(config.vision) if Part.PRIMARY in parts else None
        )
        self.auxiliary_encoder = (
            AuxiliaryVisionEncoder(config.davit) if Part.AUXILIARY in parts else None
        )
        self.language_model: LanguageModel | None = None
        if Part.LANGUAGE in parts:
            hidden = config.text.hidden_size
            self.image_projector = build_projector(
                config.image_projector, config.vision.out_hidden_size, hidden
            )
            self.region_projector = build_projector(
                config.region_projector, config.region_width, hidden
            )
            self.language_model = LanguageModel(
                config.text, tie_word_embeddings=config.tie_word_embeddings
            )

    def region_tokens(self, primary: Tensor, auxiliary: Tensor, normalised_boxes: Tensor) -> Tensor:
        """(..., num_boxes, hidden): pooled vectors fused and projected to region tokens."""
        fused = self.region_encoder.fuse(primary, auxiliary, normalised_boxes)
        dtype = next(self.region_projector.parameters(), torch.empty(0)).dtype
        tokens: Tensor = self.region_projector(fused.to(dtype))
        return tokens
