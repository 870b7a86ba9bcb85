"""LLaVA-OneVision's eyes (arXiv 2408.03326): SigLIP on tiles, and the family's image tokens.

Image tokens are the model's own, tiles and line breaks included, in the language model's width.
Regions are pooled from the first tile, which is the whole picture squashed to the tower's square;
fine detail is the auxiliary encoder's part. Knows neither boxes nor the language model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionConfig, LlavaOnevisionModel

from agent.model.primary_encoder import PrimaryMaps
from agent.model.watched_layers import watch

_NUM_LEVELS = 4


@dataclass(frozen=True)
class LlavaVisionConfig:
    """What a published folder says of its eyes."""

    model: LlavaOnevisionConfig
    preprocessor: Mapping[str, Any]
    """Of the family's own image processor: `preprocessor_config.json`."""

    @property
    def hidden_size(self) -> int:
        """Channels of a map."""
        return int(self.model.vision_config.hidden_size)

    @property
    def patch_size(self) -> int:
        """Pixels per cell of a map."""
        return int(self.model.vision_config.patch_size)

    @property
    def side(self) -> int:
        """Pixels of each side of the square that a picture is squashed to."""
        return int(self.model.vision_config.image_size)

    @property
    def tapped_layers(self) -> tuple[int, ...]:
        """Whose outputs are pooled: four, evenly spread to the last."""
        depth = int(self.model.vision_config.num_hidden_layers)
        return tuple(depth * (level + 1) // _NUM_LEVELS for level in range(_NUM_LEVELS))

    @property
    def token_width(self) -> int:
        """Channels of an image token: the language model's."""
        return int(self.model.text_config.hidden_size)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> LlavaVisionConfig:
        """From a model's `vision_config`."""
        return cls(LlavaOnevisionConfig(**raw["model"]), dict(raw["preprocessor"]))

    def to_dict(self) -> dict[str, Any]:
        """And back."""
        return {"model": self.model.to_diff_dict(), "preprocessor": dict(self.preprocessor)}


class LlavaVisionEncoder(nn.Module):
    """transformers' LLaVA-OneVision without its language model."""

    def __init__(self, config: LlavaVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlavaOnevisionModel(config.model)
        del self.model.language_model
        watch(self.model)

    def renew_tables(self, device: str) -> None:
        """Make what is computed, not stored, again where it will live."""
        embeddings = self.model.vision_tower.embeddings
        numbers = torch.arange(embeddings.num_positions, device=device)
        embeddings.position_ids = numbers.expand(1, -1)

    def forward(self, pixel_values: Tensor, image_sizes: Tensor) -> PrimaryMaps:
        """One picture, as the family's own image processor prepares it."""
        output = self.model.get_image_features(pixel_values, image_sizes, return_dict=True)
        cells = self.config.side // self.config.patch_size
        whole = [output.hidden_states[layer][:1] for layer in self.config.tapped_layers]
        if self.config.model.vision_feature_select_strategy == "default":
            whole = [states[:, 1:] for states in whole]  # without the class token
        levels = tuple(
            states.transpose(1, 2).reshape(1, self.config.hidden_size, cells, cells)
            for states in whole
        )
        return PrimaryMaps(output.pooler_output[0], levels)
