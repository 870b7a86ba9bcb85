"""Qwen2.5-VL as VLM-FO1 uses it, behind the adapter interface.

A second view of the parts a `VLMFO1` already has; the service runs those parts directly, so that
its stages can live in different processes. Same numbers either way (tests/unit/test_attached.py).
"""

from __future__ import annotations

from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

from agent.model.language_model import mrope_positions
from agent.model.vlm_adapter import PatchShape, PromptFormat, VisionOutput, VLMAdapter
from agent.model.vlm_fo1 import VLMFO1
from agent.prompts import SYSTEM_PROMPT

_PROMPT = PromptFormat(
    before_image=(
        f"<|im_start|>system\n{SYSTEM_PROMPT}<|im_end|>\n<|im_start|>user\n<|vision_start|>"
    ),
    after_image="<|vision_end|>",
    before_regions="\n",
    question="\n{}<|im_end|>\n<|im_start|>assistant\n",
    end_of_turn="<|im_end|>",
)


class QwenAdapter(VLMAdapter):
    """The primary encoder, image projector and language model of a `VLMFO1`."""

    prompt = _PROMPT

    def __init__(self, model: VLMFO1) -> None:
        super().__init__()
        assert model.primary_encoder is not None
        assert model.language_model is not None
        self.primary_encoder = model.primary_encoder
        self.image_projector = model.image_projector
        self.language_model = model.language_model
        vision = model.config.vision
        self._merge = vision.spatial_merge_size
        self.vision = PatchShape(vision.hidden_size, vision.patch_size)
        self.num_levels = len(vision.fullatt_block_indexes)
        self.hidden_size = model.config.text.hidden_size

    def encode(self, inputs: dict[str, Tensor]) -> VisionOutput:
        """`patches` in merge order and `grid_thw` of one image."""
        maps = self.primary_encoder(inputs["patches"], inputs["grid_thw"])[0]
        rows, columns = (int(side) for side in inputs["grid_thw"][0, 1:])
        patch = self.vision.patch_size
        return VisionOutput(
            self.image_projector(maps.image_tokens),
            maps.levels,
            (columns * patch, rows * patch),
            (rows // self._merge, columns // self._merge),
        )

    def embed(self, ids: Tensor) -> Tensor:
        """See `VLMAdapter`."""
        return self.language_model.embed(ids)

    def positions(
        self, slots: Tensor, grid: tuple[int, int] | None, *, start: int
    ) -> tuple[Tensor, int]:
        """M-RoPE: (3, 1, length)."""
        positions, following = mrope_positions(slots, grid, start=start)
        return positions[:, None], following

    def language(
        self, embeddings: Tensor, positions: Tensor, *, cache: DynamicCache | None = None
    ) -> Tensor:
        """See `VLMAdapter`."""
        hidden: Tensor = self.language_model(embeddings, positions, cache=cache)
        return hidden

    def language_modules(self) -> list[nn.Module]:
        """See `VLMAdapter`."""
        return [self.language_model]

    def logits(self, hidden: Tensor) -> Tensor:
        """See `VLMAdapter`."""
        return self.language_model.logits(hidden)
