"""LLaVA-OneVision's eyes (arXiv 2408.03326): SigLIP on tiles, and the family's image tokens.

Image tokens are the model's own, tiles and line breaks included, in the language model's width.
Regions are pooled from the first tile, which is the whole picture squashed to the tower's square;
fine detail is the auxiliary encoder's part. Knows neither boxes nor the language model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionModel

from agent.model.llava_vision import LlavaVisionConfig
from agent.model.primary_maps import PrimaryMaps
from agent.model.watched_layers import watch


class LlavaVisionEncoder(nn.Module):
    """transformers' LLaVA-OneVision without its language model."""

    def __init__(self, config: LlavaVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.model = LlavaOnevisionModel(config.model)
        del self.model.language_model
        watch(self.model)

    def renew_tables(self, device: str, *, rounded: bool) -> None:
        """Make what is computed, not stored, again where it will live; it has no rotary tables that
        could be `rounded`."""
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
