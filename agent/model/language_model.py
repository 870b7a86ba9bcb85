"""Language side: transformers' decoders on embeddings, with positions and a key/value cache.

What differs between decoders stands in one table. Knows neither tokenizer nor pixels.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    LlamaConfig,
    LlamaModel,
    PretrainedConfig,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2Config,
    Qwen2Model,
)
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLRotaryEmbedding

from agent.model.decoder_shape import DecoderShape
from agent.model.ragged_attention import RaggedBatch


@dataclass(frozen=True)
class Decoder:
    """One of transformers' decoders, and what has to be known to run it."""

    config: type[Any]
    model: type[Any]
    rotary: type[Any]
    no_mask: Any
    """What keeps it from making a mask, which ragged attention would not look at."""


_NO_MASKS = {"full_attention": None, "sliding_attention": None}
DECODERS = {
    "qwen2_5_vl_text": Decoder(
        Qwen2_5_VLTextConfig, Qwen2_5_VLTextModel, Qwen2_5_VLRotaryEmbedding, _NO_MASKS
    ),
    "qwen2": Decoder(Qwen2Config, Qwen2Model, Qwen2RotaryEmbedding, _NO_MASKS),
    # Only a mask of four dimensions, be it empty, is taken as it is.
    "llama": Decoder(LlamaConfig, LlamaModel, LlamaRotaryEmbedding, torch.empty(1, 1, 0, 0)),
}
"""By the `model_type` of a decoder's configuration."""


def decoder_config(name: str, shape: DecoderShape) -> PretrainedConfig:
    """transformers' configuration of a decoder, by its key in `DECODERS`."""
    said = asdict(shape)
    rope = {"rope_type": "default", "rope_theta": said.pop("rope_theta")}
    section = said.pop("mrope_section")
    if section is not None:
        rope["mrope_section"] = list(section)
    config: PretrainedConfig = DECODERS[name].config(
        **said, pad_token_id=None, rope_parameters=rope
    )
    config._attn_implementation = "sdpa"
    return config


class LanguageModel(nn.Module):
    """A decoder and its head."""

    def __init__(self, decoder: str, shape: DecoderShape, *, tie_word_embeddings: bool) -> None:
        """`decoder`: its key in `DECODERS`."""
        super().__init__()
        self.config = config = decoder_config(decoder, shape)
        self._decoder = DECODERS[decoder]
        self.model = self._decoder.model(config)
        self.lm_head = (
            None if tie_word_embeddings else nn.Linear(config.hidden_size, config.vocab_size, False)
        )

    @property
    def num_axes(self) -> int:
        """Rows of `positions`."""
        return 3 if "mrope_section" in self.config.rope_parameters else 1

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = self.model.embed_tokens.weight.device
        return device

    def renew_tables(self, device: str, *, rounded: bool = False) -> None:
        """Make the rotary table again where it will live: it is computed, not stored.

        `rounded`: with frequencies of bfloat16, as the published loader leaves them.
        """
        table = self._decoder.rotary(self.config).to(device)
        if rounded:
            table.inv_freq = table.inv_freq.bfloat16().float()
        self.model.rotary_emb = table

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
