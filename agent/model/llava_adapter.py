"""LLaVA-OneVision (arXiv 2408.03326) behind the adapter interface: SigLIP, Qwen2, 1-D positions.

Image tokens are the model's own, tiles and line breaks included. Regions are pooled from the first
tile, which is the whole picture squashed to the tower's square; fine detail is the auxiliary
encoder's part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import LlavaOnevisionForConditionalGeneration
from transformers.cache_utils import DynamicCache

from agent.model.vlm_adapter import PatchShape, PromptFormat, VisionOutput, VLMAdapter

_PROMPT = PromptFormat(
    before_image="<|im_start|>user ",
    after_image="",
    before_regions="\n",
    question="\n{}<|im_end|><|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
)
_NUM_LEVELS = 4


class LlavaAdapter(VLMAdapter):
    """transformers' LLaVA-OneVision, weights as published."""

    prompt = _PROMPT

    def __init__(
        self,
        model: LlavaOnevisionForConditionalGeneration,
        *,
        tapped_layers: tuple[int, ...] | None = None,
    ) -> None:
        """`tapped_layers`: whose outputs are pooled; default: four, evenly spread to the last."""
        super().__init__()
        self.model = model
        vision = model.config.vision_config
        depth = vision.num_hidden_layers
        self.tapped_layers = tapped_layers or tuple(
            depth * (level + 1) // _NUM_LEVELS for level in range(_NUM_LEVELS)
        )
        self.vision = PatchShape(vision.hidden_size, vision.patch_size)
        self.num_levels = len(self.tapped_layers)
        self.hidden_size = model.config.text_config.hidden_size
        self._side = vision.image_size

    def encode(self, inputs: dict[str, Tensor]) -> VisionOutput:
        """`pixel_values` and `image_sizes` of the family's image processor, for one image."""
        output = self.model.model.get_image_features(
            inputs["pixel_values"], inputs["image_sizes"], return_dict=True
        )
        cells = self._side // self.vision.patch_size
        whole = [output.hidden_states[layer][:1] for layer in self.tapped_layers]
        if self.model.config.vision_feature_select_strategy == "default":
            whole = [states[:, 1:] for states in whole]  # without the class token
        levels = tuple(
            states.transpose(1, 2).reshape(1, self.vision.hidden_size, cells, cells)
            for states in whole
        )
        return VisionOutput(output.pooler_output[0], levels, (self._side, self._side))

    def embed(self, ids: Tensor) -> Tensor:
        """See `VLMAdapter`."""
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    def positions(
        self, slots: Tensor, grid: tuple[int, int] | None, *, start: int
    ) -> tuple[Tensor, int]:
        """One step per slot, whatever fills it: (1, length)."""
        following = start + len(slots)
        return torch.arange(start, following, device=slots.device)[None], following

    def language(
        self, embeddings: Tensor, positions: Tensor, *, cache: DynamicCache | None = None
    ) -> Tensor:
        """See `VLMAdapter`."""
        output = self.model.model.language_model(
            inputs_embeds=embeddings,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def language_modules(self) -> list[nn.Module]:
        """See `VLMAdapter`."""
        return [self.model.model.language_model, self.model.lm_head]

    def logits(self, hidden: Tensor) -> Tensor:
        """See `VLMAdapter`."""
        scores: Tensor = self.model.lm_head(hidden)
        return scores

    def extend_vocabulary(self, size: int) -> None:
        """Make room for `size` token ids; published models have rows to spare."""
        if size > self.model.get_input_embeddings().num_embeddings:
            self.model.resize_token_embeddings(size, mean_resizing=False)
