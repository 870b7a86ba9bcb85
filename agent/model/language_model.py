"""Language side: transformers' decoders on embeddings, with positions and a key/value cache.

Sequences are embeddings plus a slot type per position (text, image or region); no sentinel ids.
What differs between decoders stands in one table. Knows neither tokenizer nor pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaModel, PretrainedConfig, Qwen2_5_VLTextModel, Qwen2Model
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from agent.model.ragged_attention import RaggedBatch


class SlotType(IntEnum):
    """What fills a position of the sequence."""

    TEXT = 0
    IMAGE = 1
    REGION = 2


@dataclass(frozen=True)
class Decoder:
    """One of transformers' decoders, and what has to be known to run it."""

    model: type[Any]
    rotary: type[Any]
    num_axes: int
    """Numbers that make up a position: its place in the text, or time, row and column."""
    no_mask: Any
    """What keeps it from making a mask, which ragged attention would not look at."""


_NO_MASKS = {"full_attention": None, "sliding_attention": None}
DECODERS = {
    "qwen2_5_vl_text": Decoder(Qwen2_5_VLTextModel, Qwen2_5_VLRotaryEmbedding, 3, _NO_MASKS),
    "qwen2": Decoder(Qwen2Model, Qwen2RotaryEmbedding, 1, _NO_MASKS),
    # Only a mask of four dimensions, be it empty, is taken as it is.
    "llama": Decoder(LlamaModel, LlamaRotaryEmbedding, 1, torch.empty(1, 1, 0, 0)),
}
"""By the `model_type` of a decoder's configuration."""


class LanguageModel(nn.Module):
    """A decoder and its head."""

    def __init__(self, config: PretrainedConfig, *, tie_word_embeddings: bool) -> None:
        super().__init__()
        config._attn_implementation = "sdpa"
        self.config = config
        self._decoder = DECODERS[config.model_type]
        self.model = self._decoder.model(config)
        self.lm_head = (
            None if tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        )

    @property
    def num_axes(self) -> int:
        """Rows of `positions`."""
        return self._decoder.num_axes

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.model.embed_tokens.weight.device
        return device

    def renew_rotary(self, device: str) -> None:
        """Make the rotary table again where it will live: it is computed, not stored."""
        self.model.rotary_emb = self._decoder.rotary(self.config).to(device)

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
            positions: (axes, batch, length).
            attention_mask: (batch, 1, length, keys) additive or boolean; None is causal.
            cache: keys and values of earlier positions; extended in place.
        """
        output = self.model(
            inputs_embeds=embeddings,
            position_ids=self._position_ids(positions),
            attention_mask=attention_mask,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        hidden: Tensor = output.last_hidden_state
        return hidden

    def packed(self, embeddings: Tensor, positions: Tensor, batch: RaggedBatch) -> Tensor:
        """Hidden states of one packed row; attention must be the ragged one.

        Args:
            embeddings: (tokens, hidden).
            positions: (axes, tokens).
            batch: whose tokens they are, and what these may look at.

        Returns:
            (tokens, hidden), after the final norm.
        """
        output = self.model(
            inputs_embeds=embeddings[None],
            position_ids=self._position_ids(positions[:, None]),
            attention_mask=self._decoder.no_mask,
            use_cache=False,
            ragged=batch,
        )
        hidden: Tensor = output.last_hidden_state[0]
        return hidden

    def _position_ids(self, positions: Tensor) -> Tensor:
        """In the decoder's own form: positions of one axis come without it."""
        return positions if self.num_axes > 1 else positions[0]


def slot_positions(
    num_axes: int, slots: Tensor, grid: tuple[int, int] | None, *, start: int = 0
) -> tuple[Tensor, int]:
    """Positions of one sequence for a decoder with so many axes, and the next free one.

    With one axis every slot takes one step, whatever fills it; with three see `mrope_positions`.
    """
    if num_axes > 1:
        return mrope_positions(slots, grid, start=start)
    following = start + len(slots)
    return torch.arange(start, following)[None], following


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
