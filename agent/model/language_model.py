"""Language side: Qwen2.5 decoder on embeddings, with M-RoPE positions and a key/value cache.

Sequences are embeddings plus a slot type per position (text, image or region); no sentinel ids.
Knows neither tokenizer nor pixels.
"""

from __future__ import annotations

from enum import IntEnum

import torch
from torch import Tensor, nn
from transformers import Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel
from transformers.cache_utils import DynamicCache


class SlotType(IntEnum):
    """What fills a position of the sequence."""

    TEXT = 0
    IMAGE = 1
    REGION = 2


class LanguageModel(nn.Module):
    """Qwen2.5-VL's text model and its head."""

    def __init__(self, config: Qwen2_5_VLTextConfig, *, tie_word_embeddings: bool) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self.model = Qwen2_5_VLTextModel(config)
        self.lm_head = (
            None if tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        )

    def embed(self, token_ids: Tensor) -> Tensor:
        """(..., length) ids to (..., length, hidden) embeddings."""
        embedded: Tensor = self.model.embed_tokens(token_ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., hidden) to (..., vocabulary)."""
        weight = self.model.embed_tokens.weight if self.lm_head is None else self.lm_head.weight
        return nn.functional.linear(hidden, weight)

    def forward(
        self,
        embeddings: Tensor,
        positions: Tensor,
        *,
        attention_mask: Tensor | None = None,
        cache: DynamicCache | None = None,
    ) -> Tensor:
        """Hidden states after the final norm.

        Args:
            embeddings: (batch, length, hidden).
            positions: (3, batch, length) M-RoPE positions (time, row, column).
            attention_mask: (batch, 1, length, keys) additive or boolean; None is causal.
            cache: keys and values of earlier positions; extended in place.
        """
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=positions,
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden


def mrope_positions(
    slots: Tensor, grid: tuple[int, int] | None, *, start: int = 0
) -> tuple[Tensor, int]:
    """M-RoPE positions of one sequence (Qwen2-VL, arXiv 2409.12191, section 2.1).

    Text and region slots take one step on all three axes; the image block keeps its time and
    counts rows and columns of merged cells; what follows starts after the largest position.

    Args:
        slots: (length,) `SlotType` values; image slots are contiguous.
        grid: (rows, columns) of merged image cells, or None without an image.
        start: first position.

    Returns:
        (3, length) positions and the next free position.
    """
    image = torch.nonzero(slots == SlotType.IMAGE).flatten()
    length = len(slots)
    if not len(image) or grid is None:
        steps = torch.arange(start, start + length)
        return steps.expand(3, -1), start + length
    first, rows, columns = int(image[0]), *grid
    before = torch.arange(start, start + first).expand(3, -1)
    base = start + first
    row = torch.arange(rows).repeat_interleave(columns) + base
    column = torch.arange(columns).repeat(rows) + base
    block = torch.stack([torch.full_like(row, base), row, column])
    after_start = base + max(rows, columns)
    after = torch.arange(after_start, after_start + length - first - len(image)).expand(3, -1)
    return torch.cat([before, block, after], dim=1), after_start + after.shape[1]
